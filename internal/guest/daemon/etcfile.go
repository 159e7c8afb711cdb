package daemon

import (
	"crypto/rand"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxSmall bounds the system files that are read back.
const maxSmall = 256 << 10

// openDir opens a directory of the root without following a link in its place.
func openDir(path string) (int, error) {
	return unix.Open(path, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_RDONLY, 0)
}

// ownDirectory makes sure that parent/name is a directory of root's: whatever
// else is there, a link above all, is taken away.
func ownDirectory(parent, name string) error {
	dir, err := openDir(parent)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		if st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Uid == 0 && st.Mode&0o022 == 0 {
			return nil
		}
		old := "." + name + "-" + rand.Text()
		if err := unix.Renameat(dir, name, dir, old); err != nil {
			return err
		}
	}
	return unix.Mkdirat(dir, name, 0o755)
}

// directory is where system files are kept, opened once for several of them.
type directory struct {
	fd   int
	path string
}

func openDirectory(path string) (*directory, error) {
	fd, err := openDir(path)
	return &directory{fd: fd, path: path}, err
}

func (d *directory) close() { _ = unix.Close(d.fd) }

// put makes name a file with that content. A plain file of root's is
// rewritten in place, which costs the fewest system calls on the way of every
// create; whatever else is there, a link above all, is replaced and never written through.
func (d *directory) put(name, content string, mode uint32) error {
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := unix.Openat(d.fd, name, flags, mode)
	if err != nil {
		return d.replace(name, content, mode)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 || st.Uid != 0 {
		return d.replace(name, content, mode)
	}
	n, err := unix.Pwrite(fd, []byte(content), 0)
	if err == nil && n < len(content) {
		err = unix.ENOSPC
	}
	if err == nil && st.Size != int64(n) {
		err = unix.Ftruncate(fd, int64(n))
	}
	return err
}

// replace puts a new file in the place of what is there.
func (d *directory) replace(name, content string, mode uint32) error {
	tmp := "." + name + "-" + rand.Text()
	if err := writeAt(d.fd, tmp, content, unix.O_CREAT|unix.O_EXCL, mode); err != nil {
		return err
	}
	err := unix.Renameat(d.fd, tmp, d.fd, name)
	if err != nil {
		_ = unix.Unlinkat(d.fd, tmp, 0)
	}
	return err
}

func writeAt(dir int, name, content string, flags int, mode uint32) error {
	fd, err := unix.Openat(dir, name, flags|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, mode)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.WriteString(content)
	return errors.Join(err, f.Close())
}

// readFile is the content of a plain file dir/name, or nothing. Links are not followed.
func readFile(dir, name string) string {
	fd, err := unix.Open(dir+"/"+name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return ""
	}
	raw := make([]byte, min(st.Size, maxSmall))
	n, err := io.ReadFull(descriptor(fd), raw)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return ""
	}
	return string(raw[:n])
}

// descriptor reads a plain file without what package os does around it.
type descriptor int

func (d descriptor) Read(p []byte) (int, error) {
	n, err := unix.Read(int(d), p)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return max(n, 0), err
}
