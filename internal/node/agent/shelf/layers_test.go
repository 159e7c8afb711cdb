package shelf_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"hearth/internal/blob/blobtest"
	"hearth/internal/blob/fileblob"
	"hearth/internal/hearth"
	"hearth/internal/node/agent/shelf"
)

const layerSize = 4 << 20

// putLayer stores a layer and returns its key and its file.
func putLayer(t *testing.T, store *fileblob.Store, seed uint64) (key, file string) {
	t.Helper()
	src := blobtest.NewSource(t, blobtest.Noise(layerSize, seed))
	key = "layers/" + src.SHA256
	if err := store.Adopt(t.Context(), key, src.Path); err != nil {
		t.Fatal(err)
	}
	file, err := store.Path(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return key, file
}

// damage changes a file in place; the time of its change stays.
func damage(t *testing.T, file string, change func([]byte) []byte) {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, change(raw), 0o400); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(file, time.Time{}, info.ModTime()); err != nil {
		t.Fatal(err)
	}
}

func flipMiddle(raw []byte) []byte {
	raw[len(raw)/2] ^= 1
	return raw
}

// wantDamaged fails unless a layer is refused by its name.
func wantDamaged(t *testing.T, s *shelf.Shelf, key, what string) {
	t.Helper()
	files, err := s.Layers(t.Context(), []string{key})
	if hearth.KindOf(err) != hearth.FailedPrecondition || !strings.Contains(err.Error(), key+" is damaged: "+what) ||
		!strings.Contains(err.Error(), "it was not started") {
		t.Errorf("got %v, %v; want it to say %q", files, err, what)
	}
}

// bytesRead is what this process has read from files so far. No test of the package
// runs beside another.
func bytesRead(t *testing.T) (n int64) {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/io")
	if err == nil {
		_, err = fmt.Fscanf(bytes.NewReader(raw), "rchar: %d", &n)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// wantRead fails unless do reads so many layers.
func wantRead(t *testing.T, layers int64, do func()) {
	t.Helper()
	before := bytesRead(t)
	do()
	if got := bytesRead(t) - before; got < layers*layerSize || got > layers*layerSize+layerSize/2 {
		t.Errorf("%d bytes were read, want %d layers of %d", got, layers, layerSize)
	}
}

func TestLayersAreReadOnce(t *testing.T) {
	s, store := newShelf(t)
	a, fileA := putLayer(t, store, 1)
	b, fileB := putLayer(t, store, 2)
	look := func() {
		files, err := s.Layers(t.Context(), []string{a, b})
		if err != nil || len(files) != 2 || files[0] != fileA || files[1] != fileB {
			t.Errorf("got %v, %v", files, err)
		}
	}
	wantRead(t, 2, look)
	wantRead(t, 0, look)
	if err := os.Chtimes(fileB, time.Time{}, time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	wantRead(t, 1, look) // it looks different, and is not
	wantRead(t, 0, look)
	s = shelf.New(store)
	wantRead(t, 2, look) // another process believes nothing
}

func TestLayersAreReadOnceByAll(t *testing.T) {
	s, store := newShelf(t)
	key, _ := putLayer(t, store, 1)
	wantRead(t, 1, func() {
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				if _, err := s.Layers(t.Context(), []string{key}); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	})
}

func TestDamagedLayerIsRefused(t *testing.T) {
	for name, change := range map[string]func([]byte) []byte{
		"flipped": flipMiddle,
		"short":   func(raw []byte) []byte { return raw[:len(raw)-1] },
		"empty":   func([]byte) []byte { return nil },
		"longer":  func(raw []byte) []byte { return append(raw, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			s, store := newShelf(t)
			key, file := putLayer(t, store, 1)
			whole, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			damage(t, file, change)
			for range 2 { // a refusal is no proof
				wantDamaged(t, s, key, "its file")
			}
			damage(t, file, func([]byte) []byte { return whole })
			if _, err := s.Layers(t.Context(), []string{key}); err != nil {
				t.Errorf("it is whole again, and looks as it did: %v", err)
			}
			if name == "flipped" {
				return // found by the next process, for it looks the same: docs/ARCHITECTURE.md
			}
			damage(t, file, change)
			wantDamaged(t, s, key, "its file")
		})
	}
}

// TestRotIsFoundByTheNextProcess: what changes without a trace is not seen by the
// one that has read the file.
func TestRotIsFoundByTheNextProcess(t *testing.T) {
	s, store := newShelf(t)
	key, file := putLayer(t, store, 1)
	if _, err := s.Layers(t.Context(), []string{key}); err != nil {
		t.Fatal(err)
	}
	damage(t, file, flipMiddle)
	wantRead(t, 0, func() {
		if _, err := s.Layers(t.Context(), []string{key}); err != nil {
			t.Error(err)
		}
	})
	wantDamaged(t, shelf.New(store), key, "its file, of 4194304 bytes, is not what was written")
}

func TestLayerThatIsNoneIsRefused(t *testing.T) {
	s, store := newShelf(t)
	key, file := putLayer(t, store, 1)
	if err := store.Put(t.Context(), "layers/root", strings.NewReader("x"), 1); err != nil {
		t.Fatal(err)
	}
	wantDamaged(t, s, "layers/root", "its file") // nothing says what it should be
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	wantDamaged(t, s, key, "its file is gone")
	if err := os.Symlink("/proc/self/mem", file); err != nil { // its first page is not there: EIO
		t.Fatal(err)
	}
	wantDamaged(t, s, key, "the disk does not return its file")
}

func TestLayersCanBeCancelled(t *testing.T) {
	s, store := newShelf(t)
	key, _ := putLayer(t, store, 1)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := hearth.Errorf(hearth.Canceled, "nobody waits")
	cancel(why)
	wantRead(t, 0, func() {
		if _, err := s.Layers(ctx, []string{key}); hearth.KindOf(err) != hearth.Canceled {
			t.Errorf("got %v", err)
		}
	})
	wantRead(t, 1, func() {
		if _, err := s.Layers(t.Context(), []string{key}); err != nil {
			t.Error(err)
		}
	})
}

// TestWaitForALayerCanBeCancelled: while another file is being read.
func TestWaitForALayerCanBeCancelled(t *testing.T) {
	s, store := newShelf(t)
	key, _ := putLayer(t, store, 1)
	done := shelf.Reading(s)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := s.Layers(ctx, []string{key}); err == nil || ctx.Err() == nil {
		t.Errorf("got %v", err)
	}
	done()
	if _, err := s.Layers(t.Context(), []string{key}); err != nil {
		t.Error(err)
	}
}

// TestImportedLayerIsNotReadAgain: it was compared as it came.
func TestImportedLayerIsNotReadAgain(t *testing.T) {
	from := newTraveller(t)
	key, _ := putLayer(t, from.plain, 3)
	from.build.Layers = []string{key}
	raw := from.export()
	to, store := newShelf(t)
	tmp := blobtest.TempDir(t)
	if _, _, err := to.Import(t.Context(), shelf.Arrival{ID: "s9", Owner: "guest", Limit: 8 << 20, Tmp: tmp}, bytes.NewReader(raw)); err != nil {
		t.Fatal(err)
	}
	wantRead(t, 0, func() {
		if _, err := to.Layers(t.Context(), []string{key}); err != nil {
			t.Error(err)
		}
	})
	if _, _, err := to.Import(t.Context(), shelf.Arrival{ID: "s10", Owner: "guest", Limit: 8 << 20, Tmp: tmp}, bytes.NewReader(raw)); err != nil {
		t.Fatal(err)
	}
	file, err := store.Path(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	damage(t, file, flipMiddle)
	next := shelf.New(store)
	if _, _, err := next.Import(t.Context(), shelf.Arrival{ID: "s11", Owner: "guest", Limit: 8 << 20, Tmp: tmp}, bytes.NewReader(raw)); err != nil {
		t.Fatal(err)
	}
	wantDamaged(t, next, key, "its file") // it was there already, and is not what came
}
