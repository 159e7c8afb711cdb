package pager

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"hearth/internal/blob"
	"hearth/internal/blob/chunkblob"
	"hearth/internal/blob/fileblob"
)

// archive packs memories as a node does, and lends them.
type archive struct {
	store *chunkblob.Store
	files *fileblob.Store
}

func newArchive(t *testing.T, key *chunkblob.Key) *archive {
	t.Helper()
	files, err := fileblob.Open(t.TempDir())
	must(t, err)
	store, err := chunkblob.New(files, files.Temp(), key)
	must(t, err)
	return &archive{store, files}
}

func (a *archive) pack(t *testing.T, f *os.File, like ...string) string {
	t.Helper()
	raw, err := os.ReadFile(f.Name())
	must(t, err)
	sum := sha256.Sum256(raw)
	name := hex.EncodeToString(sum[:])
	_, err = a.store.Pack(t.Context(), []blob.Source{{SHA256: name, Path: f.Name()}}, like)
	must(t, err)
	return name
}

// lend opens a packed memory for a pager.
func (a *archive) lend(t *testing.T, f *os.File, like ...string) Memory {
	t.Helper()
	name := a.pack(t, f, like...)
	loan, err := a.store.Lend(t.Context(), name)
	must(t, err)
	layout, err := os.CreateTemp(t.TempDir(), "layout")
	must(t, err)
	_, err = layout.Write(loan.Layout)
	must(t, err)
	m := Memory{File: layout, Pages: pagesOf(f), Packed: true, Packs: loan.Files}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// Layers that are packed, with a key and without, and ones that are plain lie over
// each other in any order. What the archive forgets meanwhile does not matter.
func TestPackedLayers(t *testing.T) {
	key, err := chunkblob.NewKey(bytes.Repeat([]byte{7}, chunkblob.KeyBytes))
	must(t, err)
	for name, key := range map[string]*chunkblob.Key{"plain": nil, "encrypted": key} {
		t.Run(name, func(t *testing.T) {
			a := newArchive(t, key)
			base := memoryFile(t, 1, func(int) bool { return true })
			second := memoryFile(t, 2, func(p int) bool { return p%3 == 0 })
			third := memoryFile(t, 3, func(p int) bool { return p > 500 })
			memory := append([]Memory{a.lend(t, base)}, plain(second)...)
			memory = append(memory, a.lend(t, third, a.pack(t, base)))
			g := newGuest(t)
			p := startPager(t, g, Setup{Memory: memory})
			_, err := a.store.Collect(t.Context(), func(string) bool { return false })
			must(t, err)
			for n := range allPages {
				want := content(1, n)
				switch {
				case n > 500: // zeros, too, though the archive has holes for them
					want = content(3, n)
				case n%3 == 0:
					want = content(2, n)
				}
				if !bytes.Equal(g.page(n), want) {
					t.Errorf("page %d has the wrong content", n)
				}
			}
			p.hangUp(t)
		})
	}
}

// The working set of the first machine from a packed memory is there for the next
// before it asks, and the rest of its chunks are not even read.
func TestPackedWorkingSet(t *testing.T) {
	a := newArchive(t, nil)
	memory := memoryFile(t, 1, func(int) bool { return true })
	record, err := os.Create(filepath.Join(t.TempDir(), "ws"))
	must(t, err)
	defer record.Close()
	g := newGuest(t)
	p := startPager(t, g, Setup{Memory: []Memory{a.lend(t, memory)}, Record: record})
	touched := []int{500, 4, 5, 301}
	for _, n := range touched {
		touch(g.page(n))
	}
	p.hangUp(t)
	again, err := os.Open(record.Name())
	must(t, err)
	defer again.Close()
	raw, err := io.ReadAll(again)
	must(t, err)
	set, err := ParseWorkingSet(raw)
	must(t, err)
	if want := []uint32{500, 4, 5, 301}; !slices.Equal(set.Pages, want) {
		t.Fatalf("recorded %v, want %v", set.Pages, want)
	}
	_, err = again.Seek(0, io.SeekStart)
	must(t, err)
	g = newGuest(t)
	p = startPager(t, g, Setup{Memory: []Memory{a.lend(t, memory)}, WorkingSet: again})
	for _, n := range touched {
		for !resident(t, g.page(n)) {
			runtime.Gosched()
		}
	}
	if resident(t, g.page(100)) {
		t.Error("page 100 is there, which was not in the working set")
	}
	p.hangUp(t)
}

// A pack that is damaged, or cut short under the pager's hands, ends the pager with
// the reason, and with it the machine.
func TestPackedDamage(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // which would wait for a thread that waits for its page
	for name, spoil := range map[string]func(path string) error{
		"flipped": func(path string) error {
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for i := 56; i < len(raw); i += 16 {
				raw[i] ^= 1
			}
			return os.WriteFile(path, raw, 0o600)
		},
		"torn": func(path string) error { return os.Truncate(path, 100) },
	} {
		t.Run(name, func(t *testing.T) {
			a := newArchive(t, nil)
			m := a.lend(t, memoryFile(t, 1, func(int) bool { return true }))
			g := newGuest(t)
			p := startPager(t, g, Setup{Memory: []Memory{m}})
			touch(g.page(0))
			path := m.Packs[0].Name()
			must(t, os.Chmod(path, 0o600))
			must(t, spoil(path))
			woken := sleeper(g, 400)
			wantDeath(t, p, "page 400 cannot be read: packed file")
			if said := p.said(t); !bytes.Contains([]byte(said), []byte("damaged")) {
				t.Errorf("it said %q", said)
			}
			woken(t)
		})
	}
	t.Run("layout", func(t *testing.T) {
		a := newArchive(t, nil)
		m := a.lend(t, memoryFile(t, 1, func(int) bool { return true }))
		must(t, m.File.Truncate(60))
		wantDeath(t, startPager(t, newGuest(t), Setup{Memory: []Memory{m}}), "layer 0: it is not what was written")
	})
}

// A source that does not answer ends the server within its patience, and a machine
// that ends is not held up by it.
func TestSourceThatHangs(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(16))
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	for name, patience := range map[string]time.Duration{"patience": time.Millisecond, "hang-up": 0} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t)
			gate, asked := make(chan struct{}), make(chan struct{})
			source := slowReader{memoryFile(t, 1, func(int) bool { return true }), gate}
			ours, theirs := pipe(t)
			s := NewServer(Config{Source: askedReader{source, asked}, Patience: patience}, g.uffd, g.regions)
			ends := make(chan error, 1)
			go func() { ends <- s.Run(int(ours.Fd())) }()
			touched := make(chan struct{})
			go func() {
				defer close(touched)
				runtime.LockOSThread()
				touch(g.page(7))
			}()
			<-asked
			if patience == 0 {
				must(t, theirs.Close())
				must(t, <-ends)
			} else if err := <-ends; err == nil || !bytes.Contains([]byte(err.Error()), []byte("does not answer: a page has not come for 1ms")) {
				t.Errorf("it ended with %v", err)
			}
			close(gate)
			<-touched // the read that came too late answers it, in a process that lives on
		})
	}
}

// askedReader tells when it is asked.
type askedReader struct {
	io.ReaderAt
	asked chan struct{}
}

func (r askedReader) ReadAt(p []byte, off int64) (int, error) {
	r.asked <- struct{}{}
	return r.ReaderAt.ReadAt(p, off)
}
