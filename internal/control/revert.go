package control

import (
	"context"

	"hearth/internal/control/lanes"
	"hearth/internal/control/wish"
	"hearth/internal/hearth"
	"hearth/internal/node"
)

// maxLine bounds how far back a sandbox's line is followed.
const maxLine = 10_000

// Rollback takes a running sandbox back to a snapshot of its own line: one that
// was taken of it, or of what it was forked or created from, before. ID, tokens,
// timeout and policy stay. When the snapshot cannot be restored the sandbox goes
// on as it was. NotFound for the snapshot, and when the sandbox is killed meanwhile;
// FailedPrecondition when the snapshot is not of the sandbox's line or the sandbox
// does not run.
func (c *Controller) Rollback(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, name string) (*hearth.Sandbox, error) {
	ref, err := wish.ParseRef(name)
	if err != nil {
		return nil, err
	}
	snap, err := c.archive.Take(ctx, team, ref)
	if err != nil {
		return nil, err
	}
	done := func(ctx context.Context) { c.archive.Let(ctx, snap.ID) }
	sb, joined, err := c.lanes.Share(ctx, lanes.Key{ID: id, Op: "rollback to " + string(snap.ID)}, func(ctx context.Context) (*hearth.Sandbox, func(context.Context), error) {
		sb, err := c.row(ctx, team, id)
		if err == nil {
			err = c.revertible(ctx, sb, snap)
		}
		if err != nil {
			return nil, done, err
		}
		sb, err = c.revert(ctx, sb, snap)
		return sb, done, err
	})
	if joined {
		done(context.WithoutCancel(ctx))
	}
	return sb, err
}

// revertible says why a sandbox cannot be taken back to a snapshot.
func (c *Controller) revertible(ctx context.Context, sb *hearth.Sandbox, snap *hearth.Snapshot) error {
	if sb.State != hearth.Running {
		return hearth.Errorf(hearth.FailedPrecondition, "Sandbox '%s' cannot be rolled back: it is %s; resume it first", sb.ID, sb.State)
	}
	if snap.Build != sb.Build || snap.Resources != sb.Resources {
		return hearth.Errorf(hearth.FailedPrecondition, "snapshot '%s' is of another template or size than sandbox '%s'", snap.ID, sb.ID)
	}
	if snap.Sandbox == sb.ID {
		return nil
	}
	at := sb.Head
	for range maxLine {
		if at == "" {
			break
		}
		if at == snap.ID {
			return nil
		}
		s, err := c.store.Snapshot(ctx, at)
		if missing(err) {
			break
		}
		if err != nil {
			return err
		}
		at = s.After
	}
	return hearth.Errorf(hearth.FailedPrecondition, "snapshot '%s' is not of sandbox '%s' or of what it came from", snap.ID, sb.ID)
}

// revert takes a running sandbox to reverting and back to running, in the
// snapshot, or where it was when that fails. The caller holds the sandbox's lock.
func (c *Controller) revert(ctx context.Context, sb *hearth.Sandbox, snap *hearth.Snapshot) (*hearth.Sandbox, error) {
	if sb.Snapshot != "" { // the one it was resumed from must not be forgotten
		if err := c.unshelve(ctx, sb); err != nil {
			return nil, err
		}
	}
	b, err := c.store.Build(ctx, sb.Build)
	if err != nil {
		return nil, gone(err, "template's build")
	}
	reverting, err := c.move(ctx, sb, hearth.Reverting, func(s *hearth.Sandbox) error {
		s.Snapshot, s.Launch = snap.ID, s.Generation+1
		return nil
	})
	if err != nil {
		return nil, c.doubt(sb, err)
	}
	_, err = c.start(ctx, reverting, node.StartRequest{Build: *b, Restore: snap, Token: c.access(reverting), Revert: true})
	if err != nil {
		return c.unrevert(ctx, reverting, err)
	}
	return c.reverted(ctx, reverting, reverting.Launch)
}

// unrevert finds out what a failed rollback left, and returns the error to report;
// none where only the answer was lost.
func (c *Controller) unrevert(ctx context.Context, sb *hearth.Sandbox, cause error) (*hearth.Sandbox, error) {
	c.log.Warn("sandbox could not be rolled back", "sandbox", sb.ID, "snapshot", sb.Snapshot, "err", cause)
	now, err := c.settleReverting(ctx, sb)
	switch {
	case err != nil:
		c.log.Warn("sandbox is not settled after a rollback yet", "sandbox", sb.ID, "err", c.doubt(sb, err))
		return nil, hearth.Wrap(hearth.KindOf(cause), cause, "Sandbox '%s' could not be rolled back: %s", sb.ID, hearth.Shown(cause))
	case now.State != hearth.Running: // a kill, most likely, which does not wait for it
		return nil, hearth.Wrap(hearth.NotFound, cause, "Sandbox '%s' ended while it was being rolled back: %s", sb.ID, hearth.Shown(cause))
	case now.Launch == sb.Launch:
		return now, nil
	}
	return nil, hearth.Wrap(hearth.KindOf(cause), cause, "Sandbox '%s' could not be rolled back and goes on as it was: %s", sb.ID, hearth.Shown(cause))
}

// reverted moves a sandbox to running with the machine of the given launch: the
// one that was asked for last, or the one before.
func (c *Controller) reverted(ctx context.Context, sb *hearth.Sandbox, launch int64) (*hearth.Sandbox, error) {
	running, err := c.move(ctx, sb, hearth.Running, func(s *hearth.Sandbox) error {
		if launch == s.Launch {
			s.Head = s.Snapshot
		}
		s.Launch, s.Snapshot = launch, ""
		return nil
	})
	if err != nil {
		return nil, c.doubt(sb, err)
	}
	return running, nil
}

// settleReverting finds out which machine a reverting sandbox has, and returns what
// has become of it: running or stopped.
func (c *Controller) settleReverting(ctx context.Context, sb *hearth.Sandbox) (*hearth.Sandbox, error) {
	list, err := c.instances(ctx, sb.Node)
	if err != nil {
		return nil, err
	}
	m := list[sb.ID]
	if m == nil || m.Generation > sb.Launch {
		return c.stop(ctx, sb, "its machine ended while it was being rolled back", nil)
	}
	return c.reverted(ctx, sb, m.Generation)
}
