package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"hearth/internal/control/lanes"
	"hearth/internal/control/retry"
	"hearth/internal/control/wish"
	"hearth/internal/hearth"
)

// Kill ends a sandbox for good: its machine, or the snapshot it is paused in.
// NotFound when it is not the team's or has ended before the call, ResourceExhausted
// when the disk is too full to write down that it ends.
func (c *Controller) Kill(ctx context.Context, team hearth.TeamID, id hearth.SandboxID) error {
	sb, err := c.row(ctx, team, id)
	if err != nil {
		return err
	}
	switch sb.State {
	case hearth.Running:
		if !c.lanes.Busy(id) { // else a snapshot may be under way, of which the row says nothing
			break
		}
		fallthrough
	case hearth.Creating, hearth.Pausing, hearth.Resuming, hearth.Reverting:
		// Cut short what is under way instead of waiting for it. Its flight
		// cleans up after itself; what is left is stopped below.
		if err := c.halt(ctx, sb, "killed"); err != nil {
			c.log.Warn("a step of a killed sandbox could not be cut short", "sandbox", id, "state", sb.State, "err", err)
		}
	}
	_, _, err = c.lanes.Share(ctx, lanes.Key{ID: id, Op: "kill"}, func(ctx context.Context) (*hearth.Sandbox, func(context.Context), error) {
		now, err := c.store.Sandbox(ctx, id)
		if missing(err) || err == nil && now.State == hearth.Stopped {
			return sb, nil, nil // ended while this call waited for its turn
		}
		if err != nil {
			return nil, nil, err
		}
		out, err := c.stop(ctx, now, "killed", nil)
		if hearth.KindOf(err) == hearth.ResourceExhausted {
			out, err = c.killUnwritten(ctx, now, err)
		}
		return out, nil, err
	})
	return err
}

// killUnwritten does what a kill can where the disk is too full to write all of it
// down: a machine needs no room to end. It has succeeded if the row says stopping, for
// then what is left goes later. The caller holds the sandbox's lock.
func (c *Controller) killUnwritten(ctx context.Context, sb *hearth.Sandbox, full error) (*hearth.Sandbox, error) {
	if err := c.halt(ctx, sb, "killed"); err != nil {
		return nil, err
	}
	now, err := c.store.Sandbox(ctx, sb.ID)
	switch {
	case err != nil, now.State == hearth.Stopping:
		return now, err
	case now.State == hearth.Running: // settled later: it has no machine
		return nil, hearth.Wrap(hearth.ResourceExhausted, full,
			"Sandbox '%s' runs no more, and is gone as soon as that can be written down: the server's disk is full", sb.ID)
	}
	return nil, hearth.Wrap(hearth.ResourceExhausted, full, "Sandbox '%s' cannot be killed yet: the server's disk is full", sb.ID)
}

// Pause checkpoints a sandbox and frees its machine. FailedPrecondition when it
// is paused already or being killed. When the checkpoint fails it runs on.
func (c *Controller) Pause(ctx context.Context, team hearth.TeamID, id hearth.SandboxID) error {
	return c.pauseKeeping(ctx, team, id, allMemory)
}

// PauseFiles is Pause that keeps files and drops memory and processes: the next
// resume boots. FailedPrecondition also where the sandbox's driver cannot do that.
func (c *Controller) PauseFiles(ctx context.Context, team hearth.TeamID, id hearth.SandboxID) error {
	return c.pauseKeeping(ctx, team, id, filesOnly)
}

func (c *Controller) pauseKeeping(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, what keeping) error {
	sb, err := c.row(ctx, team, id)
	if err != nil {
		return err
	}
	if sb.State == hearth.Paused || sb.State == hearth.Stopping {
		return pausable(sb)
	}
	_, _, err = c.lanes.Share(ctx, lanes.Key{ID: id, Op: fmt.Sprintf("pause %d", what)}, func(ctx context.Context) (*hearth.Sandbox, func(context.Context), error) {
		sb, err := c.row(ctx, team, id)
		if err != nil {
			return nil, nil, err
		}
		if err := pausable(sb); err != nil {
			return nil, nil, err
		}
		sb, err = c.pause(ctx, sb, what, nil)
		return sb, nil, err
	})
	return err
}

// pausable says why a sandbox cannot be paused, in E2B's words.
func pausable(sb *hearth.Sandbox) error {
	switch sb.State {
	case hearth.Running:
		return nil
	case hearth.Paused:
		return hearth.Errorf(hearth.FailedPrecondition, "Error pausing sandbox - sandbox '%s' is already paused", sb.ID)
	case hearth.Stopping:
		return hearth.Errorf(hearth.FailedPrecondition, "Sandbox '%s' cannot be paused while in 'killing' state", sb.ID)
	}
	return hearth.Errorf(hearth.FailedPrecondition, "Sandbox '%s' cannot be paused while in '%s' state", sb.ID, sb.State)
}

// connectRounds bounds how often Connect looks again after it waited for
// another call to end.
const connectRounds = 3

// Connect lets a running sandbox end no earlier than timeout from now, or
// resumes a paused one with that timeout; resumed says which. Callers that
// resume the same sandbox at once share one resume. FailedPrecondition while it
// is being killed or keeps changing.
func (c *Controller) Connect(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, timeout time.Duration) (sb *hearth.Sandbox, resumed bool, err error) {
	if timeout < 0 {
		return nil, false, hearth.Errorf(hearth.InvalidArgument, "Timeout cannot be negative")
	}
	if err := c.checkMaximum(timeout); err != nil {
		return nil, false, err
	}
	for range connectRounds {
		sb, err = c.row(ctx, team, id)
		if err != nil {
			return nil, false, err
		}
		switch sb.State {
		case hearth.Stopping:
			return nil, false, hearth.Errorf(hearth.FailedPrecondition, "Sandbox %q is being killed", id)
		case hearth.Running:
			sb, err = c.reschedule(ctx, team, id, c.later(timeout))
			if !errors.Is(err, errMoved) {
				return sb, false, err
			}
		case hearth.Paused:
			sb, err = c.resume(ctx, team, id, timeout)
			if !errors.Is(err, errMoved) {
				return sb, err == nil, err
			}
		default:
			if err := c.outwait(ctx, id); err != nil {
				return nil, false, err
			}
		}
	}
	return nil, false, hearth.Errorf(hearth.FailedPrecondition, "Sandbox %q is still transitioning. Try again in a moment", id)
}

// outwait waits until the call that is changing a sandbox has ended. Where there
// is none, because a crash cut it off, the sandbox is brought to an end of it at once.
func (c *Controller) outwait(ctx context.Context, id hearth.SandboxID) error {
	_, _, err := c.lanes.Share(ctx, lanes.Key{ID: id, Op: "outwait"}, func(ctx context.Context) (*hearth.Sandbox, func(context.Context), error) {
		sb, err := c.store.Sandbox(ctx, id)
		switch {
		case missing(err):
			return nil, nil, notFound(id)
		case err != nil:
			return nil, nil, err
		case sb.State == hearth.Running || sb.State == hearth.Paused:
			return sb, nil, nil // the caller looks again
		}
		if err := c.settleNow(ctx, id, nil); err != nil {
			c.unclear.Add(id)
			c.log.Warn("sandbox is not settled yet", "sandbox", id, "err", err)
		}
		return sb, nil, nil
	})
	return err
}

// leastWake is the least time that a sandbox lives which traffic woke.
const leastWake = 5 * time.Minute

// Wake resumes a paused sandbox because traffic came for it, for as long as it
// was created for, but for leastWake at least. All who knock at once share one
// resume. It does not ask whether traffic may do that.
func (c *Controller) Wake(ctx context.Context, id hearth.SandboxID) (*hearth.Sandbox, error) {
	sb, err := c.store.Sandbox(ctx, id)
	if missing(err) {
		return nil, notFound(id)
	}
	if err != nil {
		return nil, err
	}
	sb, _, err = c.Connect(ctx, sb.Team, id, min(max(sb.Timeout, leastWake), c.limits.MaxTimeout))
	return sb, err
}

// resume starts a paused sandbox, or joins who does. errMoved when it turned
// out not to be paused any more.
func (c *Controller) resume(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, timeout time.Duration) (*hearth.Sandbox, error) {
	if err := c.checkTimeout(timeout); err != nil {
		return nil, err
	}
	sb, joined, err := c.lanes.Share(ctx, lanes.Key{ID: id, Op: "resume"}, func(ctx context.Context) (*hearth.Sandbox, func(context.Context), error) {
		sb, err := c.row(ctx, team, id)
		if err != nil {
			return nil, nil, err
		}
		if sb.State != hearth.Paused {
			return nil, nil, errMoved
		}
		sb, err = c.restart(ctx, sb, timeout)
		return sb, func(ctx context.Context) { c.forget(ctx, sb) }, err
	})
	if err == nil && joined { // the other caller may have asked for less time
		sb, err = c.reschedule(ctx, team, id, c.later(timeout))
	}
	return sb, err
}

// errMoved says that a sandbox is in another state than it was a moment ago.
var errMoved = errors.New("in another state by now")

// SetTimeout lets a running sandbox end d from now, sooner or later than
// before, but within the longest life. FailedPrecondition when it is not running.
func (c *Controller) SetTimeout(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, d time.Duration) error {
	_, err := c.reschedule(ctx, team, id, func(s *hearth.Sandbox, now time.Time) time.Time {
		return c.bounded(s, now, d)
	})
	return c.notRunning(ctx, team, id, err)
}

// Extend is SetTimeout that never lets a sandbox end earlier than before.
func (c *Controller) Extend(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, d time.Duration) error {
	_, err := c.reschedule(ctx, team, id, c.later(d))
	return c.notRunning(ctx, team, id, err)
}

// notRunning words errMoved for the caller.
func (c *Controller) notRunning(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, err error) error {
	if !errors.Is(err, errMoved) {
		return err
	}
	sb, err := c.Sandbox(ctx, team, id)
	if err != nil {
		return err
	}
	return hearth.Errorf(hearth.FailedPrecondition, "Sandbox %q is not running: it is %s", id, sb.State)
}

// bounded is d from now, but not behind the longest life.
func (c *Controller) bounded(s *hearth.Sandbox, now time.Time, d time.Duration) time.Time {
	at := now.Add(min(max(d, 0), c.limits.MaxTimeout))
	if last := s.StartedAt.Add(c.limits.MaxTimeout); at.After(last) {
		return last
	}
	return at
}

func (c *Controller) later(d time.Duration) func(*hearth.Sandbox, time.Time) time.Time {
	return func(s *hearth.Sandbox, now time.Time) time.Time {
		if at := c.bounded(s, now, d); at.After(s.EndsAt) {
			return at
		}
		return s.EndsAt
	}
}

// reschedule changes when a running sandbox ends. It needs no lock: the store's
// compare-and-swap keeps it apart from whoever changes the state. errMoved when
// the sandbox is not running.
func (c *Controller) reschedule(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, ends func(*hearth.Sandbox, time.Time) time.Time) (*hearth.Sandbox, error) {
	var out *hearth.Sandbox
	err := retry.Do(ctx, 4, func() (err error) {
		var same *hearth.Sandbox
		out, err = c.store.UpdateSandbox(ctx, id, func(s *hearth.Sandbox) error {
			if s.Team != team || s.State == hearth.Stopped {
				return notFound(id)
			}
			if s.State != hearth.Running {
				return errMoved
			}
			at := ends(s, c.clock())
			if at.Equal(s.EndsAt) {
				same = s
				return errSame
			}
			s.EndsAt = at
			return nil
		})
		if errors.Is(err, errSame) {
			out, err = same, nil
		}
		return err
	})
	if missing(err) {
		return nil, notFound(id)
	}
	if err != nil {
		return nil, err
	}
	c.due.Set(out)
	return out, nil
}

// SetNetwork replaces a running sandbox's traffic policy; the new one is in
// force when it returns. FailedPrecondition when it is not running.
func (c *Controller) SetNetwork(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, n hearth.Network) error {
	if err := wish.CheckNetwork(n); err != nil {
		return err
	}
	unlock, err := c.lanes.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	sb, err := c.row(ctx, team, id)
	if err != nil {
		return err
	}
	if sb.State != hearth.Running {
		return c.notRunning(ctx, team, id, errMoved)
	}
	svc, err := c.nodes.Node(sb.Node)
	if err != nil {
		return err
	}
	nctx, cancel := c.detached(ctx, c.limits.StoreTimeout)
	defer cancel()
	if err := retry.Do(nctx, 3, func() error { return svc.Update(nctx, id, n) }); err != nil {
		c.restore(nctx, sb) // some of it may be in force
		return err
	}
	var out *hearth.Sandbox
	err = retry.Do(nctx, 4, func() (err error) {
		out, err = c.store.UpdateSandbox(nctx, id, func(s *hearth.Sandbox) error { s.Network = n; return nil })
		return err
	})
	if err != nil {
		c.restore(nctx, sb)
		return err
	}
	c.publish(out)
	return nil
}

// restore puts the stored policy back in force.
func (c *Controller) restore(ctx context.Context, sb *hearth.Sandbox) {
	svc, err := c.nodes.Node(sb.Node)
	if err == nil {
		err = svc.Update(ctx, sb.ID, sb.Network)
	}
	if err != nil {
		c.log.Error("a sandbox's traffic policy may differ from what is stored", "sandbox", sb.ID, "err", err)
	}
}
