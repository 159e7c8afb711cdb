package tenure

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func take(t *testing.T, dir string, yield func()) *Tenure {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	held, err := Take(ctx, dir, yield)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(held.Close)
	return held
}

func TestThereIsOneOwner(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var owners, most atomic.Int32
	own := func() {
		most.Store(max(most.Load(), owners.Add(1)))
	}
	for range 5 {
		take(t, dir, func() { owners.Add(-1) })
		own()
	}
	if owners.Load() != 1 || most.Load() != 1 {
		t.Errorf("%d owners at the end, %d at once", owners.Load(), most.Load())
	}
}

func TestManyAtOnce(t *testing.T) {
	dir := t.TempDir()
	var yielded atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() { take(t, dir, func() { yielded.Add(1) }) })
	}
	all.Wait()
	last := take(t, dir, func() { yielded.Add(1) })
	if yielded.Load() != 8 {
		t.Errorf("%d of 8 let go", yielded.Load())
	}
	last.Close()
	last.Close()
	if yielded.Load() != 8 {
		t.Error("who closed was asked to let go")
	}
}

// A dead owner's socket is there, and nobody listens.
func TestTheDeadAreSucceeded(t *testing.T) {
	dir := t.TempDir()
	first := take(t, dir, func() { t.Error("asked to let go after its end") })
	first.Close()
	if _, err := os.Stat(filepath.Join(dir, socketName)); err != nil {
		t.Fatalf("no socket is left to succeed: %v", err)
	}
	take(t, dir, func() {})
}

func TestAnOwnerThatDoesNotLetGo(t *testing.T) {
	dir := t.TempDir()
	release := make(chan struct{})
	defer close(release)
	held, err := Take(t.Context(), dir, func() { <-release })
	if err != nil {
		t.Fatal(err)
	}
	_ = held
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := Take(ctx, dir, func() {}); err == nil {
		t.Error("two owners")
	}
}

func TestNoDirectory(t *testing.T) {
	if _, err := Take(t.Context(), filepath.Join(t.TempDir(), "gone"), func() {}); err == nil {
		t.Error("no error")
	}
}
