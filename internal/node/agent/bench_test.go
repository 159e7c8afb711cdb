package agent_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"hearth/internal/node"
	"hearth/internal/node/agent"
)

// BenchmarkWarmStart is what the agent itself adds to a thaw and an Init: the
// fake driver takes no time.
func BenchmarkWarmStart(b *testing.B) {
	w := newWorld(b)
	a := w.open(agent.Config{PoolCeiling: 1 << 20, PoolMemory: 1 << 40})
	snap := w.warm(a)
	if err := a.Keep(b.Context(), []node.Pool{{Build: w.request().Build, Snapshot: *snap, Floor: b.N}}); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	var ran sync.WaitGroup
	ran.Go(func() { _ = a.Run(ctx) })
	for a.Stats().Pooled < b.N {
		if ctx.Err() != nil {
			b.Fatal(ctx.Err())
		}
	}
	cancel()
	ran.Wait()
	b.ResetTimer()
	steps := map[string]time.Duration{}
	for range b.N {
		req := w.request()
		req.Restore = snap
		w.start(a, req)
		for _, s := range a.Steps(req.Sandbox.ID) {
			steps[s.Name] += s.Took
		}
	}
	b.StopTimer()
	for name, took := range steps {
		b.ReportMetric(float64(took.Microseconds())/float64(b.N), name+"-µs/op")
	}
	if s := a.Stats(); s.Warm != int64(b.N) {
		b.Fatalf("%d of %d starts were warm", s.Warm, b.N)
	}
	w.shutdown(a)
}
