package control

import (
	"context"
	"errors"

	"hearth/internal/control/idle"
	"hearth/internal/control/lanes"
	"hearth/internal/hearth"
)

// rest pauses sandboxes that nobody uses, as their owners asked for.
func (c *Controller) rest(ctx context.Context) {
	w := idle.Watch{
		Every: c.limits.Sample, Routes: c.table.Idlers, Unused: c.unused, Pause: c.pauseIdle, Now: c.clock, Log: c.log,
	}
	w.Run(ctx)
}

func (c *Controller) pauseIdle(ctx context.Context, id hearth.SandboxID, still func() bool) error {
	_, _, err := c.lanes.Share(ctx, lanes.Key{ID: id, Op: "idle"}, func(ctx context.Context) (*hearth.Sandbox, func(context.Context), error) {
		sb, err := c.store.Sandbox(ctx, id)
		if err != nil || sb.State != hearth.Running {
			return sb, nil, err
		}
		sb, err = c.pause(ctx, sb, unasked(sb), func(*hearth.Sandbox) error {
			if !still() {
				return errLater
			}
			return nil
		})
		return sb, nil, err
	})
	if missing(err) || errors.Is(err, errLater) {
		return nil
	}
	return err
}

// unasked says what a pause keeps that nobody asked for.
func unasked(sb *hearth.Sandbox) keeping {
	if sb.Lifecycle.PauseFiles {
		return filesOnly
	}
	return allMemory
}
