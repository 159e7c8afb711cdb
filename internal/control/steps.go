package control

import (
	"context"
	"errors"

	"hearth/internal/control/retry"
	"hearth/internal/hearth"
	"hearth/internal/node"
)

// This file holds the steps that several calls are made of. The caller of each
// holds the sandbox's lock, has just read sb, and passes a context that does
// not end with a client's request.

// guard looks at the newest row at the moment of the write that begins a step,
// and may still call it off. nil never does.
type guard func(*hearth.Sandbox) error

func (g guard) allows(s *hearth.Sandbox) error {
	if g == nil {
		return nil
	}
	return g(s)
}

// stop ends a sandbox in any state: machine, snapshot, row. What it cannot end
// now is ended later; the row says stopping until then.
func (c *Controller) stop(ctx context.Context, sb *hearth.Sandbox, reason string, g guard) (*hearth.Sandbox, error) {
	if sb.State != hearth.Stopping {
		now := c.clock()
		moved, err := c.move(ctx, sb, hearth.Stopping, func(s *hearth.Sandbox) error {
			if err := g.allows(s); err != nil {
				return err
			}
			s.StopReason, s.EndsAt = reason, now
			return nil
		})
		if err != nil {
			return nil, c.doubt(sb, err)
		}
		sb = moved
	}
	out, err := c.clear(ctx, sb)
	if err != nil {
		return nil, c.doubt(sb, err)
	}
	return out, nil
}

// doubt notes that nobody knows how a sandbox's last step ended, unless err says
// that it did not begin.
func (c *Controller) doubt(sb *hearth.Sandbox, err error) error {
	if !errors.Is(err, errLater) {
		c.unclear.Add(sb.ID)
	}
	return err
}

// clear frees what a stopping sandbox still holds.
func (c *Controller) clear(ctx context.Context, sb *hearth.Sandbox) (*hearth.Sandbox, error) {
	if err := c.halt(ctx, sb, sb.StopReason); err != nil {
		return nil, err
	}
	if err := c.dropFiles(ctx, sb.Snapshot); err != nil {
		return nil, err
	}
	stopped, err := c.move(ctx, sb, hearth.Stopped, func(s *hearth.Sandbox) error {
		s.Node, s.Snapshot = "", ""
		return nil
	})
	if err == nil {
		if sb.Lifecycle.Steps > 0 {
			c.history.End(ctx, sb.Team, sb.ID)
		}
		c.archive.Tidy(ctx, sb.Head) // it may have been the last to come after it
	}
	return stopped, err
}

// halt ends the sandbox's machine if it has one.
func (c *Controller) halt(ctx context.Context, sb *hearth.Sandbox, reason string) error {
	if sb.Node == "" {
		return nil
	}
	svc, err := c.nodes.Node(sb.Node)
	if missing(err) {
		return nil // the node has left; should it come back, its machines are strays
	}
	if err != nil {
		return err
	}
	ctx, cancel := c.detached(ctx, c.limits.StoreTimeout)
	defer cancel()
	return retry.Do(ctx, 4, func() error { return svc.Stop(ctx, sb.ID, reason) })
}

// dropFiles removes a snapshot that was a sandbox's alone, files before row, so
// that none is forgotten. While forks start from it that waits.
func (c *Controller) dropFiles(ctx context.Context, id hearth.SnapshotID) error {
	if id == "" {
		return nil
	}
	ctx, cancel := c.detached(ctx, c.limits.StoreTimeout)
	defer cancel()
	snap, err := c.store.Snapshot(ctx, id)
	switch {
	case err == nil && snap.Kind != hearth.OwnedSnapshot:
		return nil // a sandbox was only taken back to it
	case err == nil && c.archive.Held(id):
		return c.archive.Drop(ctx, id)
	case err != nil && !missing(err):
		return err
	}
	return c.archive.Erase(ctx, id)
}

// forget removes the snapshot that a running sandbox was resumed from.
func (c *Controller) forget(ctx context.Context, sb *hearth.Sandbox) {
	if sb == nil || sb.State != hearth.Running || sb.Snapshot == "" {
		return
	}
	if err := c.unshelve(ctx, sb); err != nil {
		c.unclear.Add(sb.ID)
		c.log.Warn("a used snapshot is not removed yet", "sandbox", sb.ID, "snapshot", sb.Snapshot, "err", err)
	}
}

func (c *Controller) unshelve(ctx context.Context, sb *hearth.Sandbox) error {
	if err := c.dropFiles(ctx, sb.Snapshot); err != nil {
		return err
	}
	ctx, cancel := c.detached(ctx, c.limits.StoreTimeout)
	defer cancel()
	return retry.Do(ctx, 4, func() error {
		_, err := c.store.UpdateSandbox(ctx, sb.ID, func(s *hearth.Sandbox) error {
			if s.Snapshot == sb.Snapshot {
				s.Snapshot = ""
			}
			return nil
		})
		return err
	})
}

// keeping says what a pause keeps.
type keeping int

const (
	allMemory keeping = iota
	filesOnly
)

// pause takes a running sandbox to paused.
func (c *Controller) pause(ctx context.Context, sb *hearth.Sandbox, what keeping, g guard) (*hearth.Sandbox, error) {
	if sb.Snapshot != "" { // the one it was resumed from must not be forgotten
		if err := c.unshelve(ctx, sb); err != nil {
			return nil, err
		}
	}
	into := hearth.NewSnapshotID()
	pausing, err := c.move(ctx, sb, hearth.Pausing, func(s *hearth.Sandbox) error {
		s.Snapshot, s.Lifecycle.DropsMemory = into, what == filesOnly
		return g.allows(s)
	})
	if err != nil {
		return nil, c.doubt(sb, err)
	}
	return c.finishPause(ctx, pausing)
}

// finishPause brings a pausing sandbox to paused, or back to running when the
// node cannot. Also for one that a crash left pausing: the node knows the
// snapshot's ID again.
func (c *Controller) finishPause(ctx context.Context, sb *hearth.Sandbox) (*hearth.Sandbox, error) {
	snap, err := c.checkpoint(ctx, sb)
	if err != nil {
		return nil, c.unpause(ctx, sb, err)
	}
	if err := c.shelve(ctx, snap); err != nil {
		return nil, c.doubt(sb, err)
	}
	now := c.clock()
	paused, err := c.move(ctx, sb, hearth.Paused, func(s *hearth.Sandbox) error {
		s.Node, s.EndsAt, s.Lifecycle.DropsMemory = "", now, false
		return nil
	})
	if err != nil {
		return nil, c.doubt(sb, err)
	}
	return paused, nil
}

func (c *Controller) checkpoint(ctx context.Context, sb *hearth.Sandbox) (snap *hearth.Snapshot, err error) {
	svc, err := c.nodes.Node(sb.Node)
	if err != nil {
		return nil, err
	}
	ctx, cancel := c.detached(ctx, c.limits.PauseTimeout)
	defer cancel()
	for n := 1; ; n++ {
		snap, err = svc.Pause(ctx, sb.ID, node.PauseRequest{Into: sb.Snapshot, FilesOnly: sb.Lifecycle.DropsMemory})
		if err == nil || n == 4 || hearth.KindOf(err) != hearth.Unavailable || !retry.Wait(ctx, n) {
			return snap, err
		}
	}
}

// shelve writes a snapshot's row, which may be there from an earlier try.
func (c *Controller) shelve(ctx context.Context, snap *hearth.Snapshot) error {
	ctx, cancel := c.detached(ctx, c.limits.StoreTimeout)
	defer cancel()
	err := retry.Do(ctx, 8, func() error { return c.store.CreateSnapshot(ctx, snap) })
	if err != nil && hearth.KindOf(err) == hearth.AlreadyExists {
		return nil
	}
	return err
}

// unpause finds out what a failed pause left, and returns the error to report.
func (c *Controller) unpause(ctx context.Context, sb *hearth.Sandbox, cause error) error {
	cause = hearth.Wrap(hearth.KindOf(cause), cause, "Error pausing sandbox - %s", hearth.Shown(cause))
	m, err := c.machine(ctx, sb)
	switch {
	case err != nil || m != nil && m.State != hearth.Running || hearth.KindOf(cause) == hearth.Unavailable:
		// The pause may still be going on.
		c.unclear.Add(sb.ID)
		return cause
	case m == nil:
		if _, err := c.stop(ctx, sb, "its machine ended while it was being paused", nil); err != nil {
			c.log.Warn("sandbox is not cleaned up yet", "sandbox", sb.ID, "err", err)
		}
		return cause
	}
	if err := c.dropFiles(ctx, sb.Snapshot); err != nil {
		c.unclear.Add(sb.ID)
		return cause
	}
	now := c.clock()
	_, err = c.move(ctx, sb, hearth.Running, func(s *hearth.Sandbox) error {
		s.Snapshot, s.Lifecycle.DropsMemory = "", false
		if !s.EndsAt.After(now) { // not at once again
			s.EndsAt = now.Add(pauseRetry)
		}
		return nil
	})
	if err != nil {
		c.unclear.Add(sb.ID)
	}
	return cause
}

// machine returns the sandbox's machine by its node's word, nil if there is none.
func (c *Controller) machine(ctx context.Context, sb *hearth.Sandbox) (*node.Instance, error) {
	if sb.Node == "" {
		return nil, nil
	}
	list, err := c.instances(ctx, sb.Node)
	if err != nil {
		return nil, err
	}
	if m := list[sb.ID]; m != nil && m.Generation == sb.Launch {
		return m, nil
	}
	return nil, nil
}

// instances are a node's machines; none if there is no such node any more.
func (c *Controller) instances(ctx context.Context, id hearth.NodeID) (map[hearth.SandboxID]*node.Instance, error) {
	svc, err := c.nodes.Node(id)
	if missing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	ctx, cancel := c.detached(ctx, c.limits.StoreTimeout)
	defer cancel()
	var list []*node.Instance
	err = retry.Do(ctx, 3, func() (err error) {
		list, err = svc.List(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	by := make(map[hearth.SandboxID]*node.Instance, len(list))
	for _, m := range list {
		by[m.ID] = m
	}
	return by, nil
}
