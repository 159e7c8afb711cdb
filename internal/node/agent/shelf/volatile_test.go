package shelf_test

import (
	"bytes"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"hearth/internal/blob/apart"
	"hearth/internal/blob/blobtest"
	"hearth/internal/blob/chunkblob"
	"hearth/internal/blob/fileblob"
	"hearth/internal/hearth"
	"hearth/internal/node/agent/shelf"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// sealed is a shelf of a disk whose plain files are in memory.
func sealed(t *testing.T, disk, memory string) *shelf.Shelf {
	t.Helper()
	open := func(elem ...string) *fileblob.Store {
		s, err := fileblob.Open(filepath.Join(elem...))
		must(t, err)
		return s
	}
	key, err := chunkblob.NewKey(bytes.Repeat([]byte{7}, 32))
	must(t, err)
	packs := open(disk, "packs")
	archive, err := chunkblob.New(packs, packs.Temp(), key)
	must(t, err)
	return shelf.New(apart.New(open(disk, "blobs"), open(memory, "blobs"), shelf.Volatile)).
		WithArchive(shelf.Packing{Archive: archive, Cache: 1 << 30, AtOnce: true, Log: slog.New(slog.DiscardHandler)})
}

// TestMemoryIsLost: what Put has returned is there when all that was in memory is
// gone, and the disk has nothing that can be read without the key.
func TestMemoryIsLost(t *testing.T) {
	ctx, disk := t.Context(), t.TempDir()
	secret := bytes.Repeat([]byte("of the sandbox alone; "), 1000)
	memory := blobtest.TempDir(t)
	s := sealed(t, disk, memory)
	kept, err := s.Put(ctx, "sandbox", hearth.Snapshot{ID: "first"}, checkpoint(t, map[string]string{"memory": string(secret)}))
	must(t, err)
	must(t, s.Annotate(ctx, kept.ID, "inventory", secret))
	must(t, s.Tidy(ctx)) // nothing is to be done, and nothing is garbage
	must(t, filepath.WalkDir(disk, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		if bytes.Contains(raw, secret[:40]) {
			t.Errorf("%s is plain", path)
		}
		return err
	}))
	s = sealed(t, disk, blobtest.TempDir(t))
	found, owner, err := s.Find(ctx, kept.ID)
	if err != nil || owner != "sandbox" {
		t.Fatal(owner, err)
	}
	must(t, s.Readable(ctx, kept.ID))
	c, err := s.Lay(ctx, found, blobtest.TempDir(t))
	must(t, err)
	if got, err := os.ReadFile(filepath.Join(c.Dir, "memory")); !bytes.Equal(got, secret) {
		t.Errorf("%d bytes came back: %v", len(got), err)
	}
	if _, err := s.Note(ctx, kept.ID, "inventory"); hearth.KindOf(err) != hearth.NotFound {
		t.Errorf("the note: %v", err)
	}
}

func TestVolatile(t *testing.T) {
	for key, want := range map[string]bool{
		"snapshots/s1/memory": true, "snapshots/s1/note-inventory": true, "snapshots/s1/control-secret": true,
		"snapshots/s1/manifest.json": false, "snapshots/s1/packed": false, "snapshots/s1/removed": false, "layers/abc": false, "snapshots/s1": false,
	} {
		if got := shelf.Volatile(key); got != want {
			t.Errorf("%s: %v", key, got)
		}
	}
}
