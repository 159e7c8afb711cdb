//go:build hearthcow

package gvisor

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/hostarch"
	"gvisor.dev/gvisor/pkg/sentry/memmap"
	"gvisor.dev/gvisor/pkg/sentry/pgalloc"
	"gvisor.dev/gvisor/pkg/sentry/state/stateio"
	"gvisor.dev/gvisor/pkg/sentry/usage"
	"gvisor.dev/gvisor/pkg/state"
)

// What a quick save writes (patch/10-save.patch) is to the byte what gVisor's own
// writes: these tests let both save the same.

// quickly runs f as a sandbox of ours runs.
func quickly(f func()) {
	state.QuickSave, pgalloc.QuickSave = true, true
	defer func() { state.QuickSave, pgalloc.QuickSave = false, false }()
	f()
}

// The state's objects: leaves lie in trunks, trunks in trees, and all of them are
// pointed at, so that what was saved as an object turns out to be part of another.
type (
	leaf struct {
		n     int
		other *leaf
		up    *trunk
		top   *tree
		boxed any // of a struct, which is a copy
		saves int // times that it was saved; is not
	}
	trunk struct {
		leaves [2]leaf
		next   *trunk
	}
	tree struct {
		first trunk
		rest  [2]trunk
		last  leaf
	}
	forest struct {
		leaves []*leaf
		trunks []*trunk
		trees  []*tree
	}
	fruit  struct{ seed *leaf }
	pollen struct{ n int }
)

func (*leaf) StateTypeName() string   { return "hearth.leaf" }
func (*trunk) StateTypeName() string  { return "hearth.trunk" }
func (*tree) StateTypeName() string   { return "hearth.tree" }
func (*forest) StateTypeName() string { return "hearth.forest" }
func (*fruit) StateTypeName() string  { return "hearth.fruit" }
func (*pollen) StateTypeName() string { return "hearth.pollen" }

func (*leaf) StateFields() []string {
	return []string{"n", "other", "up", "top", "boxed", "pollen"}
}
func (*trunk) StateFields() []string  { return []string{"leaves", "next"} }
func (*tree) StateFields() []string   { return []string{"first", "rest", "last"} }
func (*forest) StateFields() []string { return []string{"leaves", "trunks", "trees"} }
func (*fruit) StateFields() []string  { return []string{"seed"} }
func (*pollen) StateFields() []string { return []string{"n"} }

func (l *leaf) StateSave(s state.Sink) {
	l.saves++
	s.SaveValue(5, &pollen{l.n}) // twice saved it would be two
	s.Save(0, &l.n)
	s.Save(1, &l.other)
	s.Save(2, &l.up)
	s.Save(3, &l.top)
	s.Save(4, &l.boxed)
}

func (l *leaf) StateLoad(_ context.Context, s state.Source) {
	s.LoadValue(5, new(*pollen), func(any) {})
	s.Load(0, &l.n)
	s.Load(1, &l.other)
	s.Load(2, &l.up)
	s.Load(3, &l.top)
	s.Load(4, &l.boxed)
}

func (t *trunk) StateSave(s state.Sink) { s.Save(0, &t.leaves); s.Save(1, &t.next) }
func (t *trunk) StateLoad(_ context.Context, s state.Source) {
	s.Load(0, &t.leaves)
	s.Load(1, &t.next)
}
func (t *tree) StateSave(s state.Sink) { s.Save(0, &t.first); s.Save(1, &t.rest); s.Save(2, &t.last) }
func (t *tree) StateLoad(_ context.Context, s state.Source) {
	s.Load(0, &t.first)
	s.Load(1, &t.rest)
	s.Load(2, &t.last)
}
func (f *forest) StateSave(s state.Sink) {
	s.Save(0, &f.leaves)
	s.Save(1, &f.trunks)
	s.Save(2, &f.trees)
}
func (f *forest) StateLoad(_ context.Context, s state.Source) {
	s.Load(0, &f.leaves)
	s.Load(1, &f.trunks)
	s.Load(2, &f.trees)
}
func (f *fruit) StateSave(s state.Sink)                       { s.Save(0, &f.seed) }
func (f *fruit) StateLoad(_ context.Context, s state.Source)  { s.Load(0, &f.seed) }
func (p *pollen) StateSave(s state.Sink)                      { s.Save(0, &p.n) }
func (p *pollen) StateLoad(_ context.Context, s state.Source) { s.Load(0, &p.n) }

// grown returns a forest in which hardly anything is pointed at by its root: most is
// found while something else is saved. And all of its leaves.
func grown(r *rand.Rand) (*forest, []*leaf) {
	trees := make([]*tree, 1+r.IntN(12))
	var trunks []*trunk
	var leaves []*leaf
	for i := range trees {
		t := new(tree)
		trees[i] = t
		trunks = append(trunks, &t.first, &t.rest[0], &t.rest[1])
		leaves = append(leaves, &t.last)
	}
	for _, t := range trunks {
		leaves = append(leaves, &t.leaves[0], &t.leaves[1])
		if r.IntN(2) == 0 {
			t.next = trunks[r.IntN(len(trunks))]
		}
	}
	for i, l := range leaves {
		l.n = i
		if r.IntN(3) > 0 {
			l.other = leaves[r.IntN(len(leaves))]
		}
		switch r.IntN(6) {
		case 0:
			l.up = trunks[r.IntN(len(trunks))]
		case 1:
			l.top = trees[r.IntN(len(trees))]
		case 2:
			l.boxed = fruit{leaves[r.IntN(len(leaves))]}
		case 3:
			l.boxed = leaves[r.IntN(len(leaves))].boxed // the same copy, perhaps
		}
	}
	f := &forest{leaves: leaves[:1:1]}
	for range r.IntN(4) {
		f.leaves = append(f.leaves, leaves[r.IntN(len(leaves))])
		f.trunks = append(f.trunks, trunks[r.IntN(len(trunks))])
		f.trees = append(f.trees, trees[r.IntN(len(trees))])
	}
	return f, leaves
}

// registerForest makes gVisor know the types, which it does for the rest of the process.
var registerForest = sync.OnceFunc(func() {
	for _, typ := range []state.Type{new(leaf), new(trunk), new(tree), new(forest), new(fruit), new(pollen)} {
		state.Register(typ)
	}
})

func TestQuickSaveOfObjects(t *testing.T) {
	registerForest()
	save := func(f *forest) []byte {
		var b bytes.Buffer
		_, err := state.Save(t.Context(), &b, f)
		if err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	for seed := range uint64(2000) {
		f, leaves := grown(rand.New(rand.NewPCG(seed, 7)))
		want := save(f)
		for _, l := range leaves {
			l.saves = 0
		}
		var got []byte
		quickly(func() { got = save(f) })
		if !bytes.Equal(got, want) {
			t.Fatalf("seed %d: %d bytes, not the %d that gVisor's own save writes", seed, len(got), len(want))
		}
		for _, l := range leaves {
			if l.saves > 1 {
				t.Fatalf("seed %d: leaf %d was saved %d times", seed, l.n, l.saves)
			}
		}
		back := new(forest)
		if _, err := state.Load(t.Context(), bytes.NewReader(got), back); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if again := save(back); !bytes.Equal(again, want) {
			t.Fatalf("seed %d: what was loaded is not what was saved", seed)
		}
	}
}

// pages fills memory with pages that were written, zeroed, given back or never
// touched, saves it, takes some away, and returns what the next save writes: pages and
// what says where they are.
func pages(t *testing.T, seed uint64) (content, meta []byte) {
	t.Helper()
	fd, err := unix.MemfdCreate("pages", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	mf, err := pgalloc.NewMemoryFile(os.NewFile(uintptr(fd), "pages"), pgalloc.MemoryFileOpts{DisableMemoryAccounting: true, DisableIMAWorkAround: true})
	if err != nil {
		t.Fatal(err)
	}
	defer mf.Destroy()
	r := rand.New(rand.NewPCG(seed, 11))
	for range 1 + r.IntN(6) {
		n := uint64(1+r.IntN(700)) * hostarch.PageSize
		fr, err := mf.Allocate(n, pgalloc.AllocOpts{Kind: usage.Anonymous, Mode: pgalloc.AllocateUncommitted})
		if err != nil {
			t.Fatal(err)
		}
		for off := fr.Start; off < fr.End; {
			run := min(uint64(1+r.IntN(90))*hostarch.PageSize, fr.End-off)
			part := memmap.FileRange{Start: off, End: off + run}
			switch fill := bytes.Repeat([]byte{byte(1 + r.IntN(250))}, int(run)); r.IntN(4) {
			case 0: // never touched
			case 1:
				write(t, fd, fill, part.Start)
			case 2:
				write(t, fd, make([]byte, run), part.Start)
			case 3:
				write(t, fd, fill, part.Start)
				mf.Decommit(part)
			}
			off += run
		}
	}
	savedPages(t, mf, seed) // after it, pages are known to be there or not
	for range 3 {
		run := uint64(1+r.IntN(90)) * hostarch.PageSize
		off := uint64(r.IntN(400)) * hostarch.PageSize
		if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(run)); err != nil {
			t.Fatal(err)
		}
	}
	return savedPages(t, mf, seed)
}

// savedPages saves memory and returns what that writes.
func savedPages(t *testing.T, mf *pgalloc.MemoryFile, seed uint64) (content, meta []byte) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "pages.img")
	out, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	dup, err := unix.Dup(int(out.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	saver, err := pgalloc.StartAsyncPagesFileSave(stateio.NewPagesFileFDWriterDefault(int32(dup)), func(err error) { written <- err })
	if err != nil {
		t.Fatal(err)
	}
	var m bytes.Buffer
	if err := mf.SaveTo(t.Context(), &m, &pgalloc.SaveOpts{PagesFile: saver, ExcludeCommittedZeroPages: seed%2 == 0}); err != nil {
		t.Fatal(err)
	}
	saver.MemoryFilesDone()
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if content, err = os.ReadFile(name); err != nil {
		t.Fatal(err)
	}
	return content, m.Bytes()
}

func write(t *testing.T, fd int, b []byte, off uint64) {
	t.Helper()
	if n, err := unix.Pwrite(fd, b, int64(off)); err != nil || n != len(b) {
		t.Fatalf("%d of %d bytes: %v", n, len(b), err)
	}
}

func TestQuickSaveOfPages(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			content, meta := pages(t, seed)
			var quick, quickMeta []byte
			quickly(func() { quick, quickMeta = pages(t, seed) })
			if !bytes.Equal(quick, content) {
				t.Errorf("%d bytes of pages, not the %d that gVisor's own save writes", len(quick), len(content))
			}
			if !bytes.Equal(quickMeta, meta) {
				t.Errorf("%d bytes of metadata, not the %d that gVisor's own save writes", len(quickMeta), len(meta))
			}
		})
	}
}
