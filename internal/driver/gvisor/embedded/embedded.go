// Package embedded carries hearth-sandbox, the program that gVisor sandboxes and their
// launchers are, inside the main binary. "make build" compiles cmd/hearth-sandbox to
// bin/hearth-sandbox before it compiles the rest; the directory is otherwise empty but for a
// note, which keeps plain "go build ./..." working on a clean clone.
package embedded

import (
	"embed"
	"errors"
	"io"
	"io/fs"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"hearth/internal/hearth"
)

//go:embed bin
var content embed.FS

const (
	program = "hearth-sandbox"
	spare   = 4 << 20 // bytes of the file system beside the program: its last page may be a huge one
)

var errWithout = hearth.Errorf(hearth.FailedPrecondition, `this program was built without hearth-sandbox; run "make build"`)

// InMemory returns the program, open for reading and to be executed by the descriptor's
// name in /proc. It is a file of a file system in memory that is mounted nowhere and, since
// Linux 5.12, cannot be written to any more. It is gone with the last that has it open or executes it. Where the host
// has huge pages it lies in those: sandboxes share them, and neither fault on their pages
// nor unmap them one by one. It fails with FailedPrecondition when this program was built
// without it, and otherwise as the host does.
func InMemory() (*os.File, error) { return inMemory(content) }

func inMemory(from fs.FS) (*os.File, error) {
	src, err := from.Open("bin/" + program)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errWithout
	}
	if err != nil {
		return nil, err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() == 0 {
		return nil, errWithout
	}
	dir, err := mount(info.Size() + spare)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	// A child that is forked meanwhile, and has not executed anything yet, would have it
	// open for writing: nobody could execute it.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	w, err := openAt(dir, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY)
	if err != nil {
		return nil, err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{src}, make([]byte, 1<<20))
	// Whatever the umask: sandboxes execute it as users of their own.
	if err := errors.Join(err, w.Chmod(0o555), w.Close()); err != nil {
		return nil, err
	}
	err = unix.MountSetattr(dir, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	if err != nil && !errors.Is(err, unix.ENOSYS) {
		return nil, os.NewSyscallError("mount_setattr", err)
	}
	return openAt(dir, unix.O_RDONLY)
}

func openAt(dir, flags int) (*os.File, error) {
	fd, err := unix.Openat(dir, program, flags|unix.O_CLOEXEC, 0o500)
	if err != nil {
		return nil, os.NewSyscallError("openat", err)
	}
	return os.NewFile(uintptr(fd), program), nil
}

// mount makes a file system of so many bytes and returns its directory.
func mount(bytes int64) (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return 0, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	_ = unix.FsconfigSetString(fs, "huge", "always") // kernels without huge pages do not know the word
	err = errors.Join(
		unix.FsconfigSetString(fs, "mode", "0700"),
		unix.FsconfigSetString(fs, "size", strconv.FormatInt(bytes, 10)),
		unix.FsconfigCreate(fs),
	)
	if err != nil {
		return 0, os.NewSyscallError("fsconfig", err)
	}
	dir, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	return dir, os.NewSyscallError("fsmount", err)
}
