package shelf_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"hearth/internal/blob"
	"hearth/internal/blob/blobtest"
	"hearth/internal/blob/chunkblob"
	"hearth/internal/blob/fileblob"
	"hearth/internal/driver"
	"hearth/internal/hearth"
	"hearth/internal/node/agent/shelf"
)

// watched is an archive that says who packs, and looks at what is collected.
type watched struct {
	blob.Archive
	t    *testing.T
	meet chan struct{} // not nil: a Pack goes on when another one is there, too

	trash string // a file that may go

	mu    sync.Mutex
	begun []string // files of all Packs but that
}

func (w *watched) Pack(ctx context.Context, files []blob.Source, like []string) (blob.Packed, error) {
	w.mu.Lock()
	for _, f := range files {
		if f.SHA256 != w.trash {
			w.begun = append(w.begun, f.SHA256)
		}
	}
	w.mu.Unlock()
	if w.meet != nil {
		select {
		case w.meet <- struct{}{}:
		case <-w.meet:
		case <-ctx.Done():
			return blob.Packed{}, context.Cause(ctx)
		}
	}
	return w.Archive.Pack(ctx, files, like)
}

func (w *watched) Collect(ctx context.Context, keep func(string) bool) (int64, error) {
	w.mu.Lock()
	for _, sum := range w.begun {
		if !keep(sum) {
			w.t.Errorf("file %.12s, of a snapshot that is being kept, is taken for garbage", sum)
		}
	}
	w.mu.Unlock()
	return w.Archive.Collect(ctx, keep)
}

func watchedShelf(t *testing.T, meet chan struct{}) (*shelf.Shelf, *watched) {
	t.Helper()
	dir := blobtest.TempDir(t)
	plain, err := fileblob.Open(filepath.Join(dir, "plain"))
	must(t, err)
	packs, err := fileblob.Open(filepath.Join(dir, "packs"))
	must(t, err)
	archive, err := chunkblob.New(packs, packs.Temp(), nil)
	must(t, err)
	w := &watched{Archive: archive, t: t, meet: meet}
	return shelf.New(plain).WithArchive(shelf.Packing{Archive: w, Cache: 1 << 30, AtOnce: true, Log: slog.New(slog.DiscardHandler)}), w
}

// TestTwoArePackedAtOnce: with two processors the second of two snapshots that are
// packed as they are kept does not wait for the first.
func TestTwoArePackedAtOnce(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	s, _ := watchedShelf(t, make(chan struct{}))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var all sync.WaitGroup
	for i := range 2 {
		c := checkpoint(t, map[string]string{"memory": string(blobtest.Noise(50_000, uint64(i)))})
		all.Go(func() {
			if _, err := s.Put(ctx, "o", hearth.Snapshot{ID: hearth.SnapshotID(fmt.Sprint("s", i))}, c); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// slow is an archive whose Packs say that they begin, and wait until they may.
type slow struct {
	blob.Archive
	begin, may chan struct{}
}

func (s *slow) Pack(ctx context.Context, files []blob.Source, like []string) (blob.Packed, error) {
	s.begin <- struct{}{}
	<-s.may
	return s.Archive.Pack(ctx, files, like)
}

// TestTidyWaitsForNobody: without garbage Tidy does not wait for a snapshot that is
// being packed, and so does not hold up those that are kept after it.
func TestTidyWaitsForNobody(t *testing.T) {
	s, w := watchedShelf(t, nil)
	must(t, s.Tidy(t.Context())) // what an earlier process left may be garbage
	pause := &slow{w.Archive, make(chan struct{}), make(chan struct{})}
	w.Archive = pause
	c := checkpoint(t, map[string]string{"memory": string(blobtest.Noise(50_000, 1))})
	var all sync.WaitGroup
	all.Go(func() {
		if _, err := s.Put(t.Context(), "o", hearth.Snapshot{ID: "s1"}, c); err != nil {
			t.Error(err)
		}
	})
	<-pause.begin
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // it would wait for ever
	defer cancel()
	if err := s.Tidy(ctx); err != nil {
		t.Error(err)
	}
	close(pause.may)
	all.Wait()
}

// TestNothingNewIsGarbage keeps snapshots on all processors while the garbage of
// removed ones is collected again and again.
func TestNothingNewIsGarbage(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	s, w := watchedShelf(t, nil)
	trash := blobtest.Noise(1000, 1000)
	w.trash = blobtest.NewSource(t, trash).SHA256
	ctx, stop := context.WithCancel(t.Context())
	var collector, all sync.WaitGroup
	collector.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			id := hearth.SnapshotID(fmt.Sprint("gone", i))
			_, err := s.Put(t.Context(), "o", hearth.Snapshot{ID: id}, checkpoint(t, map[string]string{"memory": string(trash)}))
			if err := errors.Join(err, s.Remove(t.Context(), id), s.Tidy(t.Context())); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for i := range 4 {
		var list []*driver.Checkpoint
		for k := range 6 {
			list = append(list, checkpoint(t, map[string]string{"memory": string(blobtest.Noise(300_000, uint64(10*i+k)))}))
		}
		all.Go(func() {
			for k, c := range list {
				id := hearth.SnapshotID(fmt.Sprintf("s%d-%d", i, k))
				if _, err := s.Put(t.Context(), "o", hearth.Snapshot{ID: id}, c); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	stop()
	collector.Wait()
}
