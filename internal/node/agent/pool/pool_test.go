package pool_test

import (
	"testing"
	"time"

	"hearth/internal/hearth"
	"hearth/internal/node/agent/pool"
)

type member struct {
	of   hearth.SnapshotID
	size int64
}

func (m *member) Held() int64                 { return m.size }
func (m *member) Resources() hearth.Resources { return small }
func (m *member) Snapshot() hearth.SnapshotID { return m.of }

var (
	small = hearth.Resources{VCPUs: 1, MemoryMiB: 64, DiskMiB: 64}
	base  = hearth.Build{ID: "base", Layers: []string{"a", "b"}, Resources: small}
	start = time.Unix(1e9, 0)
)

func warm(id hearth.SnapshotID) hearth.Snapshot {
	return hearth.Snapshot{ID: id, Driver: "d", Memory: true}
}

func all(string) bool { return true }

// TestOneTierForPoolsOfOneShape: two warm snapshots over the same layers share their blanks.
func TestOneTierForPoolsOfOneShape(t *testing.T) {
	s := pool.New[*member](2)
	s.Keep(base, warm("x"), pool.Bounds{})
	s.Keep(base, warm("y"), pool.Bounds{})
	for range 2 {
		of, b, _, found := s.NextBlank(start, 1<<30, all)
		if !found || b.Layers[1] != "b" {
			t.Fatalf("%v %v %v", of, b, found)
		}
		if !s.FilledBlank(of, &member{size: 1}) {
			t.Fatal("not wanted")
		}
	}
	if _, _, _, found := s.NextBlank(start, 1<<30, all); found || s.CountBlanks() != 2 {
		t.Fatalf("%d blanks, and another is wanted: %t", s.CountBlanks(), found)
	}
	other := base
	other.Layers = []string{"a,b"} // not the same list
	if _, found := s.ClaimBlank(pool.ShapeOf(other, warm("z"), small), start); found {
		t.Fatal("another list of layers has the same shape")
	}
	if _, found := s.ClaimBlank(pool.ShapeOf(base, warm("z"), small), start); !found {
		t.Fatal("no blank for a third snapshot over the same layers")
	}
}

func TestBlanksNeedAnAbleDriver(t *testing.T) {
	s := pool.New[*member](1)
	disk := warm("y")
	disk.Memory = false
	s.Keep(base, disk, pool.Bounds{})
	if _, _, _, found := s.NextBlank(start, 1<<30, all); found {
		t.Error("a blank for a snapshot that boots")
	}
	s.Keep(base, warm("x"), pool.Bounds{})
	if _, _, _, found := s.NextBlank(start, 1<<30, func(string) bool { return false }); found {
		t.Error("a blank of a driver that makes none")
	}
}

// TestBlankOfAPoolThatIsGone: a blank that comes too late is not kept.
func TestBlankOfAPoolThatIsGone(t *testing.T) {
	s := pool.New[*member](1)
	s.Keep(base, warm("x"), pool.Bounds{})
	of, _, _, _ := s.NextBlank(start, 1<<30, all)
	s.Forget()
	s.Trim(start)
	if s.FilledBlank(of, &member{size: 1}) {
		t.Error("kept")
	}
	if gone := s.Trim(start); len(gone) != 0 || s.Held() != 0 || s.Filling() != 0 {
		t.Errorf("left: %v, %d bytes, %d fills", gone, s.Held(), s.Filling())
	}
}

// TestEvictTakesBlanksFirst: then of the largest pool, and nothing is made again at once.
func TestEvictTakesBlanksFirst(t *testing.T) {
	s := pool.New[*member](1)
	s.Keep(base, warm("x"), pool.Bounds{Floor: 1, Ceiling: 1})
	s.Keep(base, warm("y"), pool.Bounds{Floor: 2, Ceiling: 2})
	for p, _ := s.Next(start, 1<<30); p != nil; p, _ = s.Next(start, 1<<30) {
		s.Filled(p, &member{of: p.Warm.ID, size: 8})
	}
	of, _, _, _ := s.NextBlank(start, 1<<30, all)
	s.FilledBlank(of, &member{size: 1})
	if s.Held() != 3*8+1 {
		t.Fatalf("%d bytes held", s.Held())
	}
	var got []hearth.SnapshotID
	for m, found := s.Evict(start); found; m, found = s.Evict(start) {
		got = append(got, m.of)
	}
	if len(got) != 4 || got[0] != "" || got[1] != "y" {
		t.Errorf("evicted in the order %q", got)
	}
	if p, wait := s.Next(start, 1<<30); p != nil || wait != 30*time.Second {
		t.Errorf("next %v in %s", p, wait)
	}
	if _, _, _, found := s.NextBlank(start, 1<<30, all); found {
		t.Error("a blank is made at once")
	}
}

// TestPoolsComeBeforeBlanks: no blank is made while any pool lacks a machine, and after
// an eviction none at once.
func TestPoolsComeBeforeBlanks(t *testing.T) {
	s := pool.New[*member](1)
	s.Keep(base, warm("x"), pool.Bounds{})
	s.Keep(base, warm("y"), pool.Bounds{Floor: 1, Ceiling: 1})
	if _, _, _, found := s.NextBlank(start, 1<<30, all); found {
		t.Error("a blank before the pool's machine")
	}
	p, _ := s.Next(start, 1<<30)
	s.Filled(p, &member{of: p.Warm.ID, size: 8})
	of, _, _, found := s.NextBlank(start, 1<<30, all)
	if !found {
		t.Fatal("no blank for pools that have what they want")
	}
	s.FilledBlank(of, &member{size: 1})
	s.Evict(start)
	if _, _, wait, found := s.NextBlank(start, 1<<30, all); found || wait != 30*time.Second {
		t.Errorf("after an eviction: next blank %t in %s", found, wait)
	}
}

// TestStartsInARowLeaveTimeToFill: a pool whose machines are taken five times a second never runs dry, and
// once it has what it wants, it is filled between the starts: neither beside what they are asked first, nor
// into the next.
func TestStartsInARowLeaveTimeToFill(t *testing.T) {
	const every, restore, first = 200 * time.Millisecond, 100 * time.Millisecond, 50 * time.Millisecond
	s := full(t, 4, 32)
	fills := 0
	var busy time.Time // until then a fill is under way
	for i := range 300 {
		now := start.Add(time.Duration(i+1) * every)
		s.Asked("x", now)
		if i > 100 && busy.After(now) {
			t.Fatalf("start %d: a fill goes on %s into it", i, busy.Sub(now))
		}
		if _, found := s.Claim("x", small, now); !found {
			t.Fatalf("start %d found none", i)
		}
		for at := later(now, busy); at.Before(now.Add(every)); {
			p, wait := s.Next(at, 1<<30)
			if p == nil && wait == 0 {
				break // it is full
			}
			if at = at.Add(wait); p == nil {
				continue
			}
			if i > 100 && at.Before(now.Add(first)) {
				t.Fatalf("start %d: a fill %s after it", i, at.Sub(now))
			}
			at = at.Add(restore)
			busy = at
			fills++
			s.Filled(p, &member{of: "x", size: 1})
		}
	}
	if fills < 300 {
		t.Errorf("%d fills for 300 starts", fills)
	}
}

// TestNoPoolStarvesBesideAnother: one that has a quarter of its floor comes to half of it, at least, however often
// another's machines are taken, as long as there is any time between.
func TestNoPoolStarvesBesideAnother(t *testing.T) {
	for _, every := range []time.Duration{50 * time.Millisecond, 100 * time.Millisecond, 140 * time.Millisecond} {
		const restore = 45 * time.Millisecond
		s := full(t, 4, 32)
		for range 3 {
			s.Claim("x", small, start)
		}
		s.Keep(base, warm("y"), pool.Bounds{Floor: 4, Ceiling: 32})
		busy := start
		for i := range int(time.Minute / every) {
			now := start.Add(time.Duration(i+1) * every)
			s.Asked("y", now)
			s.Claim("y", small, now)
			for at := later(now, busy); at.Before(now.Add(every)); {
				p, wait := s.Next(at, 1<<30)
				if p == nil && wait == 0 {
					break
				}
				if at = at.Add(wait); p == nil {
					continue
				}
				at = at.Add(restore)
				busy = at
				s.Filled(p, &member{of: p.Warm.ID, size: 1})
			}
		}
		if n := s.Ready(); n["x"] < 2 || n["y"] < 2 {
			t.Errorf("starts every %s: %v ready", every, n)
		}
	}
}

// TestBlanksBesideAPoolThatCannotBeFilled: the tier behind the pools is made all the same.
func TestBlanksBesideAPoolThatCannotBeFilled(t *testing.T) {
	s := pool.New[*member](2)
	s.Keep(base, warm("x"), pool.Bounds{Floor: 1, Ceiling: 1})
	p, _ := s.Next(start, 1<<30)
	if _, _, _, found := s.NextBlank(start, 1<<30, all); !found {
		t.Error("none while the last machine is being made")
	}
	s.Failed(p, start)
	if _, _, _, found := s.NextBlank(start, 1<<30, all); !found {
		t.Error("none while a fill that failed waits")
	}
	now := start.Add(time.Hour)
	if _, _, _, found := s.NextBlank(now, 1<<30, all); found {
		t.Error("one while a machine is wanted first")
	}
	s = pool.New[*member](2)
	s.Keep(base, warm("x"), pool.Bounds{Floor: 9, Ceiling: 9})
	if _, _, _, found := s.NextBlank(start, 32<<20, all); !found { // too little for a machine
		t.Error("none where the pools have no room")
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// TestTheEmptierTheSooner: a pool waits less after a start the fewer machines it has left, and not at all without any.
func TestTheEmptierTheSooner(t *testing.T) {
	s := full(t, 4, 4)
	now := start.Add(time.Minute)
	last := time.Hour
	for ready := 3; ready >= 0; ready-- {
		s.Claim("x", small, now)
		p, wait := s.Next(now, 1<<30)
		if (p != nil) != (ready == 0) || wait > last || ready == 1 && wait == last {
			t.Errorf("%d of 4 ready: fills %t, wait %s after %s", ready, p != nil, wait, last)
		}
		last = wait
	}
}

// full returns a set with one pool that has its floor.
func full(t *testing.T, floor, ceiling int) *pool.Set[*member] {
	t.Helper()
	s := pool.New[*member](0)
	s.Keep(base, warm("x"), pool.Bounds{Floor: floor, Ceiling: ceiling})
	for range floor {
		p, _ := s.Next(start, 1<<30)
		if p == nil {
			t.Fatal("nothing to fill")
		}
		s.Filled(p, &member{of: "x", size: 1})
	}
	return s
}
