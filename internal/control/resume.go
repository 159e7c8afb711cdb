package control

import (
	"cmp"
	"context"
	"time"

	"hearth/internal/hearth"
	"hearth/internal/node"
)

// restart takes a paused sandbox to running, on the node that holds its
// snapshot if it can. When the machine does not start the sandbox stays paused.
// The caller holds the sandbox's lock.
func (c *Controller) restart(ctx context.Context, sb *hearth.Sandbox, timeout time.Duration) (*hearth.Sandbox, error) {
	snap, err := c.store.Snapshot(ctx, sb.Snapshot)
	if err != nil {
		return nil, gone(err, "snapshot")
	}
	b, err := c.store.Build(ctx, sb.Build)
	if err != nil {
		return nil, gone(err, "template's build")
	}
	sb.Driver = snap.Driver // only that one can read it
	at, _, err := c.place(sb, []hearth.SnapshotID{snap.ID})
	if err != nil {
		return nil, err
	}
	coming := c.route(sb)
	coming.State = hearth.Resuming
	if err := c.table.Admit(coming, c.limits.Sandboxes); err != nil {
		return nil, err
	}
	now, was := c.clock(), sb.EndsAt
	resuming, err := c.move(ctx, sb, hearth.Resuming, func(s *hearth.Sandbox) error {
		s.Node, s.Driver, s.Launch = at, snap.Driver, s.Generation+1
		s.EndsAt = now.Add(timeout)
		return nil
	})
	if err != nil {
		c.publish(sb)
		return nil, c.doubt(sb, err)
	}
	m, err := c.start(ctx, resuming, node.StartRequest{Build: *b, Restore: snap, Token: c.access(resuming)})
	if err != nil {
		c.log.Warn("sandbox could not be resumed", "sandbox", sb.ID, "node", at, "err", err)
		if back := c.back(ctx, resuming, was); back != nil {
			c.log.Warn("sandbox is not back to paused yet", "sandbox", sb.ID, "err", back)
		}
		return nil, err
	}
	return c.finishResume(ctx, resuming, m, timeout)
}

// gone keeps a row that should be there from looking like a sandbox that is not.
func gone(err error, what string) error {
	if missing(err) {
		return hearth.Wrap(hearth.Internal, err, "the sandbox cannot be resumed: its %s is gone", what)
	}
	return err
}

// finishResume moves a sandbox whose machine answers to running. Its life
// begins anew, paused time does not count.
func (c *Controller) finishResume(ctx context.Context, sb *hearth.Sandbox, m *node.Instance, timeout time.Duration) (*hearth.Sandbox, error) {
	now := c.clock()
	running, err := c.move(ctx, sb, hearth.Running, func(s *hearth.Sandbox) error {
		s.StartedAt, s.EndsAt = now, now.Add(timeout)
		s.Driver, s.Isolation = cmp.Or(m.Driver, s.Driver), m.Isolation
		return nil
	})
	if err != nil {
		return nil, c.doubt(sb, err)
	}
	return running, nil
}

// back takes a resuming sandbox to paused again; no machine of it is left then.
func (c *Controller) back(ctx context.Context, sb *hearth.Sandbox, ended time.Time) error {
	err := c.halt(ctx, sb, "could not be resumed")
	if err == nil {
		_, err = c.move(ctx, sb, hearth.Paused, func(s *hearth.Sandbox) error {
			s.Node, s.EndsAt = "", ended
			return nil
		})
	}
	if err != nil {
		return c.doubt(sb, err)
	}
	return nil
}
