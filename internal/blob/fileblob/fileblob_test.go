package fileblob_test

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"hearth/internal/blob"
	"hearth/internal/blob/blobtest"
	"hearth/internal/blob/fileblob"
	"hearth/internal/hearth"
)

func open(t *testing.T, dir string) *fileblob.Store {
	t.Helper()
	s, err := fileblob.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformance(t *testing.T) {
	blobtest.RunLocal(t, func(t *testing.T) blob.Local { return open(t, filepath.Join(t.TempDir(), "blobs")) })
}

// files lists everything below dir that is not a directory.
func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestOpenSweeps(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if err := s.Put(context.Background(), "a/b", strings.NewReader("x"), 1); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tmp", "put-123"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	if got := files(t, dir); len(got) != 1 {
		t.Errorf("files after a sweep: %q", got)
	}
	path, err := s.Path(context.Background(), "a/b")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o400 {
		t.Errorf("mode %v, want 0400", info.Mode())
	}
}

// small mounts a file system of one MiB.
func small(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("needs the right to mount: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestDiskFull(t *testing.T) {
	dir := small(t)
	s := open(t, filepath.Join(dir, "blobs"))
	const size = 4 << 20
	err := s.Put(context.Background(), "k", io.LimitReader(zeros{}, size), size)
	if hearth.KindOf(err) != hearth.ResourceExhausted {
		t.Errorf("error %v, want ResourceExhausted", err)
	}
	if got := files(t, dir); len(got) != 0 {
		t.Errorf("files after a full disk: %q", got)
	}
	if err := s.Put(context.Background(), "k", strings.NewReader("fits"), 4); err != nil {
		t.Error(err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestAdoptAcross adopts a file of another file system: it is copied.
func TestAdoptAcross(t *testing.T) {
	from := filepath.Join(small(t), "file")
	if err := os.WriteFile(from, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := open(t, dir)
	if err := s.Adopt(context.Background(), "k", from); err != nil {
		t.Fatal(err)
	}
	if got := files(t, dir); len(got) != 1 {
		t.Errorf("files: %q", got)
	}
	got, err := os.ReadFile(filepath.Join(dir, "objects", "k"))
	if err != nil || string(got) != "content" {
		t.Errorf("content %q (%v)", got, err)
	}
}

func TestAdoptLinks(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	from := filepath.Join(dir, "file")
	if err := os.WriteFile(from, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Adopt(context.Background(), "k", from); err != nil {
		t.Fatal(err)
	}
	a, err := os.Stat(from)
	if err != nil {
		t.Fatal(err)
	}
	path, err := s.Path(context.Background(), "k")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(a, b) {
		t.Error("the file was copied")
	}
}

func TestOpenErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := fileblob.Open(file); hearth.KindOf(err) != hearth.FailedPrecondition {
		t.Errorf("error %v, want FailedPrecondition", err)
	}
}
