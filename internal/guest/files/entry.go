package files

import (
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"hearth/internal/gen/guestv1"
)

// describer makes the descriptions of one answer; it looks every owner up once.
type describer struct {
	users, groups map[uint32]string
}

func newDescriber() *describer {
	return &describer{users: map[uint32]string{}, groups: map[uint32]string{}}
}

// describe returns what the protocol tells about the file at path, of which fi
// is the lstat. Text that is not UTF-8 is made so: it could not be sent otherwise.
func (d *describer) describe(path string, fi fs.FileInfo) *guestv1.EntryInfo {
	e := &guestv1.EntryInfo{
		Name: valid(filepath.Base(path)), Path: valid(path), Type: kind(fi.Mode()),
		Size: fi.Size(), Mode: uint32(fi.Mode().Perm()), Permissions: fi.Mode().String(),
		ModifiedTime: timestamppb.New(fi.ModTime()),
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		e.Owner, e.Group = d.owner(st.Uid), d.group(st.Gid)
	}
	if fi.Mode()&fs.ModeSymlink == 0 {
		e.Metadata = metadata(path)
		return e
	}
	e.Type = guestv1.FileType_FILE_TYPE_UNSPECIFIED
	target := path
	if real, err := filepath.EvalSymlinks(path); err == nil {
		target = real
	}
	target = valid(target)
	e.SymlinkTarget = &target
	if to, err := os.Stat(path); err == nil {
		e.Type, e.Mode = kind(to.Mode()), uint32(to.Mode().Perm())
	}
	return e
}

func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func kind(m fs.FileMode) guestv1.FileType {
	switch {
	case m.IsDir():
		return guestv1.FileType_FILE_TYPE_DIRECTORY
	case m&fs.ModeSymlink != 0:
		return guestv1.FileType_FILE_TYPE_SYMLINK
	case m.IsRegular():
		return guestv1.FileType_FILE_TYPE_FILE
	}
	return guestv1.FileType_FILE_TYPE_UNSPECIFIED
}

func (d *describer) owner(id uint32) string {
	name, ok := d.users[id]
	if !ok {
		name = strconv.FormatUint(uint64(id), 10)
		if u, err := user.LookupId(name); err == nil {
			name = valid(u.Username)
		}
		d.users[id] = name
	}
	return name
}

func (d *describer) group(id uint32) string {
	name, ok := d.groups[id]
	if !ok {
		name = strconv.FormatUint(uint64(id), 10)
		if g, err := user.LookupGroupId(name); err == nil {
			name = valid(g.Name)
		}
		d.groups[id] = name
	}
	return name
}

const (
	xattrPrefix = "user.e2b."
	maxXattrs   = 64 << 10 // bytes of attribute names that are looked at, the kernel's limit
)

// metadata reads the extended attributes that uploads set. Errors read as none:
// many file systems have no attributes.
func metadata(path string) map[string]string {
	keys := xattrKeys(func(buf []byte) (int, error) { return unix.Llistxattr(path, buf) })
	if len(keys) == 0 {
		return nil
	}
	m := make(map[string]string, len(keys))
	buf := make([]byte, maxMetadata)
	for _, key := range keys {
		n, err := unix.Lgetxattr(path, xattrPrefix+key, buf)
		if err != nil || valid(key) != key || valid(string(buf[:n])) != string(buf[:n]) {
			continue
		}
		m[key] = string(buf[:n])
	}
	return m
}

// xattrKeys names the attributes below xattrPrefix, without it.
func xattrKeys(list func(buf []byte) (int, error)) []string {
	size, err := list(nil)
	if err != nil || size == 0 || size > maxXattrs {
		return nil
	}
	buf := make([]byte, size)
	n, err := list(buf)
	if err != nil {
		return nil
	}
	var keys []string
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if key, ok := strings.CutPrefix(name, xattrPrefix); ok && key != "" {
			keys = append(keys, key)
		}
	}
	return keys
}
