// Package jail makes and takes apart the directory that a machine's monitor is
// locked up in, and finds the processes of a machine whose start was cut short.
//
// A jail belongs to a process that its guest may have taken over. So nothing in it
// is trusted: links are not followed, and files must be regular ones of the
// monitor's own.
package jail

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hearth/internal/driver/hostproc"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Jail is where one machine's monitor lives.
type Jail struct {
	Dir string // the machine's
	ID  string
	Exe string // base name of the program, which the jailer makes part of the path
	UID int    // the monitor's user and group
}

// Root is the monitor's root directory.
func (j Jail) Root() string { return filepath.Join(j.Dir, j.Exe, j.ID, "root") }

// Path is where the monitor's /name is on the host.
func (j Jail) Path(name string) string { return filepath.Join(j.Root(), name) }

// Prepare makes the directory that the jailer will take over.
func (j Jail) Prepare() error {
	var st unix.Statfs_t
	if err := unix.Statfs(j.Dir, &st); err != nil {
		return err
	}
	if st.Flags&(unix.ST_NODEV|unix.ST_NOEXEC) != 0 {
		return fmt.Errorf("%s is on a file system mounted with nodev or noexec, which a jail cannot be on: remount it with dev and exec", j.Dir)
	}
	return os.MkdirAll(j.Root(), 0o700)
}

// Put shows the machine a file, read-only, under a name: the file itself, by a
// hard link, or by a mount where it lies on another file system.
func (j Jail) Put(from, name string) error {
	from, err := filepath.EvalSymlinks(from)
	if err != nil {
		return err
	}
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file", from)
	}
	if info.Mode()&0o444 != 0o444 {
		if err := os.Chmod(from, info.Mode().Perm()|0o444); err != nil {
			return err
		}
	}
	if err = os.Link(from, j.Path(name)); !errors.Is(err, unix.EXDEV) {
		return err
	}
	f, err := os.OpenFile(j.Path(name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := unix.Mount(from, j.Path(name), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s into the jail: %w", from, err)
	}
	const readOnly = unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	return unix.Mount("", j.Path(name), "", readOnly, "")
}

// Open opens a file that the monitor made or may have replaced. Only a regular
// file of its user is opened, and no link is followed.
func (j Jail) Open(name string, flags int) (*os.File, error) {
	f, err := os.OpenFile(j.Path(name), flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		_ = f.Close()
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Uid != uint32(j.UID) || st.Nlink != 1 {
		_ = f.Close()
		return nil, fmt.Errorf("%s in the jail is not the monitor's own file", name)
	}
	return f, nil
}

// PID reads the number that the jailer left.
func (j Jail) PID() (int, error) {
	raw, err := os.ReadFile(j.Path(j.Exe + ".pid"))
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil || pid < 2 {
		return 0, fmt.Errorf("the jailer left %.20q for a process ID", raw)
	}
	return pid, nil
}

// UnmountBelow takes off what is mounted in a directory, the last first.
func UnmountBelow(dir string) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	var points []string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		point := unescape(fields[4])
		if strings.HasPrefix(point, dir+"/") {
			points = append(points, point)
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	slices.Reverse(points)
	var errs []error
	for _, p := range points {
		if err := unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, &fs.PathError{Op: "unmount", Path: p, Err: err})
		}
	}
	return errors.Join(errs...)
}

// unescape undoes the kernel's octal escapes of blanks in mount points.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// Listen makes a socket in the jail that the monitor can connect to.
func (j Jail) Listen(name string) (*os.File, error) {
	dir, err := os.OpenFile(j.Root(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name), Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	if err := os.Lchown(j.Path(name), j.UID, j.UID); err != nil {
		return nil, err
	}
	return l.File()
}

// KillStrays kills the machine's jailer, monitor and pager wherever they are.
func KillStrays(ctx context.Context, id, pager string) error {
	return hostproc.KillStrays(ctx, func(args []string) bool { return belongsTo(id, pager, args) })
}

// belongsTo recognizes the arguments of a jailer, a monitor and a pager.
func belongsTo(id, pager string, args []string) bool {
	name := filepath.Base(args[0])
	if name == pager {
		return len(args) == 2 && args[1] == id
	}
	if name != "jailer" && !strings.Contains(name, "firecracker") {
		return false
	}
	for i, a := range args[1:] {
		if a == "--id" && i+2 < len(args) {
			return args[i+2] == id
		}
	}
	return false
}
