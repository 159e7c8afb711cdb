package control

import (
	"context"
	"sync"
	"time"

	"hearth/internal/control/wish"
	"hearth/internal/hearth"
	"hearth/internal/node"
)

// createFrom makes a sandbox that begins as a snapshot is.
func (c *Controller) createFrom(ctx context.Context, req CreateRequest, ref wish.Ref) (*hearth.Sandbox, error) {
	if err := c.check(&req); err != nil {
		return nil, err
	}
	snap, err := c.archive.Take(ctx, req.Team, ref)
	if err != nil {
		return nil, err
	}
	defer c.archive.Let(context.WithoutCancel(ctx), snap.ID)
	if req.Driver != "" && req.Driver != snap.Driver {
		return nil, hearth.Errorf(hearth.InvalidArgument, "driver: snapshot '%s' can only be started by %s", ref.Name, snap.Driver)
	}
	return c.startFrom(ctx, &hearth.Sandbox{
		Team: req.Team, Alias: snap.Alias, Wanted: req.Driver, Network: req.Network, Env: req.Env, Metadata: req.Metadata, Open: req.Open,
		OnTimeout: req.OnTimeout, AutoResume: req.AutoResume, Lifecycle: req.Lifecycle, Timeout: req.Timeout,
	}, snap)
}

// startFrom makes a new sandbox of a snapshot that the caller holds; the rest of
// sb says what its owner wants. After an error nothing of it is left but a
// stopped row.
func (c *Controller) startFrom(ctx context.Context, sb *hearth.Sandbox, snap *hearth.Snapshot) (*hearth.Sandbox, error) {
	b, err := c.store.Build(ctx, snap.Build)
	if err != nil {
		return nil, gone(err, "template's build")
	}
	now := c.clock()
	sb.ID, sb.State, sb.Generation, sb.Launch = hearth.NewSandboxID(), hearth.Creating, 1, 1
	sb.Lifecycle.Steps, sb.Lifecycle.DropsMemory = 0, false // of the original's own life
	sb.Template, sb.Build, sb.Resources, sb.Head = snap.Template, snap.Build, snap.Resources, snap.ID
	sb.CreatedAt, sb.StartedAt, sb.EndsAt = now, now, now.Add(sb.Timeout)
	if err := c.table.Admit(c.route(sb), c.limits.Sandboxes); err != nil {
		return nil, err
	}
	unlock, err := c.lanes.Lock(ctx, sb.ID)
	if err != nil {
		c.table.Remove(sb.ID)
		return nil, err
	}
	defer unlock()
	sb.Driver = snap.Driver // only that one can read it
	if sb.Node, _, err = c.place(sb, []hearth.SnapshotID{snap.ID}); err == nil {
		err = c.enter(ctx, sb)
	}
	if err != nil {
		c.table.Remove(sb.ID)
		return nil, err
	}
	return c.launch(ctx, sb, node.StartRequest{Build: *b, Restore: snap, Token: c.access(sb)})
}

// MaxForks is how many sandboxes one call can fork.
const MaxForks = 100

// Forked is one of the sandboxes that Fork was asked for, or why there is none.
type Forked struct {
	Sandbox *hearth.Sandbox
	Err     error
}

// Fork makes count sandboxes that begin as a running or paused one is at this
// moment, with IDs and tokens of their own and everything else as the original's
// owner asked for it. A running original stands still for one checkpoint, a
// paused one stays paused. The forks that started are returned beside the errors
// of those that did not; the error is for none at all.
func (c *Controller) Fork(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, timeout time.Duration, count int) ([]Forked, error) {
	if count < 1 || count > MaxForks {
		return nil, hearth.Errorf(hearth.InvalidArgument, "count must be within 1 to %d", MaxForks)
	}
	if c.limits.Sandboxes > 0 && count > c.limits.Sandboxes {
		return nil, hearth.Errorf(hearth.InvalidArgument, "count %d is more than the %d sandboxes that may run at once", count, c.limits.Sandboxes)
	}
	if err := c.checkTimeout(timeout); err != nil {
		return nil, err
	}
	sb, snap, err := c.forkable(ctx, team, id)
	if err != nil {
		return nil, err
	}
	defer c.endFork(ctx, snap)
	list := make([]Forked, count)
	var all sync.WaitGroup
	for i := range list {
		all.Go(func() {
			list[i].Sandbox, list[i].Err = c.startFrom(ctx, &hearth.Sandbox{
				Team: team, Alias: sb.Alias, Wanted: sb.Wanted, Network: sb.Network, Env: sb.Env, Metadata: sb.Metadata, Open: sb.Open,
				OnTimeout: sb.OnTimeout, AutoResume: sb.AutoResume, Lifecycle: sb.Lifecycle, Timeout: timeout,
			}, snap)
		})
	}
	all.Wait()
	return list, nil
}

// forkable returns what a sandbox is at this moment, held.
func (c *Controller) forkable(ctx context.Context, team hearth.TeamID, id hearth.SandboxID) (*hearth.Sandbox, *hearth.Snapshot, error) {
	sb, err := c.row(ctx, team, id)
	if err != nil {
		return nil, nil, err
	}
	switch sb.State {
	case hearth.Running:
		want := hearth.Snapshot{ID: hearth.NewSnapshotID(), Kind: hearth.ForkSnapshot}
		c.archive.Hold(want.ID)
		snap, err := c.take(ctx, team, id, want)
		if err != nil {
			c.archive.Let(ctx, want.ID)
			return nil, nil, err
		}
		return sb, snap, nil
	case hearth.Paused:
		c.archive.Hold(sb.Snapshot)
		snap, err := c.store.Snapshot(ctx, sb.Snapshot)
		if err == nil && snap.Status == hearth.SnapshotReady {
			// What its sandbox alone knows of it.
			snap.Sandbox, snap.Template, snap.Resources = sb.ID, sb.Template, sb.Resources
			return sb, snap, nil
		}
		c.archive.Let(ctx, sb.Snapshot)
		if err != nil && !missing(err) {
			return nil, nil, err
		}
		return nil, nil, hearth.Errorf(hearth.FailedPrecondition, "Sandbox '%s' cannot be forked: it is being resumed", id)
	}
	return nil, nil, hearth.Errorf(hearth.FailedPrecondition, "Sandbox '%s' cannot be forked: it is %s", id, sb.State)
}

// endFork lets go of what forks were started from. What was written for them
// alone is not kept.
func (c *Controller) endFork(ctx context.Context, snap *hearth.Snapshot) {
	ctx = context.WithoutCancel(ctx)
	if snap.Kind == hearth.ForkSnapshot {
		c.archive.Discard(ctx, snap.ID)
	}
	c.archive.Let(ctx, snap.ID)
}
