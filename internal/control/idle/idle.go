// Package idle finds running sandboxes that nobody uses, and has them paused.
//
// A sandbox is in use while a request to it is under way: an answer that still
// streams, as that of a command that somebody waits for, an open WebSocket, an
// upload. It is idle from the end of the last one on, or from its start, its
// resume or the start of the server, whichever is later. What runs inside without
// a request does not count: a background process, a terminal that nobody watches.
package idle

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"hearth/internal/control/routes"
	"hearth/internal/hearth"
)

// Watch looks at sandboxes again and again.
type Watch struct {
	Every  time.Duration
	Routes func() []routes.Route // of the sandboxes that run and have an Idle

	// Unused says since when no request for a sandbox has been under way, the zero
	// time if none was seen; false while one is.
	Unused func(id hearth.SandboxID) (since time.Time, unused bool)

	// Pause pauses a sandbox if it is still idle when its turn comes.
	Pause func(ctx context.Context, id hearth.SandboxID, still func() bool) error

	Now func() time.Time
	Log *slog.Logger
}

// patience is how long a sandbox is left alone that could not be paused.
const patience = time.Minute

// Run watches until ctx ends, and then waits for pauses under way.
func (w *Watch) Run(ctx context.Context) {
	if w.Unused == nil {
		return
	}
	began := w.Now()
	var work sync.WaitGroup
	defer work.Wait()
	var mu sync.Mutex
	later := map[hearth.SandboxID]time.Time{} // when to try again; zero: a pause is under way
	tick := time.NewTicker(w.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, r := range w.Routes() {
			mu.Lock()
			at, known := later[r.Sandbox]
			busy := known && (at.IsZero() || w.Now().Before(at))
			if !busy && w.idle(r, began) {
				later[r.Sandbox] = time.Time{}
				work.Go(func() {
					err := w.Pause(ctx, r.Sandbox, func() bool { return w.idle(r, began) })
					mu.Lock()
					defer mu.Unlock()
					delete(later, r.Sandbox)
					if err != nil && ctx.Err() == nil {
						w.Log.Warn("an idle sandbox could not be paused", "sandbox", r.Sandbox, "err", err)
						later[r.Sandbox] = w.Now().Add(patience)
					}
				})
			}
			mu.Unlock()
		}
	}
}

func (w *Watch) idle(r routes.Route, began time.Time) bool {
	since, unused := w.Unused(r.Sandbox)
	for _, t := range []time.Time{began, r.Since} {
		if t.After(since) {
			since = t
		}
	}
	return unused && w.Now().Sub(since) >= r.Idle
}
