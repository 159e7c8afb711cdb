package agent

import (
	"context"

	"hearth/internal/driver"
	"hearth/internal/hearth"
	"hearth/internal/node/agent/journal"
	"hearth/internal/node/agent/pool"
	"hearth/internal/node/agent/turn"
)

// A blank is a machine that waits for its state (driver.Blank): a start that finds
// none in a pool, a resume, a fork and a rollback are restored into one of their
// shape. It has a slot, a directory and a record as every machine has, by which the
// next process takes down what a crash left of it.

// vacancy is what a machine is while it is blank.
type vacancy struct {
	blank driver.Blank
	taken chan struct{} // closed when somebody is about to restore it
}

// prepares says whether a driver makes blanks. The caller holds mu.
func (a *Agent) prepares(name string) bool {
	_, able := a.deps.Drivers[name].(driver.Preparer)
	return able && a.caps[name].Blanks
}

// prepareBlank is the last step of a blank's start.
func (a *Agent) prepareBlank(ctx context.Context, d driver.Driver, mc *machine, spec driver.Spec) error {
	p, able := d.(driver.Preparer)
	if !able {
		return hearth.Errorf(hearth.FailedPrecondition, "driver %q prepares no machines", d.Name())
	}
	b, err := p.Prepare(ctx, spec)
	if err != nil {
		return err
	}
	mc.free = &vacancy{blank: b, taken: make(chan struct{})}
	mc.size = b.Memory()
	a.watchBlank(mc, mc.free)
	return nil
}

// watchBlank takes a blank down that ends while it waits.
func (a *Agent) watchBlank(mc *machine, v *vacancy) {
	a.work.Go(func() {
		select {
		case <-v.blank.Done():
		case <-v.taken:
		case <-mc.life.Done():
		case <-a.life.Done():
		}
		select {
		case <-v.taken: // its taker sees what becomes of it; a restored one is done as a blank
			return
		default:
		}
		select {
		case <-v.blank.Done():
		default:
			return
		}
		mc.quit(hearth.Errorf(hearth.Unavailable, "the machine ended before it had a state"))
		a.mu.Lock()
		waited := a.pools.Take(mc)
		a.mu.Unlock()
		if waited {
			a.log.Warn("a blank machine ended", "machine", mc.id())
			a.discard(context.WithoutCancel(a.life), mc)
			a.nudge()
		}
	})
}

// fillBlank makes one blank.
func (a *Agent) fillBlank(ctx context.Context, of pool.Shape, b hearth.Build) {
	mc, err := a.makeBlank(ctx, of, b)
	a.mu.Lock()
	if err != nil {
		a.pools.FailedBlank(of, a.now())
	} else if !a.pools.FilledBlank(of, mc) || (a.state != open || mc.life.Err() != nil) && a.pools.Take(mc) {
		defer a.discard(ctx, mc)
	}
	a.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		a.log.Warn("no machine can be prepared", "driver", of.Driver, "build", b.ID, "err", err)
	}
}

func (a *Agent) makeBlank(ctx context.Context, of pool.Shape, b hearth.Build) (*machine, error) {
	ctx, done, err := a.inBackground(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	mc, err := a.boot(ctx, plan{build: &b, driver: of.Driver, resources: of.Resources, urgency: turn.Background, blank: true})
	if err != nil {
		return nil, err
	}
	mc.rec.Phase = journal.Blank
	if err := a.journal.Write(mc.rec); err != nil {
		a.discard(ctx, mc)
		return nil, err
	}
	return mc, nil
}

// fromBlank restores a machine into a blank of its shape. It returns nothing when
// there is none, or it was of no use: then the machine is made from nothing.
func (a *Agent) fromBlank(ctx context.Context, p plan) (*machine, error) {
	if p.restore == nil || !p.restore.Memory || p.urgency != turn.User {
		return nil, nil
	}
	a.mu.Lock()
	mc, found := a.pools.ClaimBlank(pool.ShapeOf(*p.build, *p.restore, p.resources), a.now())
	a.mu.Unlock()
	if !found {
		return nil, nil
	}
	close(mc.free.taken)
	a.nudge()
	err := a.occupy(ctx, mc, p)
	if err == nil {
		a.count(&a.blank)
		return mc, nil
	}
	a.discard(ctx, mc)
	if ctx.Err() != nil {
		return nil, turn.Ended(ctx)
	}
	a.log.Warn("a blank machine was of no use; making one from nothing", "machine", mc.id(), "err", err)
	return nil, nil
}

// occupy restores a snapshot into a blank. What it did until an error is undone by
// discard.
func (a *Agent) occupy(ctx context.Context, mc *machine, p plan) error {
	mc.took = nil
	mc.rec.Build, mc.rec.Restored, mc.rec.Sandbox = p.build.ID, p.restore.ID, p.sandbox
	mc.rec.Phase, mc.secret = journal.Starting, p.restore.Sandbox
	var from *driver.Checkpoint
	return a.steps(ctx, mc, []stage{
		{"files", func() (err error) {
			from, err = a.checkpoint(ctx, mc, p.restore)
			return err
		}},
		{"record", func() error { return a.journal.Write(mc.rec) }},
		{"policy", func() error { // in force before the guest's next instruction
			if p.sandbox == nil {
				return nil // it reaches nobody, as the blank
			}
			return a.deps.Network.SetPolicy(ctx, mc.rec.Slot, p.sandbox.Network)
		}},
		{"restore", func() error {
			b := mc.free.blank
			mc.free = nil // used up, whatever comes of it
			live, err := b.Restore(ctx, from)
			if err != nil {
				return err
			}
			mc.live, mc.rec.Handle = live, live.Handle()
			a.watch(mc)
			return nil
		}},
	})
}
