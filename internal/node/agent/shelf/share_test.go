package shelf_test

import (
	"bytes"
	"context"
	"slices"
	"testing"
	"time"

	"hearth/internal/blob"
	"hearth/internal/blob/blobtest"
	"hearth/internal/hearth"
)

// putOf puts a snapshot of a sandbox that was taken so many seconds after others.
func (p *packed) putOf(owner hearth.SandboxID, id, parent hearth.SnapshotID, at int64, pages []byte) *hearth.Snapshot {
	p.t.Helper()
	snap, err := p.shelf.Put(p.t.Context(), owner, hearth.Snapshot{ID: id, Parent: parent, Created: time.Unix(at, 0)},
		checkpoint(p.t, map[string]string{"pages": string(pages)}))
	if err != nil {
		p.t.Fatal(err)
	}
	return snap
}

// grown is how many bytes the archive grew by.
func (p *packed) grown(by func()) int64 {
	p.t.Helper()
	before := p.stored()
	by()
	return p.stored() - before
}

// A MiB that a sandbox wrote after it was restored is in all of its snapshots, and
// stored once, whether they are packed in the background or at once and encrypted.
func TestASandboxSharesWithItself(t *testing.T) {
	for name, key := range map[string][]byte{"plain": nil, "encrypted at once": bytes.Repeat([]byte{7}, 32)} {
		t.Run(name, func(t *testing.T) {
			p := newPackedShelf(t, blobtest.TempDir(t), 1<<30)
			if key != nil {
				p.reopen(1<<30, key)
				p.atOnce(nil)
			}
			template := blobtest.Noise(256<<10, 1)
			own := append(slices.Clone(template), blobtest.Noise(1<<20, 2)...)
			more := func(seed uint64) []byte { return append(slices.Clone(own), blobtest.Noise(4096, seed)...) }
			put := func(owner hearth.SandboxID, id hearth.SnapshotID, at int64, pages []byte) int64 {
				return p.grown(func() {
					p.putOf(owner, id, "warm", at, pages)
					p.tidy()
				})
			}
			put("build", "warm", 1, template)
			if n := put("a", "a1", 2, more(3)); n < 1<<20 {
				t.Fatalf("a new MiB takes %d bytes", n)
			}
			if n := put("a", "a2", 3, more(4)); n > 100_000 {
				t.Errorf("what its sandbox's snapshot has already takes %d bytes", n)
			}
			if n := put("b", "b1", 4, more(5)); n < 1<<20 {
				t.Errorf("of another sandbox only %d bytes are stored", n)
			}
			if _, added, err := p.shelf.Weigh(t.Context(), "a2", "a1"); err != nil || added > 100_000 {
				t.Errorf("the second adds %d bytes to the first, %v", added, err)
			}
			must(t, p.shelf.Remove(t.Context(), "a1"))
			p.tidy()
			a3 := p.putOf("a", "a3", "warm", 5, more(6))
			if n := p.grown(p.tidy); n > 100_000 {
				t.Errorf("after the first was removed the third takes %d bytes", n)
			}
			must(t, p.shelf.Remove(t.Context(), "a2"))
			p.tidy()
			if _, err := p.shelf.MakeRoom(t.Context(), 1<<30); err != nil || p.has("a3") {
				t.Fatalf("the archive was not seen to have the third: %v", err)
			}
			if got, err := p.lay("m", a3); err != nil || got != string(more(6)) {
				t.Errorf("the third is %d other bytes without the others, %v", len(got), err)
			}
			p.release("m")
			must(t, p.shelf.Remove(t.Context(), "a3"))
			p.tidy()
			if n := put("a", "a4", 6, more(7)); n < 1<<20 {
				t.Errorf("when all others are gone the fourth takes %d bytes", n)
			}
		})
	}
}

// Snapshots of nobody in particular share with their parents alone.
func TestNobodySharesWithNobody(t *testing.T) {
	p := newPackedShelf(t, blobtest.TempDir(t), 1<<30)
	pages := blobtest.Noise(1<<20, 1)
	for n, id := range []hearth.SnapshotID{"s1", "s2"} {
		if grew := p.grown(func() { p.putOf("", id, "", int64(n), append(pages, byte(n))); p.tidy() }); grew < 1<<20 {
			t.Errorf("%s takes %d bytes", id, grew)
		}
	}
}

// raced is an archive in which something happens between the choice of what to
// share with and the packing.
type raced struct {
	blob.Archive
	meanwhile func()
}

func (r *raced) Pack(ctx context.Context, files []blob.Source, like []string) (blob.Packed, error) {
	if do := r.meanwhile; do != nil {
		r.meanwhile = nil
		do()
	}
	return r.Archive.Pack(ctx, files, like)
}

// What was to be shared with is removed and collected before it is: the snapshot is
// whole all the same.
func TestWhatIsSharedWithGoes(t *testing.T) {
	p := newPackedShelf(t, blobtest.TempDir(t), 0)
	r := &raced{}
	p.atOnce(func(a blob.Archive) blob.Archive { r.Archive = a; return r })
	own := blobtest.Noise(1<<20, 1)
	p.putOf("a", "a1", "", 1, own)
	r.meanwhile = func() {
		must(t, p.shelf.Remove(t.Context(), "a1"))
		_, err := r.Collect(t.Context(), func(string) bool { return false })
		must(t, err)
	}
	a2 := p.putOf("a", "a2", "", 2, append(own, 1))
	p.tidy()
	if p.has("a2") {
		t.Fatal("the archive was not seen to have it")
	}
	if got, err := p.lay("m", a2); err != nil || got != string(append(own, 1)) {
		t.Errorf("laid %d bytes, %v", len(got), err)
	}
}

// Of all that a sandbox has the newest is shared with: it has what came last, too.
func TestTheNewestIsSharedWith(t *testing.T) {
	p := newPackedShelf(t, blobtest.TempDir(t), 1<<30)
	var pages []byte
	for n, id := range []hearth.SnapshotID{"c", "a", "d", "b"} { // in this order, whatever they are called
		pages = append(pages, blobtest.Noise(500_000, uint64(n))...)
		p.putOf("o", id, "", int64(n), pages)
		if grew := p.grown(p.tidy); grew > 600_000 {
			t.Errorf("%s takes %d bytes for 500,000 new ones", id, grew)
		}
	}
}
