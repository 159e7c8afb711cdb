package shelf_test

import (
	"os"
	"path/filepath"
	"testing"

	"hearth/internal/blob/blobtest"
	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// TestNotes go with their snapshot, and with its plain files; a restore needs none.
func TestNotes(t *testing.T) {
	p := newPackedShelf(t, blobtest.TempDir(t), 0)
	ctx := t.Context()
	pages := blobtest.Noise(100_000, 1)
	snap := p.put("s1", "", pages)
	if err := p.shelf.Annotate(ctx, "s9", "x", nil); hearth.KindOf(err) != hearth.NotFound {
		t.Errorf("a note on nothing: %v", err)
	}
	for _, text := range []string{"first", "second"} {
		if err := p.shelf.Annotate(ctx, "s1", "x", []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := p.shelf.Note(ctx, "s1", "x"); err != nil || string(got) != text {
			t.Errorf("%q, %v; want %q", got, err, text)
		}
	}
	p.reopen(0, nil)
	if got, err := p.shelf.Note(ctx, "s1", "x"); err != nil || string(got) != "second" {
		t.Errorf("after a restart: %q, %v", got, err)
	}
	p.tidy() // packs, and evicts
	if _, err := p.shelf.Note(ctx, "s1", "x"); p.has("s1") || hearth.KindOf(err) != hearth.NotFound {
		t.Errorf("the note of what was evicted: %v", err)
	}
	if got, err := p.lay("m", snap); err != nil || got != string(pages) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := p.shelf.Annotate(ctx, "s1", "x", []byte("third")); err != nil {
		t.Fatal(err)
	}
	if err := p.shelf.Remove(ctx, "s1"); err != nil {
		t.Fatal(err)
	}
	p.release("m")
	for info := range p.plain.List(ctx, "") {
		t.Errorf("left: %s", info.Key)
	}
	c := checkpoint(t, map[string]string{"note-x": "a driver's file by that name"})
	if _, err := p.shelf.Put(ctx, "o", hearth.Snapshot{ID: "s2"}, c); err == nil {
		t.Error("a driver's file can be taken for a note")
	}
}

// TestHolesAreNotCounted in what a file occupies.
func TestHolesAreNotCounted(t *testing.T) {
	p := newPackedShelf(t, blobtest.TempDir(t), 1<<30)
	c := &driver.Checkpoint{Driver: "fake", Key: "k", Dir: t.TempDir(), Files: []string{"memory"}}
	f, err := os.Create(filepath.Join(c.Dir, "memory"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(blobtest.Noise(64<<10, 1), 16<<20)
	if err != nil || f.Sync() != nil || f.Close() != nil {
		t.Fatal(err)
	}
	snap, err := p.shelf.Put(t.Context(), "o", hearth.Snapshot{ID: "s1"}, c)
	if err != nil {
		t.Fatal(err)
	}
	if whole := snap.Files[0].Bytes; whole != 16<<20+64<<10 || snap.Bytes() < 64<<10 || snap.Bytes() > 1<<20 {
		t.Errorf("%d of %d bytes", snap.Bytes(), whole)
	}
}
