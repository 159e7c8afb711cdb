package shelf_test

import (
	"context"
	"math"
	"slices"
	"testing"

	"hearth/internal/blob"
	"hearth/internal/blob/blobtest"
	"hearth/internal/blob/chunkblob"
	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// TestWeigh: what snapshots take is what their store grew by.
func TestWeigh(t *testing.T) {
	p := newPackedShelf(t, blobtest.TempDir(t), 0)
	weigh := func(id hearth.SnapshotID, over ...hearth.SnapshotID) (whole, added int64) {
		t.Helper()
		whole, added, err := p.shelf.Weigh(t.Context(), id, over...)
		if err != nil {
			t.Fatal(err)
		}
		return whole, added
	}
	plain := func(id hearth.SnapshotID) int64 {
		whole, added := weigh(id)
		if whole != added || whole < 1<<20 {
			t.Errorf("of %s, which is not packed, %d of %d bytes are on disk", id, added, whole)
		}
		return whole
	}
	pages := blobtest.Noise(1<<20, 1)
	p.put("s1", "", pages)
	size := plain("s1")
	p.tidy()
	first := p.stored()
	// The next one is its parent and a tenth of that more, the one after it something else.
	p.put("s2", "s1", append(slices.Clone(pages), blobtest.Noise(100_000, 2)...))
	plain("s2")
	if _, added := weigh("s2", "s1"); added < size {
		t.Errorf("%d bytes of what is not packed lie in the archive", size-added)
	}
	p.tidy()
	grown := p.stored() - first
	p.put("s3", "s2", blobtest.Noise(1<<20, 3))
	p.tidy()
	const index = 20_000 // bytes of an index at most, and what else is not a chunk
	near := func(what string, got, want int64) {
		t.Helper()
		if got > want || got < want-index {
			t.Errorf("%s: %d bytes, the store grew by %d", what, got, want)
		}
	}
	for range 2 { // the second time from memory
		whole, added := weigh("s1")
		if whole != size {
			t.Errorf("the first is %d bytes, was %d", whole, size)
		}
		near("the first", added, first)
		_, added = weigh("s2", "s1", "none", "")
		near("the second over the first", added, grown)
		_, added = weigh("s2")
		near("the second", added, first+grown)
		_, added = weigh("s3", "s2")
		near("the third over the second", added, p.stored()-first-grown)
		if _, added = weigh("s1", "s2"); added > 64<<10 { // its last chunk ends where the second goes on
			t.Errorf("%d bytes of the first are not in the second", added)
		}
	}
	if err := p.shelf.Remove(t.Context(), "s1"); err != nil {
		t.Fatal(err)
	}
	for _, gone := range []hearth.SnapshotID{"s1", "none", ""} {
		if _, _, err := p.shelf.Weigh(t.Context(), gone); hearth.KindOf(err) != hearth.NotFound {
			t.Errorf("%q: %v", gone, err)
		}
	}
	_, added := weigh("s2", "s1")
	near("the second, now that the first is gone", added, first+grown)
}

// TestWeighLayers: of what a snapshot refers to, that counts which its parent does
// not refer to as well.
func TestWeighLayers(t *testing.T) {
	p := newPackedShelf(t, blobtest.TempDir(t), 1<<30)
	put := func(id, base hearth.SnapshotID, seed uint64) int64 {
		t.Helper()
		c := checkpoint(t, map[string]string{"pages": string(blobtest.Noise(40_000, seed))})
		if base != "" {
			c.Base = &driver.Checkpoint{Dir: "/laid/" + string(base)}
		}
		snap, err := p.shelf.Put(t.Context(), "o", hearth.Snapshot{ID: id, Parent: base}, c)
		if err != nil {
			t.Fatal(err)
		}
		return snap.Bytes()
	}
	one := put("s1", "", 1) + put("s2", "s1", 2) + put("s3", "s2", 3) + put("s4", "s1", 4)
	one /= 4
	for _, c := range []struct {
		id          hearth.SnapshotID
		over        []hearth.SnapshotID
		whole, adds int64
	}{
		{"s1", nil, 1, 1}, {"s3", nil, 3, 3}, {"s3", []hearth.SnapshotID{"s2"}, 3, 1}, {"s3", []hearth.SnapshotID{"s1"}, 3, 2},
		{"s3", []hearth.SnapshotID{"s4"}, 3, 2}, {"s4", []hearth.SnapshotID{"s3", "s1"}, 2, 1}, {"s1", []hearth.SnapshotID{"s3"}, 1, 0},
	} {
		whole, added, err := p.shelf.Weigh(t.Context(), c.id, c.over...)
		if err != nil || whole != c.whole*one || added != c.adds*one {
			t.Errorf("%s over %s: %d, %d, %v; want %d and %d times %d", c.id, c.over, whole, added, err, c.whole, c.adds, one)
		}
	}
}

// scales is an archive that counts what it weighs.
type scales struct {
	blob.Archive
	weighed int
	then    func() // not nil: runs once, when something was weighed and is not yet told
}

func (s *scales) Weigh(ctx context.Context, files, beside []string) (int64, error) {
	n, err := s.Archive.Weigh(ctx, files, beside)
	s.weighed++
	if then := s.then; then != nil {
		s.then = nil
		then()
	}
	return n, err
}

// TestWeighWhatIsPackedAgain: what a snapshot adds is remembered, but not when it was
// damaged and shares nothing any more since it was packed again, be that after it was
// weighed or while it is.
func TestWeighWhatIsPackedAgain(t *testing.T) {
	for _, meanwhile := range []string{"after", "while"} {
		t.Run(meanwhile, func(t *testing.T) {
			p := newPackedShelf(t, blobtest.TempDir(t), 1<<30)
			a, err := chunkblob.New(p.packs, p.packs.Temp(), nil)
			must(t, err)
			s := &scales{Archive: a}
			p.with(s, 1<<30)
			pages := blobtest.Noise(1<<20, 1)
			p.put("s1", "", pages)
			p.tidy()
			p.put("s2", "s1", append(slices.Clone(pages), blobtest.Noise(100_000, 2)...))
			p.tidy()
			again := func() {
				p.spoil()
				if _, err := p.shelf.MakeRoom(t.Context(), math.MaxInt64); hearth.KindOf(err) != hearth.FailedPrecondition {
					t.Fatalf("damaged packs: %v", err)
				}
				p.tidy()
			}
			if meanwhile == "while" {
				s.then = again
			}
			added := func() int64 {
				t.Helper()
				_, n, err := p.shelf.Weigh(t.Context(), "s2", "s1")
				must(t, err)
				return n
			}
			if n := added(); n > 300_000 {
				t.Fatalf("100,000 new bytes take %d", n)
			}
			if meanwhile == "after" {
				p.put("s3", "", blobtest.Noise(1000, 3))
				p.tidy() // packs what has no part in it
				if added(); s.weighed != 1 {
					t.Errorf("weighed %d times, not once", s.weighed)
				}
				again()
			}
			for range 2 { // the second time from memory
				if n := added(); n < 1<<20 {
					t.Errorf("packed again, without what it shared, it takes %d bytes", n)
				}
			}
			if s.weighed != 2 {
				t.Errorf("weighed %d times, not twice", s.weighed)
			}
		})
	}
}
