package shelf_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"hearth/internal/blob/chunkblob"
	"hearth/internal/blob/fileblob"
	"hearth/internal/driver"
	"hearth/internal/hearth"
	"hearth/internal/node/agent/shelf"
)

// cut is a store that dies at its n-th change, before or after it was made, and
// then answers nothing any more.
type cut struct {
	*fileblob.Store
	left  int // changes until it dies; negative: never
	after bool
	dead  bool
}

var errDead = errors.New("the process is dead")

func (c *cut) change(do func() error) error {
	if c.left--; c.left == 0 {
		c.dead = true
		if c.after {
			_ = do()
		}
	}
	if c.dead {
		return errDead
	}
	return do()
}

func (c *cut) Put(ctx context.Context, key string, r io.Reader, size int64) error {
	return c.change(func() error { return c.Store.Put(ctx, key, r, size) })
}

func (c *cut) Adopt(ctx context.Context, key, path string) error {
	return c.change(func() error { return c.Store.Adopt(ctx, key, path) })
}

func (c *cut) Delete(ctx context.Context, key string) error {
	return c.change(func() error { return c.Store.Delete(ctx, key) })
}

// model is what must be on a shelf.
type model struct {
	t     *testing.T
	rt    *rapid.T
	dir   string
	store *cut
	shelf *shelf.Shelf
	snaps map[hearth.SnapshotID]*modelSnap
	gone  map[hearth.SnapshotID]*hearth.Snapshot // parents of those, perhaps kept until they are packed
	packs bool                                   // there is an archive
	how   shelf.Packing
	holds map[string]hearth.SnapshotID
	count int
	limit int64 // bytes of plain files
}

// empty removes everything; then nothing at all may be left.
func (m *model) empty() {
	for id := range m.snaps {
		m.must(m.shelf.Remove(m.t.Context(), id))
	}
	for holder := range m.holds {
		m.must(m.shelf.Release(m.t.Context(), holder))
	}
	m.must(m.shelf.Tidy(m.t.Context()))
	for info := range m.store.List(m.t.Context(), "") {
		m.rt.Errorf("left: %s", info.Key)
	}
}

// tidy packs what is new, and evicts what is too much.
func (m *model) tidy(rt *rapid.T) {
	if !m.packs {
		rt.Skip("no archive")
	}
	m.limit = rapid.Int64Range(0, 12).Draw(rt, "limit")
	m.reopen() // with the limit
	m.do(rt, func() error { return m.shelf.Tidy(m.t.Context()) })
}

// reboot loses what is in memory.
func (m *model) reboot(rt *rapid.T) {
	if !m.how.AtOnce {
		rt.Skip("all is on disk")
	}
	m.store.left, m.store.dead = -1, false
	for info, err := range m.store.List(m.t.Context(), "") {
		m.must(err)
		if shelf.Volatile(info.Key) {
			m.must(m.store.Delete(m.t.Context(), info.Key))
		}
	}
	m.reopen()
}

type modelSnap struct {
	put     *hearth.Snapshot
	content string
	removed bool
}

// TestReferences does random things to a shelf, dies at random points, and
// compares what is left with a model: what can be reached is whole, and of what
// cannot nothing is left.
func TestReferences(t *testing.T) { references(t, shelf.Packing{}, false) }

// TestReferencesWithAnArchive also packs, evicts, unpacks and collects.
func TestReferencesWithAnArchive(t *testing.T) { references(t, shelf.Packing{}, true) }

// TestReferencesInMemory also loses the plain files, as a reboot does.
func TestReferencesInMemory(t *testing.T) { references(t, shelf.Packing{AtOnce: true}, true) }

func references(t *testing.T, how shelf.Packing, packs bool) {
	rapid.Check(t, func(rt *rapid.T) {
		dir := t.TempDir()
		if shm, err := os.MkdirTemp("/dev/shm", "hearth-test-"); err == nil { // where a sync costs nothing
			dir = shm
			defer os.RemoveAll(shm)
		}
		files, err := fileblob.Open(filepath.Join(dir, "blobs"))
		if err != nil {
			rt.Fatal(err)
		}
		m := &model{t: t, rt: rt, dir: dir, store: &cut{Store: files}, packs: packs, how: how, snaps: map[hearth.SnapshotID]*modelSnap{}, gone: map[hearth.SnapshotID]*hearth.Snapshot{}, holds: map[string]hearth.SnapshotID{}}
		m.reopen()
		rt.Repeat(map[string]func(*rapid.T){
			"tidy": m.tidy, "reboot": m.reboot,
			"put": m.put, "remove": m.remove, "hold": m.hold, "release": m.release, "restart": func(*rapid.T) { m.reopen() }, "": m.check,
		})
		m.empty()
	})
}

// reopen is a restart: what machines hold comes from a journal.
func (m *model) reopen() {
	m.store.left, m.store.dead = -1, false
	m.shelf = shelf.New(m.store)
	if m.packs {
		a, err := chunkblob.New(m.store, m.temp(), nil)
		m.must(err)
		m.how.Archive, m.how.Cache, m.how.Log = a, m.limit, slog.New(slog.DiscardHandler)
		m.shelf.WithArchive(m.how)
	}
	for holder, id := range m.holds {
		m.must(m.shelf.Hold(m.t.Context(), holder, id))
	}
	m.must(m.shelf.Sweep(m.t.Context()))
}

func (m *model) temp() string {
	m.rt.Helper()
	dir, err := os.MkdirTemp(m.dir, "")
	m.must(err)
	return dir
}

func (m *model) must(err error) {
	m.rt.Helper()
	if err != nil {
		m.rt.Fatal(err)
	}
}

// mayDie arms the store for one operation.
func (m *model) mayDie(rt *rapid.T) {
	m.store.left = rapid.IntRange(-3, 5).Draw(rt, "dies at")
	m.store.after = rapid.Bool().Draw(rt, "after")
}

// do runs an operation that may be cut short; it is repeated after a restart,
// as its callers do, until it is done.
func (m *model) do(rt *rapid.T, op func() error) {
	m.mayDie(rt)
	err := op()
	if !m.store.dead {
		m.must(err)
		m.store.left = -1
		return
	}
	m.reopen()
	m.must(op())
}

func (m *model) pick(rt *rapid.T, keep func(*modelSnap) bool) hearth.SnapshotID {
	var ids []hearth.SnapshotID
	for id, s := range m.snaps {
		if keep(s) {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		rt.Skip("none")
	}
	slices.Sort(ids)
	return rapid.SampledFrom(ids).Draw(rt, "snapshot")
}

// put keeps a checkpoint of a machine, restored from what it holds or booted.
func (m *model) put(rt *rapid.T) {
	m.count++
	id := hearth.SnapshotID(fmt.Sprintf("s%03d", m.count))
	c := &driver.Checkpoint{Driver: "fake", Key: "k", Dir: m.temp(), Files: []string{"state"}}
	content := string(id)
	m.must(os.WriteFile(filepath.Join(c.Dir, "state"), []byte(content), 0o600))
	snap := hearth.Snapshot{ID: id}
	if len(m.holds) > 0 && rapid.Bool().Draw(rt, "restored") {
		snap.Parent = m.holds[rapid.SampledFrom(slices.Sorted(maps.Keys(m.holds))).Draw(rt, "machine")]
		on := snap.Parent
		if below := m.snaps[on].put.Base; below != "" && rapid.Bool().Draw(rt, "skips one") {
			on = below
		}
		if rapid.Bool().Draw(rt, "layered") && m.depth(on) < driver.MaxLayers {
			c.Base = &driver.Checkpoint{Dir: "/laid/" + string(on)}
			content += "," + m.snaps[on].content
		}
	}
	m.mayDie(rt)
	put, err := m.shelf.Put(m.t.Context(), "owner", snap, c)
	if m.store.dead { // whoever asked for it looks whether it is there
		m.reopen()
		if put, _, err = m.shelf.Find(m.t.Context(), id); hearth.KindOf(err) == hearth.NotFound && err != nil {
			m.must(m.shelf.Remove(m.t.Context(), id))
			return
		}
	}
	m.must(err)
	m.store.left = -1
	m.snaps[id] = &modelSnap{put: put, content: content}
}

func (m *model) depth(id hearth.SnapshotID) int {
	n := 0
	for ; id != ""; id = m.snaps[id].put.Base {
		n++
	}
	return n
}

func (m *model) remove(rt *rapid.T) {
	id := m.pick(rt, func(*modelSnap) bool { return true }) // also twice
	m.do(rt, func() error { return m.shelf.Remove(m.t.Context(), id) })
	m.snaps[id].removed = true
}

func (m *model) hold(rt *rapid.T) {
	id := m.pick(rt, func(s *modelSnap) bool { return !s.removed })
	m.count++
	holder := fmt.Sprintf("m%d", m.count)
	m.must(m.shelf.Hold(m.t.Context(), holder, id))
	m.holds[holder] = id
}

func (m *model) release(rt *rapid.T) {
	if len(m.holds) == 0 {
		rt.Skip("none")
	}
	holder := rapid.SampledFrom(slices.Sorted(maps.Keys(m.holds))).Draw(rt, "machine")
	delete(m.holds, holder) // its record is gone first
	m.do(rt, func() error { return m.shelf.Release(m.t.Context(), holder) })
}

// reachable lists what must be there.
func (m *model) reachable() map[hearth.SnapshotID]bool {
	live := map[hearth.SnapshotID]bool{}
	mark := func(id hearth.SnapshotID) {
		for ; id != ""; id = m.snaps[id].put.Base {
			live[id] = true
		}
	}
	for id, s := range m.snaps {
		if !s.removed {
			mark(id)
		}
	}
	for _, id := range m.holds {
		mark(id)
	}
	return live
}

func (m *model) check(rt *rapid.T) {
	live := m.reachable()
	for id, s := range m.snaps {
		if !live[id] {
			m.gone[id] = s.put
			delete(m.snaps, id)
		}
	}
	there := map[hearth.SnapshotID]bool{}
	for info, err := range m.store.List(m.t.Context(), "snapshots/") {
		m.must(err)
		there[hearth.SnapshotID(strings.Split(info.Key, "/")[1])] = true
	}
	if m.packs { // a removed parent may stay until its children are packed
		for id := range live {
			for at := m.snaps[id].put.Parent; at != "" && m.gone[at] != nil; at = m.gone[at].Parent {
				for on := at; on != "" && m.gone[on] != nil; on = m.gone[on].Base {
					delete(there, on)
				}
			}
		}
	}
	if !maps.Equal(live, there) {
		rt.Fatalf("on the shelf: %v, want %v", slices.Sorted(maps.Keys(there)), slices.Sorted(maps.Keys(live)))
	}
	for id, s := range m.snaps {
		dir := m.temp()
		c, err := m.shelf.Lay(m.t.Context(), s.put, dir)
		if s.removed {
			if hearth.KindOf(err) != hearth.NotFound {
				rt.Fatalf("Lay of %s, which is removed: %v", id, err)
			}
			continue
		}
		m.must(err)
		if got := contents(m.t, c); got != s.content {
			rt.Fatalf("%s holds %q, want %q", id, got, s.content)
		}
		m.must(os.RemoveAll(dir))
	}
}

// contents reads a laid chain, top first.
func contents(t *testing.T, c *driver.Checkpoint) string {
	t.Helper()
	var all []string
	for ; c != nil; c = c.Base {
		raw, err := os.ReadFile(filepath.Join(c.Dir, "state"))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(raw))
	}
	return strings.Join(all, ",")
}

// stack puts n snapshots, each on the one before; the first stands alone.
func stack(t *testing.T, s *shelf.Shelf, n int) []*hearth.Snapshot {
	t.Helper()
	var list []*hearth.Snapshot
	for i := range n {
		c := checkpoint(t, map[string]string{"state": fmt.Sprint(i)})
		snap := hearth.Snapshot{ID: hearth.SnapshotID(fmt.Sprintf("s%d", i))}
		if i > 0 {
			snap.Parent = list[i-1].ID
			c.Base = &driver.Checkpoint{Dir: "/laid/" + string(snap.Parent)}
		}
		put, err := s.Put(t.Context(), "o", snap, c)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, put)
	}
	return list
}

func TestBrokenChainsAreRefused(t *testing.T) {
	relink := func(t *testing.T, store *fileblob.Store, snap hearth.Snapshot, change func(*hearth.Snapshot)) {
		key := "snapshots/" + string(snap.ID) + "/manifest.json"
		if err := store.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		change(&snap)
		raw := shelf.Encode(t, "o", snap)
		if err := store.Put(t.Context(), key, bytes.NewReader(raw), int64(len(raw))); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		says  string
		spoil func(t *testing.T, store *fileblob.Store, list []*hearth.Snapshot)
	}{
		"cycle": {"refers back", func(t *testing.T, store *fileblob.Store, list []*hearth.Snapshot) {
			relink(t, store, *list[0], func(s *hearth.Snapshot) { s.Base = "s2" })
		}},
		"itself": {"refers back", func(t *testing.T, store *fileblob.Store, list []*hearth.Snapshot) {
			relink(t, store, *list[1], func(s *hearth.Snapshot) { s.Base = "s1" })
		}},
		"missing": {"s0, which it refers to, is not there", func(t *testing.T, store *fileblob.Store, _ []*hearth.Snapshot) {
			if err := store.Delete(t.Context(), "snapshots/s0/manifest.json"); err != nil {
				t.Fatal(err)
			}
		}},
		"other key": {"needs fake \"other\"", func(t *testing.T, store *fileblob.Store, list []*hearth.Snapshot) {
			relink(t, store, *list[0], func(s *hearth.Snapshot) { s.Key = "other" })
		}},
		"swapped manifest": {"is that of", func(t *testing.T, store *fileblob.Store, list []*hearth.Snapshot) {
			relink(t, store, *list[1], func(s *hearth.Snapshot) { *s = *list[0] })
		}},
		"flipped link": {"not what was written", func(t *testing.T, store *fileblob.Store, list []*hearth.Snapshot) {
			flip(t, store, "snapshots/s2/manifest.json", `"Base":"s1"`, `"Base":"s0"`)
		}},
		"file gone": {"snapshot s1 is damaged: it lacks its file state", func(t *testing.T, store *fileblob.Store, _ []*hearth.Snapshot) {
			if err := store.Delete(t.Context(), "snapshots/s1/state"); err != nil {
				t.Fatal(err)
			}
		}},
		"file of the base changed": {"snapshot s0 is damaged: its file state is not what was written", func(t *testing.T, store *fileblob.Store, _ []*hearth.Snapshot) {
			flip(t, store, "snapshots/s0/state", "0", "1")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s, store := newShelf(t)
			list := stack(t, s, 3)
			c.spoil(t, store, list)
			for _, on := range []*shelf.Shelf{s, shelf.New(store)} {
				_, err := on.Lay(t.Context(), list[2], t.TempDir())
				if hearth.KindOf(err) != hearth.FailedPrecondition || !strings.Contains(err.Error(), c.says) {
					t.Errorf("got %v, want a failed precondition that says %q", err, c.says)
				}
			}
			for _, snap := range list { // what is damaged can still be removed
				if err := shelf.New(store).Remove(t.Context(), snap.ID); err != nil {
					t.Fatal(err)
				}
			}
			if err := shelf.New(store).Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			for info := range store.List(t.Context(), "") {
				t.Errorf("left: %s", info.Key)
			}
		})
	}
}

// flip exchanges bytes of a stored file in place, as a bad disk does, but for the times.
func flip(t *testing.T, store *fileblob.Store, key, from, to string) {
	t.Helper()
	path, err := store.Path(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(raw, []byte(from)) {
		t.Fatalf("%s: %q, %v", key, raw, err)
	}
	if err := os.WriteFile(path, bytes.Replace(raw, []byte(from), []byte(to), 1), 0o400); err != nil {
		t.Fatal(err)
	}
}

func TestLayersAreBounded(t *testing.T) {
	s, _ := newShelf(t)
	list := stack(t, s, driver.MaxLayers)
	top := list[len(list)-1]
	c, err := s.Lay(t.Context(), top, t.TempDir())
	if err != nil || c.Layers() != driver.MaxLayers {
		t.Fatalf("Lay: %d layers, %v", c.Layers(), err)
	}
	more := checkpoint(t, map[string]string{"state": "x"})
	more.Base = &driver.Checkpoint{Dir: "/laid/" + string(top.ID)}
	if _, err := s.Put(t.Context(), "o", hearth.Snapshot{ID: "more", Parent: top.ID}, more); hearth.KindOf(err) != hearth.FailedPrecondition {
		t.Errorf("Put of one layer too many: %v", err)
	}
	more.Base.Dir = "/laid/elsewhere"
	if _, err := s.Put(t.Context(), "o", hearth.Snapshot{ID: "more", Parent: top.ID}, more); hearth.KindOf(err) != hearth.Internal {
		t.Errorf("Put on what the machine was not restored from: %v", err)
	}
}
