package shelf_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"hearth/internal/blob/blobtest"
	"hearth/internal/blob/chunkblob"
	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// layPacked lays a snapshot for a driver that takes its pages packed, too.
func (p *packed) layPacked(snap *hearth.Snapshot) *driver.Checkpoint {
	p.t.Helper()
	c, err := p.shelf.LayPacked(p.t.Context(), snap, p.t.TempDir(), "pages")
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}

// borrowed reads a packed file as a pager does.
func borrowed(t *testing.T, l driver.Packed) []byte {
	t.Helper()
	layout, files, err := l.Lend(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := chunkblob.Borrow(layout, files)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if b.Size() != l.Size() {
		t.Errorf("%d bytes, want %d", b.Size(), l.Size())
	}
	raw, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// What the archive alone has is lent to the first machine, and unpacked for the
// second; what is there as a plain file is never lent.
func TestPackedFileIsLentOnce(t *testing.T) {
	for name, key := range map[string][]byte{"plain": nil, "encrypted": bytes.Repeat([]byte{3}, chunkblob.KeyBytes)} {
		t.Run(name, func(t *testing.T) {
			p := newPackedShelf(t, blobtest.TempDir(t), 0)
			p.reopen(0, key)
			pages := blobtest.Noise(300_000, 1)
			snap := p.put("s1", "", pages)
			if err := p.shelf.Hold(t.Context(), "m", "s1"); err != nil {
				t.Fatal(err)
			}
			if c := p.layPacked(snap); len(c.Packed) != 0 {
				t.Errorf("a plain file is lent: %v", c.Packed)
			}
			p.release("m")
			p.tidy()
			if p.has("s1") {
				t.Fatal("the plain file is still there")
			}
			if err := p.shelf.Hold(t.Context(), "m", "s1"); err != nil {
				t.Fatal(err)
			}
			c := p.layPacked(snap)
			if c.Packed["pages"] == nil || len(c.Files) != 1 {
				t.Fatalf("%+v is not lent", c)
			}
			if _, err := os.Lstat(filepath.Join(c.Dir, "pages")); !os.IsNotExist(err) || p.has("s1") {
				t.Errorf("it was unpacked: %v", err)
			}
			if got := borrowed(t, c.Packed["pages"]); !bytes.Equal(got, pages) {
				t.Error("what is lent is not what was put")
			}
			c = p.layPacked(snap)
			raw, err := os.ReadFile(filepath.Join(c.Dir, "pages"))
			if len(c.Packed) != 0 || err != nil || !bytes.Equal(raw, pages) {
				t.Errorf("the second time: %v, %v", c.Packed, err)
			}
			p.release("m")
			p.tidy() // and once more, when it has gone again
			if err := p.shelf.Hold(t.Context(), "m", "s1"); err != nil {
				t.Fatal(err)
			}
			if c = p.layPacked(snap); c.Packed["pages"] == nil {
				t.Error("it is not lent any more")
			}
		})
	}
}

// What cannot be lent is unpacked, which says what is wrong.
func TestDamagedFileIsNotLent(t *testing.T) {
	p := newPackedShelf(t, blobtest.TempDir(t), 0)
	snap := p.put("s1", "", blobtest.Noise(300_000, 1))
	p.tidy()
	if err := p.shelf.Hold(t.Context(), "m", "s1"); err != nil {
		t.Fatal(err)
	}
	for info := range p.packs.List(t.Context(), "packs/") {
		if err := p.packs.Delete(t.Context(), info.Key); err != nil {
			t.Fatal(err)
		}
	}
	if c, err := p.shelf.LayPacked(t.Context(), snap, t.TempDir(), "pages"); err == nil || hearth.KindOf(err) != hearth.FailedPrecondition {
		t.Errorf("%+v, %v", c, err)
	}
}
