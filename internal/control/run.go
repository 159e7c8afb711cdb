package control

import (
	"context"
	"errors"
	"sync"
	"time"

	"hearth/internal/control/follow"
	"hearth/internal/control/lanes"
	"hearth/internal/hearth"
	"hearth/internal/node"
)

// Bounds of Run's own work.
const (
	drain        = 20 * time.Second // for calls under way when Run is told to end
	killsAtOnce  = 64
	pausesAtOnce = 8
	pauseRetry   = 30 * time.Second // after a pause at a timeout failed
	purgeEvery   = 10 * time.Minute
	dueBatch     = 1000
)

// gates bound how much of each is done at once.
type gates struct {
	kills, pauses, settles chan struct{}
}

func newGates() gates {
	return gates{
		make(chan struct{}, killsAtOnce), make(chan struct{}, pausesAtOnce), make(chan struct{}, settlers),
	}
}

// Run enforces timeouts, follows the nodes' events, samples usage and settles
// what is unclear, until ctx ends; then it waits a while for calls under way. No
// method may be called after Run has returned.
func (c *Controller) Run(ctx context.Context) error {
	var loops sync.WaitGroup
	for _, loop := range []func(context.Context){c.enforce, c.follow, c.sample, c.tidy, c.rest} {
		loops.Go(func() { loop(ctx) })
	}
	loops.Wait()
	closing := hearth.Errorf(hearth.Unavailable, "the server is shutting down")
	timer := time.AfterFunc(drain, func() { c.end(closing) })
	defer timer.Stop()
	c.work.Wait()
	c.end(closing)
	return nil
}

// enforce acts on timeouts as they fall due.
func (c *Controller) enforce(ctx context.Context) {
	for ctx.Err() == nil {
		due, next := c.due.Take(c.clock())
		for _, id := range due {
			c.work.Go(func() { c.expire(ctx, id) })
		}
		var alarm <-chan time.Time
		var timer *time.Timer
		if !next.IsZero() {
			timer = time.NewTimer(max(next.Sub(c.clock()), 0))
			alarm = timer.C
		}
		select {
		case <-ctx.Done():
		case <-c.due.Changed():
		case <-alarm:
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

// errLater says that a sandbox is not due any more.
var errLater = errors.New("not due yet")

// expire enforces one timeout, if the store agrees that it has passed.
func (c *Controller) expire(ctx context.Context, id hearth.SandboxID) {
	sb, err := c.store.Sandbox(ctx, id)
	if err != nil {
		c.expireLater(ctx, id, err)
		return
	}
	gate := c.gates.kills
	if sb.OnTimeout == hearth.PauseOnTimeout {
		gate = c.gates.pauses
	}
	select {
	case gate <- struct{}{}:
		defer func() { <-gate }()
	case <-ctx.Done():
		return
	}
	_, _, err = c.lanes.Share(ctx, lanes.Key{ID: id, Op: "expire"}, func(ctx context.Context) (*hearth.Sandbox, func(context.Context), error) {
		sb, err := c.expireNow(ctx, id)
		return sb, nil, err
	})
	if err != nil {
		c.expireLater(ctx, id, err)
	}
}

// expireLater notes a timeout that could not be enforced yet.
func (c *Controller) expireLater(ctx context.Context, id hearth.SandboxID, err error) {
	switch {
	case missing(err), ctx.Err() != nil, errors.Is(err, errLater):
		return
	}
	c.log.Warn("timeout could not be enforced yet", "sandbox", id, "err", err)
	c.due.Note(id, c.clock().Add(c.limits.Settle))
}

// expireNow holds the sandbox's lock.
func (c *Controller) expireNow(ctx context.Context, id hearth.SandboxID) (*hearth.Sandbox, error) {
	sb, err := c.store.Sandbox(ctx, id)
	if err != nil || sb.State != hearth.Running {
		return sb, err
	}
	now := c.clock()
	due := func(s *hearth.Sandbox) error {
		if s.EndsAt.After(now) {
			c.due.Set(s)
			return errLater
		}
		return nil
	}
	if err := due(sb); err != nil {
		return nil, err
	}
	if sb.OnTimeout != hearth.PauseOnTimeout {
		return c.stop(ctx, sb, "its timeout was reached", due)
	}
	paused, err := c.pause(ctx, sb, unasked(sb), due)
	if err == nil || errors.Is(err, errLater) {
		return paused, err
	}
	return c.cannotPause(ctx, id, err)
}

// cannotPause decides what becomes of a sandbox whose pause at its timeout
// failed: it runs on until one succeeds, for its state is all there is of it. It
// ends only where none ever can.
func (c *Controller) cannotPause(ctx context.Context, id hearth.SandboxID, cause error) (*hearth.Sandbox, error) {
	sb, err := c.store.Sandbox(ctx, id)
	if err != nil || sb.State != hearth.Running {
		return sb, err
	}
	if kind := hearth.KindOf(cause); kind != hearth.Unimplemented && kind != hearth.FailedPrecondition {
		c.log.Warn("sandbox could not be paused at its timeout and runs on", "sandbox", id, "again", pauseRetry, "err", cause)
		return sb, nil // its end was put off by pauseRetry
	}
	return c.stop(ctx, sb, "its timeout was reached and it could not be paused: "+hearth.Shown(cause), nil)
}

// tidy settles what is unclear, looks for timeouts that were missed, and
// forgets sandboxes that stopped long ago.
func (c *Controller) tidy(ctx context.Context) {
	tick := time.NewTicker(c.limits.Settle)
	defer tick.Stop()
	var purged time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, id := range c.unclear.Take() {
			c.work.Go(func() {
				c.gates.settles <- struct{}{}
				defer func() { <-c.gates.settles }()
				c.settleLater(ctx, id, nil)
			})
		}
		c.history.Retry(ctx)
		now := c.clock()
		missed, err := c.store.DueSandboxes(ctx, now.Add(-c.limits.Settle), dueBatch)
		for _, id := range missed {
			c.due.Note(id, now)
		}
		due := []hearth.SnapshotStatus{hearth.SnapshotDropped}
		if err == nil && now.Sub(purged) >= purgeEvery {
			purged, due = now, append(due, hearth.SnapshotGone)
			err = errors.Join(c.store.PurgeSandboxes(ctx, now.Add(-c.limits.Retention)), c.history.Sweep(ctx))
		}
		if err == nil {
			err = c.archive.Sweep(ctx, due...)
		}
		if err != nil && ctx.Err() == nil {
			c.log.Warn("the store could not be tidied", "err", err)
		}
	}
}

// follow listens to every node there is, and to those that join.
func (c *Controller) follow(ctx context.Context) {
	f := follow.Follower{
		Every: c.limits.Settle, Nodes: c.nodes, Lost: c.recount, Log: c.log,
		Stopped: func(at hearth.NodeID, ev node.Event) { c.work.Go(func() { c.died(ctx, at, ev) }) },
	}
	f.Run(ctx)
}

// recount compares rows and machines after a node's events were lost.
func (c *Controller) recount(ctx context.Context, id hearth.NodeID) {
	c.log.Warn("events of a node may be lost, comparing its machines with the store", "node", id)
	if err := c.Reconcile(ctx); err != nil && ctx.Err() == nil {
		c.log.Warn("rows and machines could not be compared", "node", id, "err", err)
	}
}

// died stops a running sandbox whose machine ended by itself. What a call is
// changing at the moment is that call's to find out.
func (c *Controller) died(ctx context.Context, at hearth.NodeID, ev node.Event) {
	err := c.bury(ctx, at, ev)
	if err != nil && !missing(err) && ctx.Err() == nil {
		c.unclear.Add(ev.ID)
		c.log.Warn("a dead machine's sandbox is not stopped yet", "sandbox", ev.ID, "err", err)
	}
}

func (c *Controller) bury(ctx context.Context, at hearth.NodeID, ev node.Event) error {
	unlock, err := c.lanes.Lock(ctx, ev.ID)
	if err != nil {
		return err
	}
	defer unlock()
	sb, err := c.store.Sandbox(ctx, ev.ID)
	if err != nil || sb.State != hearth.Running || sb.Node != at || ev.Generation != 0 && ev.Generation != sb.Launch {
		return err
	}
	if ev.Generation == 0 { // it does not say which machine
		if m, err := c.machine(ctx, sb); err != nil || m != nil {
			return err
		}
	}
	c.log.Info("a sandbox's machine ended", "sandbox", sb.ID, "node", at, "reason", ev.Reason)
	_, err = c.stop(context.WithoutCancel(ctx), sb, ev.Reason, nil)
	return err
}
