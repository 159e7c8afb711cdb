// Package follow listens to what happens on nodes.
package follow

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"hearth/internal/control/retry"
	"hearth/internal/hearth"
	"hearth/internal/node"
)

// Nodes finds the services that speak for hosts.
type Nodes interface {
	Node(id hearth.NodeID) (node.Service, error)
	Statuses() []*hearth.NodeStatus
}

// Follower listens to every node there is, and to those that join.
type Follower struct {
	Every time.Duration // between looks for nodes that joined
	Nodes Nodes
	Log   *slog.Logger

	Stopped func(at hearth.NodeID, ev node.Event)       // a machine ended by itself; quick
	Lost    func(ctx context.Context, at hearth.NodeID) // events of a node may have been missed
}

// Run listens until ctx ends.
func (f *Follower) Run(ctx context.Context) {
	var listeners sync.WaitGroup
	defer listeners.Wait()
	known := map[hearth.NodeID]bool{}
	tick := time.NewTicker(f.Every)
	defer tick.Stop()
	for {
		for _, s := range f.Nodes.Statuses() {
			if !known[s.ID] {
				known[s.ID] = true
				listeners.Go(func() { f.listen(ctx, s.ID) })
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// listen follows one node's events, again and again.
func (f *Follower) listen(ctx context.Context, id hearth.NodeID) {
	lost := false
	for n := 5; ctx.Err() == nil; n++ {
		svc, err := f.Nodes.Node(id)
		if err == nil {
			if lost {
				f.Lost(ctx, id)
			}
			if f.hear(ctx, id, svc) {
				n = 5
			}
			lost = true
		}
		if !retry.Wait(ctx, n) {
			return
		}
	}
}

// hear hands on a node's events until they end. It reports whether any came.
func (f *Follower) hear(ctx context.Context, id hearth.NodeID, svc node.Service) (any bool) {
	for ev, err := range svc.Events(ctx) {
		switch {
		case err == nil:
			any = true
			if ev.State == hearth.Stopped {
				f.Stopped(id, ev)
			}
		case ctx.Err() != nil:
			return any
		case hearth.KindOf(err) == hearth.Aborted: // some were lost, more follow
			f.Lost(ctx, id)
		default:
			f.Log.Warn("events of a node ended", "node", id, "err", err)
			return any
		}
	}
	return any
}
