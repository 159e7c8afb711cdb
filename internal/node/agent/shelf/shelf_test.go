package shelf_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"hearth/internal/blob/fileblob"
	"hearth/internal/driver"
	"hearth/internal/hearth"
	"hearth/internal/node/agent/shelf"
)

// checkpoint writes files as a driver does.
func checkpoint(t *testing.T, files map[string]string) *driver.Checkpoint {
	c := &driver.Checkpoint{Driver: "fake", Key: "k", Dir: t.TempDir()}
	for name, content := range files {
		c.Files = append(c.Files, name)
		if filepath.Base(name) != name || name == ".." {
			continue // only named
		}
		if err := os.WriteFile(filepath.Join(c.Dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func newShelf(t *testing.T) (*shelf.Shelf, *fileblob.Store) {
	store, err := fileblob.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return shelf.New(store), store
}

func TestPutFindLayRemove(t *testing.T) {
	s, store := newShelf(t)
	c := checkpoint(t, map[string]string{"pages.img": "pages", "state.img": "state"})
	put, err := s.Put(t.Context(), "owner", hearth.Snapshot{ID: "s1", Build: "b"}, c)
	if err != nil {
		t.Fatal(err)
	}
	found, owner, err := s.Find(t.Context(), "s1")
	if err != nil || owner != "owner" || found.Build != "b" || len(found.Files) != 2 || found.Driver != "fake" {
		t.Fatalf("Find: %+v, %s, %v", found, owner, err)
	}
	dir := t.TempDir()
	laid, err := s.Lay(t.Context(), put, dir)
	if err != nil || laid.Dir != filepath.Join(dir, "s1") || laid.Key != "k" {
		t.Fatalf("Lay: %+v, %v", laid, err)
	}
	raw, err := os.ReadFile(filepath.Join(laid.Dir, "pages.img"))
	if err != nil || string(raw) != "pages" {
		t.Fatalf("pages.img: %q, %v", raw, err)
	}
	for range 2 {
		if err := s.Remove(t.Context(), "s1"); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := s.Find(t.Context(), "s1"); hearth.KindOf(err) != hearth.NotFound {
		t.Fatalf("Find after Remove: %v", err)
	}
	for info := range store.List(t.Context(), "") {
		t.Errorf("left: %s", info.Key)
	}
	if _, err := os.ReadFile(filepath.Join(laid.Dir, "state.img")); err != nil {
		t.Fatalf("what was laid before went with the snapshot: %v", err)
	}
}

func TestNamesWithPathsAreRefused(t *testing.T) {
	s, store := newShelf(t)
	for _, name := range []string{"../x", "a/b", "..", "", "manifest.json", "removed"} {
		if _, err := s.Put(t.Context(), "o", hearth.Snapshot{ID: "s1"}, checkpoint(t, map[string]string{name: ""})); err == nil {
			t.Errorf("Put took a file %q", name)
		}
		if name == "manifest.json" || name == "removed" {
			continue
		}
		snap := hearth.Snapshot{ID: hearth.NewSnapshotID(), Files: []hearth.File{{Name: name}}}
		plant(t, store, snap)
		if _, err := s.Lay(t.Context(), &snap, t.TempDir()); hearth.KindOf(err) != hearth.FailedPrecondition {
			t.Errorf("Lay of a file %q: %v", name, err)
		}
	}
}

// plant writes a manifest as the first version of the format has it.
func plant(t *testing.T, store *fileblob.Store, snap hearth.Snapshot) {
	t.Helper()
	raw, err := json.Marshal(map[string]any{"sandbox": "o", "snapshot": snap})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Put(t.Context(), "snapshots/"+string(snap.ID)+"/manifest.json", bytes.NewReader(raw), int64(len(raw))); err != nil {
		t.Fatal(err)
	}
}

func TestSwappedFilesAreFound(t *testing.T) {
	s, store := newShelf(t)
	put, err := s.Put(t.Context(), "o", hearth.Snapshot{ID: "s1"}, checkpoint(t, map[string]string{"a": "same size", "b": "size same"}))
	if err != nil {
		t.Fatal(err)
	}
	put.Files[0].Blob, put.Files[1].Blob = put.Files[1].Blob, put.Files[0].Blob
	for _, on := range []*shelf.Shelf{s, shelf.New(store)} { // the one that wrote it, and another process
		if _, err := on.Lay(t.Context(), put, t.TempDir()); hearth.KindOf(err) != hearth.FailedPrecondition {
			t.Errorf("Lay of swapped files: %v", err)
		}
	}
}

func TestDiskErrorTellsAFullDisk(t *testing.T) {
	full := &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}
	for _, c := range []struct {
		err  error
		want hearth.Kind
	}{
		{full, hearth.ResourceExhausted},
		{hearth.Wrap(hearth.Internal, full, "driver"), hearth.ResourceExhausted},
		{hearth.Errorf(hearth.NotFound, "x"), hearth.NotFound},
		{errors.New("x"), hearth.Internal},
	} {
		if got := hearth.KindOf(shelf.DiskError(c.err, "m")); got != c.want {
			t.Errorf("%v: %s, want %s", c.err, got, c.want)
		}
	}
	if err := shelf.DiskError(context.Canceled, "m"); !errors.Is(err, context.Canceled) || shelf.DiskError(nil, "m") != nil {
		t.Errorf("got %v", err)
	}
}
