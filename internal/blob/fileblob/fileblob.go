// Package fileblob keeps blobs as files of one directory on this host.
//
// On disk: DIR/objects/KEY, mode 0400, with every "/" of the key written as "+",
// which no key has; and DIR/tmp, where objects grow. An object enters objects/
// by one link of a file that was synced before, so it is wholly there or not at
// all; what a crash leaves in tmp/ is removed at the next Open. One process owns
// the directory at a time.
package fileblob

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"hearth/internal/blob"
	"hearth/internal/hearth"
)

// Store is a blob.Local in a directory. Its methods are safe for concurrent use.
type Store struct {
	objects string
	tmp     string
}

var _ blob.Local = (*Store)(nil)

// View returns the store in dir for reading beside the process that owns it. It
// touches nothing.
func View(dir string) *Store {
	return &Store{objects: filepath.Join(dir, "objects"), tmp: filepath.Join(dir, "tmp")}
}

// Open makes the directory if need be, with mode 0700, and removes what a
// crash left half-written in it.
func Open(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, hearth.Wrap(hearth.InvalidArgument, err, "the blob directory is not usable")
	}
	s := &Store{objects: filepath.Join(dir, "objects"), tmp: filepath.Join(dir, "tmp")}
	for _, d := range []string{s.objects, s.tmp} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, hearth.Wrap(hearth.FailedPrecondition, err, "the blob directory %s cannot be made", dir)
		}
	}
	left, err := os.ReadDir(s.tmp)
	if err != nil {
		return nil, hearth.Wrap(hearth.FailedPrecondition, err, "the blob directory %s cannot be read", dir)
	}
	for _, e := range left {
		if err := os.RemoveAll(filepath.Join(s.tmp, e.Name())); err != nil {
			return nil, hearth.Wrap(hearth.FailedPrecondition, err, "the blob directory %s cannot be swept", dir)
		}
	}
	return s, syncDir(dir)
}

// Temp is a directory on the file system of the objects, for files that Adopt
// shall take. Open empties it.
func (s *Store) Temp() string { return s.tmp }

// file is the name of the object's file.
func (s *Store) file(key string) (string, error) {
	if err := blob.CheckKey(key); err != nil {
		return "", err
	}
	return filepath.Join(s.objects, strings.ReplaceAll(key, "/", "+")), nil
}

// Put implements blob.Store.
func (s *Store) Put(ctx context.Context, key string, r io.Reader, size int64) error {
	name, err := s.file(key)
	if err != nil {
		return err
	}
	if size < 0 {
		return hearth.Errorf(hearth.InvalidArgument, "blob %q: the size %d is negative", key, size)
	}
	if _, err := os.Lstat(name); err == nil {
		return nil
	}
	f, err := os.CreateTemp(s.tmp, "put-")
	if err != nil {
		return failed(err, key, "written")
	}
	defer os.Remove(f.Name())
	err = fill(ctx, f, key, r, size)
	if cerr := f.Close(); err == nil && cerr != nil {
		err = failed(cerr, key, "written")
	}
	if err != nil {
		return err
	}
	return s.enter(f.Name(), name, key)
}

// fill writes exactly size bytes of r and syncs them.
func fill(ctx context.Context, f *os.File, key string, r io.Reader, size int64) error {
	var src io.Reader = untilDone{ctx, r}
	if from, isFile := r.(*os.File); isFile {
		src = from // the kernel copies
	}
	n, err := io.CopyN(f, src, size)
	switch {
	case errors.Is(err, io.EOF):
		return hearth.Errorf(hearth.InvalidArgument, "blob %q: %d bytes came, %d were announced", key, n, size)
	case err != nil:
		return failed(err, key, "written")
	}
	var more [1]byte
	if n, _ := io.ReadFull(src, more[:]); n > 0 {
		return hearth.Errorf(hearth.InvalidArgument, "blob %q: more bytes came than the %d that were announced", key, size)
	}
	if err := f.Chmod(0o400); err != nil {
		return failed(err, key, "written")
	}
	if err := f.Sync(); err != nil {
		return failed(err, key, "written")
	}
	return nil
}

// enter makes a finished file an object. An object that is there already stays.
func (s *Store) enter(from, name, key string) error {
	if err := os.Link(from, name); err != nil && !errors.Is(err, fs.ErrExist) {
		return failed(err, key, "written")
	}
	return syncDir(s.objects)
}

// Open implements blob.Store.
func (s *Store) Open(_ context.Context, key string, off, n int64) (io.ReadCloser, error) {
	name, err := s.file(key)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, failed(err, key, "read")
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, failed(err, key, "read")
	}
	if n < 0 {
		n = info.Size() - off
	}
	if off < 0 || n < 0 || off > info.Size() || n > info.Size()-off {
		f.Close()
		return nil, hearth.Errorf(hearth.InvalidArgument, "blob %q has %d bytes: %d from %d are not there", key, info.Size(), n, off)
	}
	return section{io.NewSectionReader(f, off, n), f}, nil
}

// section reads a part of a file.
type section struct {
	*io.SectionReader
	io.Closer
}

// Stat implements blob.Store.
func (s *Store) Stat(_ context.Context, key string) (blob.Info, error) {
	name, err := s.file(key)
	if err != nil {
		return blob.Info{}, err
	}
	info, err := os.Lstat(name)
	if err != nil {
		return blob.Info{}, failed(err, key, "read")
	}
	return blob.Info{Key: key, Size: info.Size()}, nil
}

// Delete implements blob.Store. Readers of the object go on reading.
func (s *Store) Delete(_ context.Context, key string) error {
	name, err := s.file(key)
	if err != nil {
		return err
	}
	switch err := os.Remove(name); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return failed(err, key, "deleted")
	}
	return syncDir(s.objects)
}

// List implements blob.Store.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[blob.Info, error] {
	return func(yield func(blob.Info, error) bool) {
		entries, err := os.ReadDir(s.objects)
		if err != nil {
			yield(blob.Info{}, hearth.Wrap(hearth.Unavailable, err, "the blobs cannot be listed"))
			return
		}
		keys := make([]string, 0, len(entries))
		for _, e := range entries {
			if key := strings.ReplaceAll(e.Name(), "+", "/"); strings.HasPrefix(key, prefix) && blob.CheckKey(key) == nil {
				keys = append(keys, key)
			}
		}
		slices.Sort(keys)
		for _, key := range keys {
			if err := ctx.Err(); err != nil {
				yield(blob.Info{}, failed(err, key, "listed"))
				return
			}
			info, err := s.Stat(ctx, key)
			if hearth.KindOf(err) == hearth.NotFound && err != nil {
				continue // deleted meanwhile
			}
			if !yield(info, err) || err != nil {
				return
			}
		}
	}
}

// Path implements blob.Local.
func (s *Store) Path(ctx context.Context, key string) (string, error) {
	if _, err := s.Stat(ctx, key); err != nil {
		return "", err
	}
	return s.file(key)
}

// Adopt implements blob.Local: a hard link where both are on one file system, a
// copy elsewhere.
func (s *Store) Adopt(ctx context.Context, key, path string) error {
	name, err := s.file(key)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(name); err == nil {
		return nil
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return hearth.Wrap(hearth.InvalidArgument, err, "blob %q: the file to adopt cannot be opened", key)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return failed(err, key, "adopted")
	}
	if !info.Mode().IsRegular() {
		return hearth.Errorf(hearth.InvalidArgument, "blob %q: what is to be adopted is not a regular file", key)
	}
	if err := f.Chmod(0o400); err != nil {
		return failed(err, key, "adopted")
	}
	if err := f.Sync(); err != nil {
		return failed(err, key, "adopted")
	}
	switch err := s.enter(path, name, key); {
	case errors.Is(err, syscall.EXDEV), errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EMLINK), errors.Is(err, syscall.EOPNOTSUPP):
		return s.Put(ctx, key, f, info.Size())
	default:
		return err
	}
}

// untilDone is a reader that fails when its context has ended.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u untilDone) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(p)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return hearth.Wrap(hearth.Unavailable, err, "the blob directory cannot be synced")
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return hearth.Wrap(hearth.Unavailable, err, "the blob directory cannot be synced")
	}
	return nil
}

// failed gives an error of the file system its kind.
func failed(err error, key, verb string) error {
	if _, ours := errors.AsType[*hearth.Error](err); ours {
		return err
	}
	kind := hearth.Internal
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return hearth.Wrap(hearth.NotFound, err, "blob %q not found", key)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return hearth.Wrap(hearth.ResourceExhausted, err, "blob %q could not be %s: the disk is full", key, verb)
	case errors.Is(err, context.Canceled):
		kind = hearth.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		kind = hearth.DeadlineExceeded
	case errors.Is(err, syscall.EIO), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		kind = hearth.Unavailable
	}
	return hearth.Wrap(kind, err, "blob %q could not be %s", key, verb)
}
