package control

import (
	"context"

	"hearth/internal/control/history"
	"hearth/internal/control/retry"
	"hearth/internal/hearth"
)

// History is a sandbox's steps.
type History = history.History

// Step keeps what a sandbox is because a command or cell in it ended; label says
// which. It returns when the step is there, or could not be taken, or ctx ends:
// then it is taken all the same. A sandbox without a history is left alone.
func (c *Controller) Step(ctx context.Context, id hearth.SandboxID, label string) error {
	return c.history.Step(ctx, id, label)
}

// Steps counts the steps of all sandboxes since the start of the process.
func (c *Controller) Steps() history.Stats { return c.history.Stats() }

// takeStep takes the next step of a sandbox. The caller holds its lock.
func (c *Controller) takeStep(ctx context.Context, id hearth.SandboxID, label string) (*hearth.Sandbox, error) {
	sb, err := c.store.Sandbox(ctx, id)
	if missing(err) {
		return nil, notFound(id)
	}
	if err != nil || sb.Lifecycle.History == 0 {
		return nil, err
	}
	if sb.State != hearth.Running { // a pause has kept it, a kill has not
		return nil, hearth.Errorf(hearth.FailedPrecondition, "Sandbox '%s' is %s", id, sb.State)
	}
	wctx, cancel := c.detached(ctx, c.limits.StoreTimeout)
	defer cancel()
	err = retry.Do(wctx, 4, func() (err error) { // first, so that no two steps have one number
		sb, err = c.store.UpdateSandbox(wctx, id, func(s *hearth.Sandbox) error { s.Lifecycle.Steps++; return nil })
		return err
	})
	if err != nil {
		return nil, err
	}
	_, err = c.snapshot(ctx, sb, hearth.Snapshot{
		ID: hearth.NewSnapshotID(), Kind: hearth.StepSnapshot, Step: sb.Lifecycle.Steps, Label: label,
	})
	return sb, err
}

// History returns the steps of a sandbox: none if it was not created with a history.
func (c *Controller) History(ctx context.Context, team hearth.TeamID, id hearth.SandboxID) (*History, error) {
	sb, err := c.Sandbox(ctx, team, id)
	if err != nil {
		return nil, err
	}
	return c.history.List(ctx, sb)
}

// RollbackTo is Rollback to a step of the sandbox's own history.
func (c *Controller) RollbackTo(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, step int64) (*hearth.Sandbox, error) {
	sb, err := c.Sandbox(ctx, team, id)
	if err != nil {
		return nil, err
	}
	snap, err := c.history.Find(ctx, sb, step)
	if err != nil {
		return nil, err
	}
	return c.Rollback(ctx, team, id, string(snap.ID))
}

// KeepStep makes a step a snapshot like any other, with a name if one is given: it
// stays until somebody deletes it.
func (c *Controller) KeepStep(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, step int64, req SnapshotRequest) (*hearth.Snapshot, error) {
	if err := c.checkName(ctx, team, &req); err != nil {
		return nil, err
	}
	unlock, err := c.lanes.Lock(ctx, id) // against thinning
	if err != nil {
		return nil, err
	}
	defer unlock()
	sb, err := c.Sandbox(ctx, team, id)
	if err != nil {
		return nil, err
	}
	snap, err := c.history.Find(ctx, sb, step)
	if err != nil {
		return nil, err
	}
	return c.archive.Keep(ctx, snap.ID, req.Alias, req.Tag)
}
