package shelf_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hearth/internal/blob"
	"hearth/internal/blob/blobtest"
	"hearth/internal/blob/chunkblob"
	"hearth/internal/blob/fileblob"
	"hearth/internal/hearth"
	"hearth/internal/node/agent/shelf"
)

// packed is a shelf with an archive of its own store.
type packed struct {
	t     *testing.T
	dir   string
	plain *fileblob.Store // has the plain files
	packs *fileblob.Store // has the packed ones
	shelf *shelf.Shelf

	archive blob.Archive
	said    bytes.Buffer // its log
}

func newPackedShelf(t *testing.T, dir string, limit int64) *packed {
	t.Helper()
	p := &packed{t: t, dir: dir}
	p.reopen(limit, nil)
	return p
}

func (p *packed) reopen(limit int64, key []byte) {
	p.t.Helper()
	var err error
	if p.plain, err = fileblob.Open(filepath.Join(p.dir, "plain")); err != nil {
		p.t.Fatal(err)
	}
	if p.packs, err = fileblob.Open(filepath.Join(p.dir, "packs")); err != nil {
		p.t.Fatal(err)
	}
	p.open(p.packs, limit, key)
}

func (p *packed) open(packs blob.Store, limit int64, key []byte) {
	p.t.Helper()
	var k *chunkblob.Key
	var err error
	if key != nil {
		if k, err = chunkblob.NewKey(key); err != nil {
			p.t.Fatal(err)
		}
	}
	a, err := chunkblob.New(packs, p.packs.Temp(), k)
	if err != nil {
		p.t.Fatal(err)
	}
	p.with(a, limit)
}

// with makes a shelf anew with another archive.
func (p *packed) with(a blob.Archive, limit int64) {
	p.archive = a
	p.shelf = shelf.New(p.plain).WithArchive(shelf.Packing{Archive: a, Cache: limit, Log: slog.New(slog.NewTextHandler(&p.said, nil))})
}

// atOnce makes a shelf anew that packs what is put; wrap, if not nil, is around its
// archive.
func (p *packed) atOnce(wrap func(blob.Archive) blob.Archive) {
	if wrap != nil {
		p.archive = wrap(p.archive)
	}
	p.shelf = shelf.New(p.plain).WithArchive(shelf.Packing{Archive: p.archive, AtOnce: true, Log: slog.New(slog.DiscardHandler)})
}

// young makes a shelf anew that packs only what is so old.
func (p *packed) young(after time.Duration) {
	p.shelf = shelf.New(p.plain).WithArchive(shelf.Packing{Archive: p.archive, Cache: 1 << 30, After: after, Log: slog.New(slog.DiscardHandler)})
}

func (p *packed) put(id, parent hearth.SnapshotID, pages []byte) *hearth.Snapshot {
	p.t.Helper()
	snap, err := p.shelf.Put(p.t.Context(), "o", hearth.Snapshot{ID: id, Parent: parent}, checkpoint(p.t, map[string]string{"pages": string(pages)}))
	if err != nil {
		p.t.Fatal(err)
	}
	return snap
}

func (p *packed) tidy() {
	p.t.Helper()
	if err := p.shelf.Tidy(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
}

// lay returns a snapshot's pages, held by holder.
func (p *packed) lay(holder string, snap *hearth.Snapshot) (string, error) {
	p.t.Helper()
	if err := p.shelf.Hold(p.t.Context(), holder, snap.ID); err != nil {
		return "", err
	}
	c, err := p.shelf.Lay(p.t.Context(), snap, p.t.TempDir())
	if err != nil {
		return "", err
	}
	raw, err := os.ReadFile(filepath.Join(c.Dir, "pages"))
	return string(raw), err
}

func (p *packed) release(holder string) {
	p.t.Helper()
	if err := p.shelf.Release(p.t.Context(), holder); err != nil {
		p.t.Fatal(err)
	}
}

// has reports whether a snapshot's plain file is there.
func (p *packed) has(id hearth.SnapshotID) bool {
	_, err := p.plain.Stat(p.t.Context(), "snapshots/"+string(id)+"/pages")
	return err == nil
}

func (p *packed) stored() (sum int64) {
	for info := range p.packs.List(p.t.Context(), "") {
		sum += info.Size
	}
	return sum
}

// spoil changes a byte of every pack.
func (p *packed) spoil() {
	p.t.Helper()
	for info := range p.packs.List(p.t.Context(), "packs/") {
		path, err := p.packs.Path(p.t.Context(), info.Key)
		must(p.t, err)
		must(p.t, os.Chmod(path, 0o600))
		raw, err := os.ReadFile(path)
		must(p.t, err)
		raw[len(raw)/2]++
		must(p.t, os.WriteFile(path, raw, 0o600))
	}
}

func TestPlainFilesAreACache(t *testing.T) {
	p := newPackedShelf(t, blobtest.TempDir(t), 0)
	pages := blobtest.Noise(300_000, 1)
	s1 := p.put("s1", "", pages)
	if _, err := p.lay("m", s1); err != nil {
		t.Fatal(err)
	}
	p.tidy()
	if !p.has("s1") {
		t.Fatal("files that are in use were removed")
	}
	p.release("m")
	p.tidy()
	if p.has("s1") {
		t.Fatal("files beyond the limit are still there")
	}
	must(t, p.shelf.Readable(t.Context(), s1.ID))
	p.reopen(1<<20, nil)
	var all sync.WaitGroup
	for _, holder := range []string{"a", "b", "c"} { // at once
		all.Go(func() {
			if got, err := p.lay(holder, s1); err != nil || got != string(pages) {
				t.Errorf("laid %d bytes, %v", len(got), err)
			}
		})
	}
	all.Wait()
	for _, holder := range []string{"a", "b", "c"} {
		p.release(holder)
	}
	p.tidy()
	if !p.has("s1") {
		t.Fatal("files within the limit were removed")
	}
	s2 := p.put("s2", "", blobtest.Noise(900_000, 2)) // together too much; s1 was used last
	if _, err := p.lay("a", s1); err != nil {
		t.Fatal(err)
	}
	p.release("a")
	p.tidy()
	if !p.has("s1") || p.has("s2") {
		t.Fatalf("s1 there: %v, s2 there: %v; s2 should have gone", p.has("s1"), p.has("s2"))
	}
	for _, s := range []*hearth.Snapshot{s1, s2} {
		if err := p.shelf.Remove(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
	}
	p.tidy()
	if left := p.stored(); left != 0 {
		t.Fatalf("%d bytes of nothing", left)
	}
	if err := p.shelf.Readable(t.Context(), s1.ID); hearth.KindOf(err) != hearth.NotFound {
		t.Errorf("what is removed: %v", err)
	}
}

// TestOnlyWhatChangedIsStored also when the sandbox has forgotten its parent by
// the time it is packed.
func TestOnlyWhatChangedIsStored(t *testing.T) {
	p := newPackedShelf(t, blobtest.TempDir(t), 0)
	pages := blobtest.Noise(1<<20, 1)
	p.put("s1", "", pages)
	p.tidy()
	before := p.stored()
	if err := p.shelf.Hold(t.Context(), "m", "s1"); err != nil {
		t.Fatal(err)
	}
	if err := p.shelf.Remove(t.Context(), "s1"); err != nil {
		t.Fatal(err)
	}
	changed := append(blobtest.Noise(4096, 2), pages...)
	s2 := p.put("s2", "s1", changed)
	p.release("m")
	p.tidy()
	if grew := p.stored() - before; grew > 100_000 {
		t.Errorf("one new page took %d bytes", grew)
	}
	if got, err := p.lay("m", s2); err != nil || got != string(changed) {
		t.Errorf("laid %d bytes, %v", len(got), err)
	}
	for info := range p.plain.List(t.Context(), "snapshots/s1/") {
		t.Errorf("left: %s", info.Key)
	}
}

// TestDamageIsFoundOrHealed: a plain file that is not what was written is made
// anew from the archive; a pack that is not is written anew from the plain file;
// if both are gone nothing starts, and the error says what is wrong with what.
func TestDamageIsFoundOrHealed(t *testing.T) {
	p := newPackedShelf(t, blobtest.TempDir(t), 1<<20)
	pages := blobtest.Noise(300_000, 1)
	s1 := p.put("s1", "", pages)
	p.tidy()
	if _, err := p.lay("a", s1); err != nil || strings.Contains(p.said.String(), "made again") {
		t.Fatalf("before any damage: %v, log %q", err, &p.said)
	}
	p.release("a")
	flip(t, p.plain, "snapshots/s1/pages", string(pages[1000:1010]), "abcdefghij")
	if got, err := p.lay("a", s1); err != nil || got != string(pages) {
		t.Fatalf("after a bit flip in the plain file: %d bytes, %v", len(got), err)
	}
	if said := p.said.String(); strings.Count(said, "made again from the archive") != 1 || !strings.Contains(said, "snapshot=s1 file=pages") {
		t.Errorf("log: %q", said)
	}
	p.release("a")

	p.spoil()
	p.reopen(0, nil)
	if _, _, err := p.shelf.Find(t.Context(), "s1"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.lay("a", s1); err != nil {
		t.Fatal(err)
	}
	p.release("a")
	if err := p.shelf.Tidy(t.Context()); err == nil || !p.has("s1") {
		t.Fatalf("a damaged pack: %v; plain file there: %v", err, p.has("s1"))
	}
	p.tidy() // packs it again
	p.tidy() // and then the plain file may go
	if p.has("s1") {
		t.Fatal("it was not packed again")
	}
	p.spoil()
	for range 2 {
		_, err := p.lay("b", s1)
		if hearth.KindOf(err) != hearth.FailedPrecondition || !strings.Contains(err.Error(), "snapshot s1") || !strings.Contains(err.Error(), "pages") || !strings.Contains(err.Error(), "chunk") {
			t.Fatalf("got %v", err)
		}
		p.release("b")
	}
}

// TestDamageThatCannotBeHealed: what has no plain file any more keeps its place in the
// archive, should somebody bring the pack back.
func TestDamageThatCannotBeHealed(t *testing.T) {
	ctx, p := t.Context(), newPackedShelf(t, blobtest.TempDir(t), 1<<20)
	pages := blobtest.Noise(300_000, 1)
	snap, err := p.shelf.Put(ctx, "o", hearth.Snapshot{ID: "s1"}, checkpoint(t, map[string]string{"pages": string(pages), "state": "small"}))
	must(t, err)
	p.tidy()
	must(t, p.plain.Delete(ctx, "snapshots/s1/pages"))
	p.spoil()
	p.reopen(0, nil)
	_, _, err = p.shelf.Find(ctx, "s1")
	must(t, err)
	for range 2 {
		if err := p.shelf.Tidy(ctx); err == nil {
			t.Error("nobody says that it is damaged")
		}
	}
	for range 255 { // a byte has come round then
		p.spoil()
	}
	if got, err := p.lay("a", snap); err != nil || got != string(pages) {
		t.Errorf("with its pack again: %d bytes, %v", len(got), err)
	}
}

// TestDamageIsHealedBesideWhatIsPackedOnly: a file that is whole in the archive needs
// no plain one for another file of its snapshot to be packed again.
func TestDamageIsHealedBesideWhatIsPackedOnly(t *testing.T) {
	ctx, p := t.Context(), newPackedShelf(t, blobtest.TempDir(t), 1<<20)
	pages := blobtest.Noise(300_000, 1)
	snap, err := p.shelf.Put(ctx, "o", hearth.Snapshot{ID: "s1"}, checkpoint(t, map[string]string{"pages": string(pages), "state": "small"}))
	must(t, err)
	p.tidy()
	must(t, p.plain.Delete(ctx, "snapshots/s1/state"))
	p.spoil()
	p.reopen(0, nil)
	_, _, err = p.shelf.Find(ctx, "s1")
	must(t, err)
	if err := p.shelf.Tidy(ctx); err == nil || !p.has("s1") {
		t.Fatalf("a damaged pack: %v; plain file there: %v", err, p.has("s1"))
	}
	p.tidy() // packs it again
	p.tidy() // and then the plain file may go
	if p.has("s1") {
		t.Fatal("it was not packed again")
	}
	if got, err := p.lay("a", snap); err != nil || got != string(pages) {
		t.Errorf("laid %d bytes, %v", len(got), err)
	}
}

func TestWrongKeyIsSaid(t *testing.T) {
	p := newPackedShelf(t, blobtest.TempDir(t), 0)
	key := bytes.Repeat([]byte{7}, chunkblob.KeyBytes)
	p.reopen(0, key)
	s1 := p.put("s1", "", blobtest.Noise(100_000, 1))
	p.tidy()
	for says, key := range map[string][]byte{"no key is configured": nil, "and key ": bytes.Repeat([]byte{8}, chunkblob.KeyBytes)} {
		p.reopen(0, key)
		if _, err := p.lay("m", s1); hearth.KindOf(err) != hearth.FailedPrecondition || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want an error that says %q", err, says)
		}
		var b bytes.Buffer // nothing of it: who asked is told by an answer, not by a file cut short
		if err := p.shelf.Export(t.Context(), "s1", hearth.Build{}, "", &b); b.Len() > 0 || hearth.KindOf(err) != hearth.FailedPrecondition || !strings.Contains(err.Error(), says) {
			t.Errorf("exported %d bytes, got %v, want an error that says %q", b.Len(), err, says)
		}
	}
	p.reopen(0, key)
	if _, err := p.lay("m", s1); err != nil {
		t.Error(err)
	}
}

// away is a store that cannot be reached while it is down.
type away struct {
	*fileblob.Store
	down bool
}

func (a *away) Put(ctx context.Context, key string, r io.Reader, size int64) error {
	if a.down {
		return hearth.Errorf(hearth.Unavailable, "503")
	}
	return a.Store.Put(ctx, key, r, size)
}

func (a *away) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	if a.down {
		return nil, hearth.Errorf(hearth.Unavailable, "503")
	}
	return a.Store.Open(ctx, key, off, n)
}

func TestArchiveIsAway(t *testing.T) {
	p := newPackedShelf(t, blobtest.TempDir(t), 0)
	store := &away{Store: p.packs}
	p.open(store, 0, nil)
	s1 := p.put("s1", "", blobtest.Noise(100_000, 1))
	store.down = true
	if err := p.shelf.Tidy(t.Context()); hearth.KindOf(err) != hearth.Unavailable {
		t.Fatalf("packing: %v", err)
	}
	if _, err := p.lay("m", s1); err != nil { // the plain file is enough
		t.Fatal(err)
	}
	p.release("m")
	store.down = false
	p.tidy()
	store.down = true
	if _, err := p.lay("m", s1); hearth.KindOf(err) != hearth.Unavailable {
		t.Fatalf("restoring: %v", err)
	}
	store.down = false
	if _, err := p.lay("m", s1); err != nil {
		t.Fatal(err)
	}
}

// TestFullDisk puts and packs on a file system that is too small for it: errors
// say so, nothing is torn, and what was there stays.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("hearth-test", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("needs root to mount a small file system: %v", err)
	}
	defer func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	p := newPackedShelf(t, dir, 1<<30)
	pages := blobtest.Noise(1<<20, 1)
	s1 := p.put("s1", "", pages)
	p.tidy() // 2 MiB are taken
	s2 := p.put("s2", "s1", blobtest.Noise(1<<20+1<<18, 2))
	for range 2 {
		if err := p.shelf.Tidy(t.Context()); hearth.KindOf(err) != hearth.ResourceExhausted {
			t.Fatalf("packing on a full disk: %v", err)
		}
	}
	_, err := p.shelf.Put(t.Context(), "o", hearth.Snapshot{ID: "s3"}, checkpoint(t, map[string]string{"pages": string(blobtest.Noise(1<<20, 3))}))
	if hearth.KindOf(err) != hearth.ResourceExhausted {
		t.Fatalf("a snapshot on a full disk: %v", err)
	}
	if err := p.shelf.Remove(t.Context(), "s3"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.shelf.Find(t.Context(), "s3"); hearth.KindOf(err) != hearth.NotFound {
		t.Fatalf("half a snapshot is found: %v", err)
	}
	for _, s := range []*hearth.Snapshot{s1, s2} {
		if _, err := p.lay(string(s.ID), s); err != nil {
			t.Fatal(err)
		}
		p.release(string(s.ID))
	}
	// Room that is asked for is made of what the archive has and nobody uses.
	p.lay("m", s1)
	if freed, err := p.shelf.MakeRoom(t.Context(), math.MaxInt64); err != nil || freed != 0 || !p.has("s1") {
		t.Fatalf("%d bytes were freed of what is in use, %v", freed, err)
	}
	p.release("m")
	if freed, err := p.shelf.MakeRoom(t.Context(), math.MaxInt64); err != nil || freed != 1<<20 || p.has("s1") || !p.has("s2") {
		t.Fatalf("%d bytes were freed, %v; want those of the packed snapshot alone", freed, err)
	}
	p.put("s4", "", blobtest.Noise(1<<19, 4))
	if err := p.shelf.Remove(t.Context(), "s4"); err != nil {
		t.Fatal(err)
	}
	p.reopen(0, nil) // less cache makes room
	for range 3 {
		err = p.shelf.Tidy(t.Context())
	}
	if err != nil || p.has("s2") {
		t.Fatalf("after room was made: %v", err)
	}
	if got, err := p.lay("m", s1); err != nil || got != string(pages) {
		t.Fatalf("laid %d bytes, %v", len(got), err)
	}
}

// TestMakeRoomForEnough: of many plain files that could go, those go that were not
// used for longest, and no more than are needed.
func TestMakeRoomForEnough(t *testing.T) {
	p := newPackedShelf(t, blobtest.TempDir(t), 1<<30)
	snaps := map[hearth.SnapshotID]*hearth.Snapshot{}
	for n, id := range []hearth.SnapshotID{"s1", "s2", "s3", "s4"} {
		snaps[id] = p.put(id, "", blobtest.Noise(100_000, uint64(n)))
	}
	p.tidy()
	for _, id := range []hearth.SnapshotID{"s3", "s1"} { // s2 and s4 were never used, s3 before s1
		if _, err := p.lay("m", snaps[id]); err != nil {
			t.Fatal(err)
		}
		p.release("m")
	}
	for _, step := range []struct {
		enough, freed int64
		left          []hearth.SnapshotID
	}{
		{0, 0, []hearth.SnapshotID{"s1", "s2", "s3", "s4"}},
		{100_001, 200_000, []hearth.SnapshotID{"s1", "s3"}},
		{1, 100_000, []hearth.SnapshotID{"s1"}},
		{1 << 40, 100_000, nil},
		{1 << 40, 0, nil},
	} {
		freed, err := p.shelf.MakeRoom(t.Context(), step.enough)
		if err != nil || freed != step.freed {
			t.Errorf("for %d bytes %d were freed, %v; want %d", step.enough, freed, err, step.freed)
		}
		for id := range snaps {
			if p.has(id) != slices.Contains(step.left, id) {
				t.Errorf("after room for %d bytes %s is there: %t", step.enough, id, p.has(id))
			}
		}
	}
}
