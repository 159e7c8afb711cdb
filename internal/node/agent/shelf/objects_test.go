package shelf_test

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hearth/internal/blob"
	"hearth/internal/blob/blobtest"
	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// objects adds up what is there for snapshots alone, each object once, and names the plain files.
func (p *packed) objects(ids ...hearth.SnapshotID) (sum int64, plain []string) {
	p.t.Helper()
	of, err := p.shelf.Objects(p.t.Context(), ids)
	must(p.t, err)
	seen := map[string]bool{}
	for _, list := range of {
		for _, o := range list {
			if seen[o.Name] {
				continue
			}
			seen[o.Name] = true
			sum += o.Bytes
			if strings.HasPrefix(o.Name, "snapshots/") {
				plain = append(plain, strings.TrimPrefix(o.Name, "snapshots/"))
			}
		}
	}
	slices.Sort(plain)
	return sum, plain
}

func (p *packed) remove(ids ...hearth.SnapshotID) {
	p.t.Helper()
	for _, id := range ids {
		must(p.t, p.shelf.Remove(p.t.Context(), id))
	}
}

// TestObjectsOfPlainFiles: what is not packed is its plain files; what was removed
// and is still referred to counts, what is somebody else's does not.
func TestObjectsOfPlainFiles(t *testing.T) {
	p := newPackedShelf(t, blobtest.TempDir(t), 1<<30)
	p.young(time.Hour)
	put := func(id, on hearth.SnapshotID, file string) {
		t.Helper()
		c := checkpoint(t, map[string]string{"pages": file})
		if on != "" {
			c.Base = &driver.Checkpoint{Dir: "/laid/" + string(on)}
		}
		_, err := p.shelf.Put(t.Context(), "o", hearth.Snapshot{ID: id, Parent: on}, c)
		must(t, err)
	}
	put("warm", "", "w")
	put("paused", "warm", "pp")
	put("a", "paused", "aaa")
	put("b", "paused", "bbbb")
	put("c", "a", "c")
	for _, c := range []struct {
		remove hearth.SnapshotID
		of     []hearth.SnapshotID
		want   string
	}{
		{"", []hearth.SnapshotID{"a", "b"}, "b/pages"}, // c lies on a
		{"", []hearth.SnapshotID{"a", "b", "c", "nothing"}, "a/pages b/pages c/pages"},
		{"paused", []hearth.SnapshotID{"a", "b", "c"}, "a/pages b/pages c/pages paused/pages"},
		{"b", []hearth.SnapshotID{"b"}, ""},
		{"a", []hearth.SnapshotID{"c"}, "a/pages c/pages paused/pages"},
		{"c", []hearth.SnapshotID{"c"}, ""},
	} {
		if c.remove != "" {
			p.remove(c.remove)
		}
		if _, plain := p.objects(c.of...); strings.Join(plain, " ") != c.want {
			t.Errorf("%s without %q: %s, want %s", c.of, c.remove, plain, c.want)
		}
	}
}

// TestObjectsArePaidOnce: what is packed is what the archive frees when it goes.
func TestObjectsArePaidOnce(t *testing.T) {
	p := newPackedShelf(t, blobtest.TempDir(t), 1<<30)
	own := blobtest.Noise(1<<20, 1)
	step := func(n int64) {
		p.putOf("a", ids(n)[n-1], "", n, append(slices.Clone(own), blobtest.Noise(5000, uint64(n)+1)...))
	}
	p.putOf("x", "other", "", 0, blobtest.Noise(300_000, 99))
	for n := int64(1); n <= 4; n++ {
		step(n)
	}
	if sum, plain := p.objects(ids(4)...); sum < 4<<20 || len(plain) != 4 {
		t.Errorf("%d bytes of what is not packed: %s", sum, plain)
	}
	p.tidy()
	all, plain := p.objects(ids(4)...)
	if all > 1<<20+200_000 || all < 1<<20 || len(plain) > 0 {
		t.Errorf("%d bytes of what is packed, %s", all, plain)
	}
	one, _ := p.objects("s1")
	if one > 20_000 {
		t.Errorf("the first needs %d bytes that the others do not", one)
	}
	freed := -p.grown(func() { p.remove("s1"); p.tidy() })
	if freed != one {
		t.Errorf("%d bytes were freed, not %d", freed, one)
	}
	rest, _ := p.objects("s2", "s3", "s4")
	if rest != all-one {
		t.Errorf("%d bytes for the others, want %d", rest, all-one)
	}
	if freed := -p.grown(func() { p.remove("s2", "s3", "s4"); p.tidy() }); freed != rest {
		t.Errorf("%d bytes were freed, not %d", freed, rest)
	}
}

func ids(n int64) (list []hearth.SnapshotID) {
	for i := range n {
		list = append(list, hearth.SnapshotID("s"+string(rune('1'+i))))
	}
	return list
}

// TestObjectsOfADamagedIndex: what cannot be told counts as it lies there.
func TestObjectsOfADamagedIndex(t *testing.T) {
	p := newPackedShelf(t, blobtest.TempDir(t), 1<<30)
	s1 := p.put("s1", "", blobtest.Noise(100_000, 1))
	p.tidy()
	p.reopen(1<<30, nil) // knows no indexes
	must(t, p.packs.Delete(t.Context(), "files/"+s1.Files[0].SHA256))
	if sum, plain := p.objects("s1"); sum < 100_000 || !slices.Equal(plain, []string{"s1/pages"}) {
		t.Errorf("%d bytes: %s", sum, plain)
	}
}

// counted is an archive that counts what it packs, and may hold it up.
type counted struct {
	blob.Archive
	mu     sync.Mutex
	packs  map[string]int
	begin  chan string // not nil: told of each Pack
	goOn   chan struct{}
	refuse error
	during func() // not nil: runs while garbage is collected
}

func (c *counted) Collect(ctx context.Context, keep func(string) bool) (int64, error) {
	if c.during != nil {
		c.during()
	}
	return c.Archive.Collect(ctx, keep)
}

func (c *counted) Pack(ctx context.Context, files []blob.Source, like []string) (blob.Packed, error) {
	c.mu.Lock()
	for _, f := range files {
		c.packs[f.SHA256]++
	}
	err := c.refuse
	c.mu.Unlock()
	if c.begin != nil {
		c.begin <- files[0].SHA256
		<-c.goOn
	}
	if err != nil {
		return blob.Packed{}, err
	}
	return c.Archive.Pack(ctx, files, like)
}

func (c *counted) times(snap *hearth.Snapshot) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.packs[snap.Files[0].SHA256]
}

// TestPackNow: what is asked for is packed though it is young, once, with what it
// refers to, and nothing else is; and only once with Run at the same time.
func TestPackNow(t *testing.T) {
	p := newPackedShelf(t, blobtest.TempDir(t), 1<<30)
	c := &counted{Archive: p.archive, packs: map[string]int{}}
	p.archive = c
	p.young(time.Hour)
	below := p.put("below", "", blobtest.Noise(1000, 1))
	cp := checkpoint(t, map[string]string{"pages": "top"})
	cp.Base = &driver.Checkpoint{Dir: "/laid/below"}
	top, err := p.shelf.Put(t.Context(), "o", hearth.Snapshot{ID: "top", Parent: "below"}, cp)
	must(t, err)
	other := p.put("other", "", blobtest.Noise(1000, 2))
	p.tidy()
	if c.times(below)+c.times(top)+c.times(other) != 0 {
		t.Fatal("packed before its time")
	}
	for range 2 {
		must(t, p.shelf.Pack(t.Context(), []hearth.SnapshotID{"top", "nothing"}))
	}
	if c.times(below) != 1 || c.times(top) != 1 || c.times(other) != 0 {
		t.Errorf("packed %d times what is below, %d times the snapshot, %d times another", c.times(below), c.times(top), c.times(other))
	}
	if _, plain := p.objects("top", "below"); len(plain) > 0 {
		t.Errorf("plain files count: %s", plain)
	}
	c.refuse = hearth.Errorf(hearth.ResourceExhausted, "full")
	if err := p.shelf.Pack(t.Context(), []hearth.SnapshotID{"other"}); hearth.KindOf(err) != hearth.ResourceExhausted {
		t.Errorf("on a full disk: %v", err)
	}
	c.refuse = nil
	must(t, p.shelf.Pack(t.Context(), []hearth.SnapshotID{"other"})) // it may be tried again
	if _, plain := p.objects("other"); len(plain) > 0 {
		t.Errorf("plain files count: %s", plain)
	}
}

// TestPackAndTidyAtOnce: a snapshot that both pack is packed once, and what is being
// packed is no garbage.
func TestPackAndTidyAtOnce(t *testing.T) {
	p := newPackedShelf(t, blobtest.TempDir(t), 1<<30)
	p.tidy() // what an earlier process left may be garbage
	c := &counted{Archive: p.archive, packs: map[string]int{}, begin: make(chan string), goOn: make(chan struct{})}
	p.with(c, 1<<30)
	var snaps []*hearth.Snapshot
	for n := range int64(4) {
		snaps = append(snaps, p.putOf("a", ids(4)[n], "", n, blobtest.Noise(100_000, uint64(n))))
	}
	p.remove(p.put("gone", "", blobtest.Noise(1000, 9)).ID) // makes garbage
	var all sync.WaitGroup
	errs := make([]error, 3)
	all.Go(func() { errs[0] = p.shelf.Tidy(t.Context()) })
	all.Go(func() { errs[1] = p.shelf.Pack(t.Context(), ids(4)) })
	all.Go(func() { errs[2] = p.shelf.Pack(t.Context(), ids(4)) })
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	for busy := true; busy; {
		select {
		case <-c.begin:
			c.goOn <- struct{}{}
		case <-done:
			busy = false
		}
	}
	must(t, errors.Join(errs...))
	c.begin = nil
	p.tidy()
	for _, s := range snaps {
		if c.times(s) != 1 {
			t.Errorf("%s was packed %d times", s.ID, c.times(s))
		}
		must(t, c.Check(t.Context(), s.Files[0].SHA256))
	}
}

// TestPackWaitsForGarbage: what came onto the shelf after it was said what is garbage
// is not packed before that is collected, or it would go with it.
func TestPackWaitsForGarbage(t *testing.T) {
	p := newPackedShelf(t, blobtest.TempDir(t), 1<<30)
	c := &counted{Archive: p.archive, packs: map[string]int{}}
	p.with(c, 1<<30)
	var late *hearth.Snapshot
	c.during = func() {
		late = p.put("late", "", blobtest.Noise(1000, 1))
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // it would wait for ever here
		if err := p.shelf.Pack(ctx, []hearth.SnapshotID{"late"}); !errors.Is(err, context.Canceled) || c.times(late) > 0 {
			t.Errorf("packed %d times while garbage is collected, %v", c.times(late), err)
		}
	}
	p.tidy()
	if late == nil {
		t.Fatal("no garbage was collected")
	}
	c.during = nil
	must(t, p.shelf.Pack(t.Context(), []hearth.SnapshotID{"late"}))
	must(t, c.Check(t.Context(), late.Files[0].SHA256))
}

// TestPackedMeanwhile: what Tidy found waiting and somebody else packed before its
// turn came is not packed again.
func TestPackedMeanwhile(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2)) // so many are packed at once
	p := newPackedShelf(t, blobtest.TempDir(t), 1<<30)
	c := &counted{Archive: p.archive, packs: map[string]int{}}
	r := &raced{Archive: c}
	p.with(r, 1<<30)
	p.putOf("o", "s1", "", 1, blobtest.Noise(1000, 1))
	second := p.putOf("o", "s2", "", 2, blobtest.Noise(1000, 2))
	r.meanwhile = func() { must(t, p.shelf.Pack(t.Context(), []hearth.SnapshotID{"s2"})) }
	p.tidy()
	if n := c.times(second); n != 1 {
		t.Errorf("packed %d times", n)
	}
}
