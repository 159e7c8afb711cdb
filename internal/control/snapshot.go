package control

import (
	"cmp"
	"context"

	"hearth/internal/control/archive"
	"hearth/internal/control/lanes"
	"hearth/internal/control/retry"
	"hearth/internal/control/wish"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/store"
)

// SnapshotRequest is what a caller may ask of a snapshot.
type SnapshotRequest struct {
	Alias string // its name in the team, which it takes from the snapshot that has it; empty: none
	Tag   string // with the name; empty is "default"
}

// Snapshot keeps a running sandbox's state, and the sandbox goes on. Kinds:
// InvalidArgument for the name, AlreadyExists where it is a template's,
// FailedPrecondition when the sandbox does not run. After an error nothing is kept.
func (c *Controller) Snapshot(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, req SnapshotRequest) (*hearth.Snapshot, error) {
	if err := c.checkName(ctx, team, &req); err != nil {
		return nil, err
	}
	return c.take(ctx, team, id, hearth.Snapshot{ID: hearth.NewSnapshotID(), Kind: hearth.KeptSnapshot, Alias: req.Alias, Tag: req.Tag})
}

func (c *Controller) checkName(ctx context.Context, team hearth.TeamID, req *SnapshotRequest) error {
	if err := wish.CheckName(req.Alias, req.Tag); err != nil || req.Alias == "" {
		return err
	}
	req.Tag = cmp.Or(req.Tag, archive.DefaultTag)
	switch _, _, err := c.store.ResolveTemplate(ctx, team, req.Alias); {
	case err == nil, hearth.KindOf(err) == hearth.FailedPrecondition:
		return hearth.Errorf(hearth.AlreadyExists, "name '%s' is a template's; choose another one", req.Alias)
	case !missing(err):
		return err
	}
	return nil
}

// take makes the wanted snapshot of a sandbox under its lock. It goes on when the
// caller stops waiting.
func (c *Controller) take(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, want hearth.Snapshot) (*hearth.Snapshot, error) {
	var out *hearth.Snapshot // written before the flight lands
	_, _, err := c.lanes.Share(ctx, lanes.Key{ID: id, Op: "snapshot " + string(want.ID)}, func(ctx context.Context) (*hearth.Sandbox, func(context.Context), error) {
		sb, err := c.row(ctx, team, id)
		if err == nil && sb.State != hearth.Running {
			err = hearth.Errorf(hearth.FailedPrecondition, "Sandbox '%s' cannot be snapshotted: it is %s", id, sb.State)
		}
		if err != nil {
			return nil, nil, err
		}
		out, err = c.snapshot(ctx, sb, want)
		return sb, nil, err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// snapshot holds the sandbox's lock.
func (c *Controller) snapshot(ctx context.Context, sb *hearth.Sandbox, want hearth.Snapshot) (*hearth.Snapshot, error) {
	c.archive.Hold(want.ID)
	defer c.archive.Release(want.ID)
	row := hearth.Snapshot{
		ID: want.ID, Kind: want.Kind, Status: hearth.SnapshotTaking, Created: c.clock(),
		Sandbox: sb.ID, Team: sb.Team, Template: sb.Template, Build: sb.Build, After: sb.Head, Resources: sb.Resources,
		Step: want.Step, Label: want.Label,
	}
	ready, err := c.write(ctx, sb, row, want)
	if err != nil {
		c.abandon(ctx, want, err)
		return nil, hearth.Wrap(hearth.KindOf(err), err, "Error snapshotting sandbox - %s", hearth.Shown(err))
	}
	return ready, nil
}

// abandon gives up a snapshot that could not be taken; of a step there remains why.
func (c *Controller) abandon(ctx context.Context, want hearth.Snapshot, cause error) {
	if want.Kind != hearth.StepSnapshot {
		c.archive.Discard(ctx, want.ID)
		return
	}
	if err := c.archive.Fail(ctx, want.ID, hearth.Shown(cause)); err != nil {
		c.log.Warn("a failed step is not written down yet", "snapshot", want.ID, "err", err)
	}
}

// write takes a snapshot from its row to ready, and makes it its sandbox's head.
func (c *Controller) write(ctx context.Context, sb *hearth.Sandbox, row, want hearth.Snapshot) (*hearth.Snapshot, error) {
	if err := c.shelve(ctx, &row); err != nil {
		return nil, err
	}
	snap, err := c.ask(ctx, sb, row.ID)
	if err != nil {
		return nil, err
	}
	ctx, cancel := c.detached(ctx, c.limits.StoreTimeout)
	defer cancel()
	err = retry.Do(ctx, 8, func() error {
		_, err := c.store.UpdateSandbox(ctx, sb.ID, func(s *hearth.Sandbox) error { s.Head = row.ID; return nil })
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.archive.Rewrite(ctx, row.ID, func(s *hearth.Snapshot) {
		next := *snap // what the node knows
		next.Sandbox, next.Template, next.Kind, next.After = row.Sandbox, row.Template, row.Kind, row.After
		next.Step, next.Label = row.Step, row.Label
		next.Resources, next.Alias, next.Tag, next.Status = row.Resources, want.Alias, want.Tag, hearth.SnapshotReady
		*s = next
	})
}

// ask lets the sandbox's node write a snapshot.
func (c *Controller) ask(ctx context.Context, sb *hearth.Sandbox, into hearth.SnapshotID) (snap *hearth.Snapshot, err error) {
	svc, err := c.nodes.Node(sb.Node)
	if err != nil {
		return nil, err
	}
	ctx, cancel := c.detached(ctx, c.limits.PauseTimeout)
	defer cancel()
	err = retry.Do(ctx, 4, func() error {
		snap, err = svc.Snapshot(ctx, sb.ID, node.SnapshotRequest{Into: into})
		return err
	})
	return snap, err
}

// Snapshots is a page of a team's snapshots that are kept, newest first, of one
// sandbox or one name if the filter says so.
func (c *Controller) Snapshots(ctx context.Context, f store.SnapshotFilter, p store.Page) ([]*hearth.Snapshot, string, error) {
	return c.archive.List(ctx, f, p)
}

// DeleteSnapshot deletes a snapshot by ID or name. What was started from it lives
// on. NotFound when the team has none.
func (c *Controller) DeleteSnapshot(ctx context.Context, team hearth.TeamID, name string) error {
	ref, err := wish.ParseRef(name)
	if err != nil {
		return err
	}
	snap, err := c.archive.Find(ctx, team, ref)
	if err != nil {
		return err
	}
	if err := c.archive.Drop(ctx, snap.ID); err != nil {
		return err
	}
	c.archive.Tidy(ctx, snap.ID)
	return nil
}
