package vminit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	reportFD  = 3 // of enter: why the first program could not be started
	openFiles = 1 << 20
)

// enter is the life of the process that becomes the first program: it has mount
// and process namespaces of its own already, and is in its control group.
// Arguments are the limit of processes, the program, and the program's.
func enter(args []string) error {
	if len(args) < 2 {
		return errors.New("what is to be started is missing")
	}
	limit, err := strconv.ParseUint(args[0], 10, 64)
	if err != nil {
		return err
	}
	unix.CloseOnExec(reportFD)
	// A namespace belongs to a thread until exec makes it the process's.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWCGROUP | unix.CLONE_NEWIPC); err != nil {
		return fmt.Errorf("namespaces: %w", err)
	}
	if err := furnish(); err != nil {
		return err
	}
	if err := switchRoot(); err != nil {
		return err
	}
	for what, n := range map[int]uint64{unix.RLIMIT_NOFILE: openFiles, unix.RLIMIT_NPROC: limit, unix.RLIMIT_CORE: 0} {
		if err := syscall.Setrlimit(what, &syscall.Rlimit{Cur: n, Max: n}); err != nil {
			return fmt.Errorf("limit %d: %w", what, err)
		}
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0); err != nil {
		return err
	}
	unix.Umask(0o022)
	return &os.PathError{Op: "start", Path: args[1], Err: syscall.Exec(args[1], args[1:], os.Environ())}
}

// furnish mounts in the new root what programs expect.
func furnish() error {
	const plain = unix.MS_NOSUID | unix.MS_NODEV
	in := func(path string) string { return filepath.Join(newRoot, path) }
	err := mountAll([]mount{
		{in("/proc"), "proc", "proc", plain | unix.MS_NOEXEC, ""},
		{in("/sys"), "sysfs", "sysfs", plain | unix.MS_NOEXEC, ""},
		{in("/sys/fs/cgroup"), "cgroup2", "cgroup2", plain | unix.MS_NOEXEC, "nsdelegate"},
		{in("/dev"), "devtmpfs", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
		{in("/dev/pts"), "devpts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		{in("/dev/shm"), "tmpfs", "tmpfs", plain, "mode=1777"},
		{in("/run"), "tmpfs", "tmpfs", plain, "mode=0755"},
	})
	if err != nil {
		return err
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, in("/dev/"+name)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if err := os.Mkdir(in("/tmp"), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return os.Chmod(in("/tmp"), 0o777|os.ModeSticky)
}

// switchRoot makes newRoot the root of the mount namespace, and not only this
// process's: who is merely chrooted may not make namespaces.
func switchRoot() error {
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(newRoot, "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	return os.Chdir("/")
}

// report tells hearth-init why the first program did not start.
func report(err error) {
	if f := os.NewFile(reportFD, "report"); f != nil && err != nil {
		_, _ = f.WriteString(err.Error())
		_ = f.Close()
	}
}
