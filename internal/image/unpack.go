package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/hearth"
)

// unpacker writes tar archives into a root file system. Nothing it does can
// reach outside: every path goes through an os.Root, and symbolic links are
// resolved as they would be inside, with "/" meaning the root. Later layers
// replace what earlier ones wrote.
type unpacker struct {
	root    *os.Root
	limits  Limits
	bytes   int64
	entries int
	skipped int                  // device nodes, which a sandbox has of its own
	dirs    map[string]time.Time // directory times, set at the end
	real    map[string]string    // directory -> the same without symbolic links
	written map[string]struct{}  // by this layer, for whiteouts
	oci     bool                 // names that begin with ".wh." delete
	buf     []byte
}

const (
	maxPath     = 4096
	maxLinks    = 40 // symbolic links followed for one path, as in Linux
	maxXattrs   = 64
	whiteout    = ".wh."
	opaque      = ".wh..wh..opq"
	tarOverhead = 4096 // bytes of headers per entry, on average
)

func newUnpacker(root *os.Root, limits Limits) *unpacker {
	return &unpacker{root: root, limits: limits, dirs: map[string]time.Time{}, real: map[string]string{}, buf: make([]byte, 1<<18)}
}

// layer unpacks one tar stream.
func (u *unpacker) layer(ctx context.Context, r io.Reader) error {
	u.written = map[string]struct{}{}
	budget := u.limits.Bytes - u.bytes
	if budget < math.MaxInt64-int64(u.limits.Entries)*tarOverhead {
		budget += int64(u.limits.Entries) * tarOverhead
	}
	tr := tar.NewReader(&io.LimitedReader{R: r, N: budget})
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		hdr, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return hearth.Wrap(hearth.InvalidArgument, err, "the archive is damaged or not a tar archive")
		}
		if u.entries++; u.entries > u.limits.Entries {
			return hearth.Errorf(hearth.InvalidArgument, "the archive has more than %d entries, the limit of one image", u.limits.Entries)
		}
		if err := u.entry(ctx, tr, hdr); err != nil {
			if hearth.KindOf(err) != hearth.Internal {
				return err
			}
			if full := diskError(err, u.root.Name()); full != err {
				return full
			}
			return hearth.Wrap(hearth.InvalidArgument, err, "cannot unpack %.200q", hdr.Name)
		}
	}
}

// finish sets the times of directories, which unpacking into them has changed.
func (u *unpacker) finish() error {
	for name, t := range u.dirs {
		fi, err := u.root.Lstat(name)
		if err != nil || !fi.IsDir() {
			continue // replaced or deleted by a later layer
		}
		if err := u.root.Chtimes(name, t, t); err != nil {
			return err
		}
	}
	return nil
}

// clean returns the name of an entry relative to the root, "." for the root.
func clean(name string) (string, error) {
	if len(name) > maxPath || strings.IndexByte(name, 0) >= 0 {
		return "", hearth.Errorf(hearth.InvalidArgument, "the archive has a name that is longer than %d bytes or has a NUL: %.60q", maxPath, name)
	}
	if slices.Contains(strings.Split(name, "/"), "..") {
		return "", hearth.Errorf(hearth.InvalidArgument, "the archive has a name that leaves its directory: %.200q", name)
	}
	if name = path.Clean("/" + name)[1:]; name == "" {
		return ".", nil
	}
	return name, nil
}

func (u *unpacker) entry(ctx context.Context, r io.Reader, hdr *tar.Header) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := clean(hdr.Name)
	if err != nil {
		return err
	}
	dir, err := u.parent(path.Dir(name))
	if err != nil {
		return err
	}
	base := path.Base(name)
	if u.oci && strings.HasPrefix(base, whiteout) {
		return u.whiteout(dir, base)
	}
	name = path.Join(dir, base)
	u.mark(name)
	switch hdr.Typeflag {
	case tar.TypeDir:
		return u.directory(name, hdr)
	case tar.TypeReg, '\x00', tar.TypeGNUSparse:
		return u.file(ctx, name, r, hdr)
	case tar.TypeSymlink:
		return u.symlink(name, hdr)
	case tar.TypeLink:
		return u.hardlink(name, hdr)
	case tar.TypeFifo:
		return u.fifo(name, hdr)
	case tar.TypeChar, tar.TypeBlock:
		u.skipped++
		return nil
	}
	return hearth.Errorf(hearth.InvalidArgument, "the archive has an entry of unknown type %q: %.200q", hdr.Typeflag, hdr.Name)
}

// mark notes that this layer wrote name, and so its parents.
func (u *unpacker) mark(name string) {
	for ; name != "."; name = path.Dir(name) {
		if _, ok := u.written[name]; ok {
			return
		}
		u.written[name] = struct{}{}
	}
}

// parent returns the directory without symbolic links, made if it is missing.
func (u *unpacker) parent(dir string) (string, error) {
	if dir == "." {
		return ".", nil
	}
	if r, ok := u.real[dir]; ok {
		return r, nil
	}
	if len(u.real) > 10_000 {
		clear(u.real) // it saves time, no more
	}
	r, err := u.resolve(dir, true)
	if err == nil {
		u.real[dir] = r
	}
	return r, err
}

// missing says what resolve does about directories that are not there.
type missing bool

// resolve follows the symbolic links of a directory as a process inside would.
func (u *unpacker) resolve(dir string, create missing) (string, error) {
	at, links := ".", 0
	rest := strings.Split(dir, "/")
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at) // of "." it is "."
			continue
		}
		next := path.Join(at, part)
		fi, err := u.root.Lstat(next)
		switch {
		case errors.Is(err, fs.ErrNotExist) && bool(create):
			if u.entries++; u.entries > u.limits.Entries {
				return "", hearth.Errorf(hearth.InvalidArgument, "the archive has more than %d entries, the limit of one image", u.limits.Entries)
			}
			if err := errors.Join(u.root.Mkdir(next, 0o755), u.root.Chmod(next, 0o755)); err != nil { // whatever the umask
				return "", err
			}
			at = next
		case err != nil:
			return "", err
		case fi.Mode()&fs.ModeSymlink != 0:
			if links++; links > maxLinks {
				return "", fmt.Errorf("too many symbolic links at %q", next)
			}
			target, err := u.root.Readlink(next)
			if err != nil {
				return "", err
			}
			if path.IsAbs(target) {
				at = "."
			}
			rest = append(strings.Split(target, "/"), rest...)
		case !fi.IsDir():
			return "", fmt.Errorf("%q is not a directory", next)
		default:
			at = next
		}
	}
	return at, nil
}

// replace removes what is at name. Paths resolved through it are forgotten.
func (u *unpacker) replace(name string) error {
	if name == "." {
		return hearth.Errorf(hearth.InvalidArgument, "the archive replaces its root directory by something else")
	}
	fi, err := u.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		clear(u.real)
	}
	return u.root.RemoveAll(name)
}

func (u *unpacker) directory(name string, hdr *tar.Header) error {
	fi, err := u.root.Lstat(name)
	if err == nil && !fi.IsDir() {
		if err := u.replace(name); err != nil {
			return err
		}
	}
	if err != nil || !fi.IsDir() {
		if err := u.root.Mkdir(name, 0o700); err != nil {
			return err
		}
	}
	f, err := u.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	u.dirs[name] = when(hdr)
	return u.attributes(f, hdr)
}

func (u *unpacker) file(ctx context.Context, name string, r io.Reader, hdr *tar.Header) error {
	if hdr.Size < 0 || hdr.Size > u.limits.Bytes-u.bytes {
		return hearth.Errorf(hearth.InvalidArgument, "the archive holds more than %d MiB, the limit of one image", u.limits.Bytes>>20)
	}
	const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL | unix.O_NOFOLLOW
	f, err := u.root.OpenFile(name, flags, 0o600)
	if errors.Is(err, fs.ErrExist) {
		if err := u.replace(name); err != nil {
			return err
		}
		f, err = u.root.OpenFile(name, flags, 0o600)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := copyBuf(ctx, f, r, u.buf)
	u.bytes += n
	if err != nil {
		return err
	}
	if err := u.attributes(f, hdr); err != nil {
		return err
	}
	t := unix.NsecToTimeval(when(hdr).UnixNano())
	if err := unix.Futimes(int(f.Fd()), []unix.Timeval{t, t}); err != nil {
		return err
	}
	return f.Close()
}

// attributes sets owner, mode and xattrs; in that order, for a change of owner
// clears setuid and capabilities.
func (u *unpacker) attributes(f *os.File, hdr *tar.Header) error {
	if err := owner(hdr); err != nil {
		return err
	}
	fd := int(f.Fd())
	if err := unix.Fchown(fd, hdr.Uid, hdr.Gid); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, uint32(hdr.Mode&0o7777)); err != nil {
		return err
	}
	n := 0
	for k, v := range hdr.PAXRecords {
		attr, ok := strings.CutPrefix(k, "SCHILY.xattr.")
		if !ok || !strings.HasPrefix(attr, "user.") && attr != "security.capability" {
			continue
		}
		if n++; n > maxXattrs || len(attr) > 255 || len(v) > 65536 {
			return hearth.Errorf(hearth.InvalidArgument, "the archive has more than %d xattrs, or one over 64 KiB, at %.200q", maxXattrs, hdr.Name)
		}
		if err := unix.Fsetxattr(fd, attr, []byte(v), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return err
		}
	}
	return nil
}

func owner(hdr *tar.Header) error {
	if hdr.Uid < 0 || hdr.Gid < 0 || hdr.Uid >= math.MaxUint32 || hdr.Gid >= math.MaxUint32 {
		return hearth.Errorf(hearth.InvalidArgument, "the archive has an impossible owner %d:%d at %.200q", hdr.Uid, hdr.Gid, hdr.Name)
	}
	return nil
}

// when is an entry's time, between 1970 and now.
func when(hdr *tar.Header) time.Time {
	t, now := hdr.ModTime.Truncate(time.Microsecond), time.Now()
	if t.Unix() < 0 {
		return time.Unix(0, 0)
	}
	if t.After(now) {
		return now.Truncate(time.Second)
	}
	return t
}

func (u *unpacker) symlink(name string, hdr *tar.Header) error {
	if hdr.Linkname == "" || len(hdr.Linkname) >= maxPath || strings.IndexByte(hdr.Linkname, 0) >= 0 {
		return hearth.Errorf(hearth.InvalidArgument, "the archive has a bad symbolic link at %.200q", hdr.Name)
	}
	if err := owner(hdr); err != nil {
		return err
	}
	if err := u.replace(name); err != nil {
		return err
	}
	if err := u.root.Symlink(hdr.Linkname, name); err != nil {
		return err
	}
	if err := u.root.Lchown(name, hdr.Uid, hdr.Gid); err != nil {
		return err
	}
	return u.inParent(name, func(fd int, base string) error {
		t := unix.NsecToTimespec(when(hdr).UnixNano())
		return unix.UtimesNanoAt(fd, base, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW)
	})
}

func (u *unpacker) hardlink(name string, hdr *tar.Header) error {
	target, err := clean(hdr.Linkname)
	if err != nil {
		return err
	}
	dir, err := u.resolve(path.Dir(target), false)
	if err != nil {
		return err
	}
	target = path.Join(dir, path.Base(target))
	fi, err := u.root.Lstat(target)
	if err != nil {
		return err
	}
	if fi.IsDir() {
		return fmt.Errorf("hard link to the directory %q", target)
	}
	if target == name {
		return nil
	}
	if err := u.replace(name); err != nil {
		return err
	}
	return u.root.Link(target, name)
}

func (u *unpacker) fifo(name string, hdr *tar.Header) error {
	if err := owner(hdr); err != nil {
		return err
	}
	if err := u.replace(name); err != nil {
		return err
	}
	err := u.inParent(name, func(fd int, base string) error { return unix.Mkfifoat(fd, base, uint32(hdr.Mode&0o777)) })
	if err != nil {
		return err
	}
	return u.root.Lchown(name, hdr.Uid, hdr.Gid)
}

// inParent opens the directory of name for a system call that os.Root lacks.
// name has no symbolic links in its directory part; O_NOFOLLOW makes sure.
func (u *unpacker) inParent(name string, do func(fd int, base string) error) error {
	f, err := u.root.OpenFile(path.Dir(name), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return do(int(f.Fd()), path.Base(name))
}

// whiteout deletes what lower layers put at a name, or in a directory.
func (u *unpacker) whiteout(dir, base string) error {
	if base == opaque {
		return u.hideChildren(dir)
	}
	if strings.HasPrefix(base, whiteout+whiteout) {
		return nil // bookkeeping of old layer formats
	}
	name := strings.TrimPrefix(base, whiteout)
	if name == "" || name == "." || name == ".." {
		return hearth.Errorf(hearth.InvalidArgument, "the archive has a bad whiteout %.200q", base)
	}
	return u.hide(path.Join(dir, name))
}

// hide removes name, but not what this layer wrote at or below it.
func (u *unpacker) hide(name string) error {
	if _, ok := u.written[name]; !ok {
		return u.replace(name)
	}
	if fi, err := u.root.Lstat(name); err != nil || !fi.IsDir() {
		return nil
	}
	return u.hideChildren(name)
}

func (u *unpacker) hideChildren(dir string) error {
	list, err := fs.ReadDir(u.root.FS(), dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		if err := u.hide(path.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
