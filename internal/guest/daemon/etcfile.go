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

// replaceFile puts a file with that content at dir/name: what was there, a
// link above all, is replaced and never written through. Where it cannot be
// replaced, because it is a mount, it is written in place if it is a plain file.
func replaceFile(dir, name, content string, mode uint32) error {
	if readFile(dir, name) == content {
		return nil
	}
	d, err := openDir(dir)
	if err != nil {
		return err
	}
	defer unix.Close(d)
	tmp := "." + name + "-" + rand.Text()
	if err := writeAt(d, tmp, content, unix.O_CREAT|unix.O_EXCL, mode); err != nil {
		return err
	}
	err = unix.Renameat(d, tmp, d, name)
	if err == nil {
		return nil
	}
	_ = unix.Unlinkat(d, tmp, 0)
	if errors.Is(err, unix.EBUSY) {
		return writeAt(d, name, content, unix.O_TRUNC, mode)
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
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return ""
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxSmall))
	if err != nil {
		return ""
	}
	return string(raw)
}
