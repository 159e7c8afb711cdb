package image

import (
	"runtime"
	"testing"

	"golang.org/x/sync/errgroup"
)

// TestToolsOutliveThreads ends threads while tools run that were started nearby.
func TestToolsOutliveThreads(t *testing.T) {
	var g errgroup.Group
	for range 16 {
		g.Go(func() error { return run(t.Context(), command{name: "sleep", args: []string{"0.3"}, pkg: "coreutils"}) })
		for range 16 {
			g.Go(func() error {
				runtime.LockOSThread() // and the thread ends with the goroutine
				return nil
			})
		}
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}
