package agent

import (
	"context"
	"sync"
	"time"

	"hearth/internal/driver"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/node/agent/journal"
	"hearth/internal/node/agent/pool"
	"hearth/internal/node/agent/turn"
)

// What a node holds ready, and how much, is decided by package pool; here it is made
// and taken down.

// Held, Resources and Snapshot are a pool.Member's.
func (mc *machine) Held() int64                 { return mc.size }
func (mc *machine) Resources() hearth.Resources { return mc.rec.Resources }
func (mc *machine) Snapshot() hearth.SnapshotID { return mc.rec.Restored }

// Keep declares the warm snapshots to hold machines of. Pools that are not
// named any more are emptied in the background.
func (a *Agent) Keep(_ context.Context, pools []node.Pool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.ready(); err != nil {
		return err
	}
	a.pools.Forget()
	for _, d := range pools {
		floor := max(d.Floor, a.cfg.PoolFloor, 0)
		a.pools.Keep(d.Build, d.Snapshot, pool.Bounds{Floor: floor, Ceiling: min(max(d.Ceiling, floor), a.cfg.PoolCeiling)})
	}
	a.nudge()
	return nil
}

// asked notes that a snapshot's sandboxes are wanted. A pool that has to grow
// for it does so at once.
func (a *Agent) asked(p plan) {
	if p.restore == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pools.Asked(p.restore.ID, a.now()) {
		a.nudge()
	}
}

// claim takes the oldest machine that fits the plan; nil when there is none.
func (a *Agent) claim(p plan) *machine {
	if p.restore == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	mc, _ := a.pools.Claim(p.restore.ID, p.resources, a.now())
	return mc
}

// evict takes down a machine that waits, to make room for a user's. It reports
// whether there was one.
func (a *Agent) evict(ctx context.Context) bool {
	a.mu.Lock()
	mc, found := a.pools.Evict(a.now())
	a.mu.Unlock()
	if found {
		a.discard(ctx, mc)
	}
	return found
}

// trim takes down machines that are not wanted, and one more at a time while
// the host is short of memory.
func (a *Agent) trim(ctx context.Context) {
	m, err := a.deps.Memory()
	short := err == nil && m.Available < m.Reserve(a.cfg.HostReserve)
	a.mu.Lock()
	a.short = short
	gone := a.pools.Trim(a.now())
	a.mu.Unlock()
	for _, mc := range gone {
		a.discard(ctx, mc)
	}
	if short && a.evict(ctx) {
		a.log.Warn("the host is short of memory: a pool shrinks", "available", m.Available)
	}
}

// refill starts filling the pools that lack most, as many machines at once as
// configured. It returns how soon to look again, 0 when nothing is put off.
func (a *Agent) refill(ctx context.Context, fills *sync.WaitGroup) time.Duration {
	for ctx.Err() == nil {
		fill, wait := a.nextFill()
		if fill == nil {
			return wait
		}
		fills.Go(func() {
			fill(ctx)
			a.nudge()
		})
	}
	return 0
}

// nextFill says what to make next: a machine for the pool that lacks most, or a blank
// when none lacks any. Where there is nothing because it is too early, it says how much.
func (a *Agent) nextFill() (fill func(context.Context), wait time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ready() != nil || a.short || a.pools.Filling() >= a.cfg.PoolFills {
		return nil, 0
	}
	now := a.now()
	p, wait := a.pools.Next(now, a.poolMemory)
	if p != nil {
		build, snapshot := p.Build, p.Warm
		pl := plan{build: &build, restore: &snapshot, resources: build.Resources, urgency: turn.Background}
		return func(ctx context.Context) { a.fill(ctx, p, pl) }, 0
	}
	of, build, later, found := a.pools.NextBlank(now, a.poolMemory, a.prepares)
	switch {
	case found:
		return func(ctx context.Context) { a.fillBlank(ctx, of, build) }, 0
	case wait == 0 || later > 0 && later < wait:
		wait = later
	}
	return nil, wait
}

// fill makes one machine for a pool.
func (a *Agent) fill(ctx context.Context, p *pool.Pool[*machine], pl plan) {
	mc, err := a.makePaused(ctx, pl)
	a.mu.Lock()
	switch {
	case err != nil:
		a.pools.Failed(p, a.now())
	case a.state != open || mc.life.Err() != nil:
		a.pools.Wasted(p)
		defer a.discard(ctx, mc)
	case !a.pools.Filled(p, mc):
		defer a.discard(ctx, mc)
	}
	a.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		a.log.Warn("a pool cannot be filled", "snapshot", pl.restore.ID, "err", err)
	}
}

// inBackground gives way to users' starts (turn.Queue.Calm); then there is a limit of time.
func (a *Agent) inBackground(ctx context.Context) (_ context.Context, done func(), err error) {
	a.queue.Calm(ctx)
	leave, err := a.queue.Enter(ctx, turn.Background)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, a.cfg.StartTimeout, hearth.Errorf(hearth.DeadlineExceeded,
		"the machine was not ready within %s", a.cfg.StartTimeout))
	return ctx, func() { cancel(); leave() }, nil
}

// makePaused restores a machine, lets it run until its daemon answers, so that
// what a restore puts off is done, and freezes it.
func (a *Agent) makePaused(ctx context.Context, pl plan) (*machine, error) {
	ctx, done, err := a.inBackground(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	mc, err := a.boot(ctx, pl)
	if err != nil {
		return nil, err
	}
	if err := a.settlePaused(ctx, mc); err != nil {
		a.discard(ctx, mc)
		return nil, err
	}
	return mc, nil
}

func (a *Agent) settlePaused(ctx context.Context, mc *machine) error {
	ctx, cancel := mc.within(ctx)
	defer cancel()
	g := a.guestOf(mc)
	if err := g.Ready(ctx); err != nil {
		return turn.Because(ctx, err)
	}
	a.mu.Lock()
	scarce := a.queue.Busy() && a.pools.Ready()[mc.Snapshot()] == 0
	a.mu.Unlock()
	rest := mc.live.Freeze
	if !scarce { // else it will hardly wait, and there is other work for the processors
		rest = driver.Resting(mc.live)
		if err := g.Rehearse(ctx); err != nil && ctx.Err() == nil {
			a.log.Debug("a machine of the pool was not rehearsed", "machine", mc.id(), "err", err)
		}
	}
	if err := rest(ctx); err != nil {
		return turn.Because(ctx, err)
	}
	u, err := mc.live.Usage(ctx)
	if err != nil {
		return turn.Because(ctx, err)
	}
	mc.size = u.Memory
	mc.rec.Phase = journal.Pooled
	return a.journal.Write(mc.rec)
}

// drainAll takes down every machine that waits.
func (a *Agent) drainAll(ctx context.Context) {
	a.mu.Lock()
	list := a.pools.Empty()
	a.mu.Unlock()
	a.discardAll(ctx, list)
}

func (a *Agent) discardAll(ctx context.Context, list []*machine) {
	var all turn.Batch
	for _, mc := range list {
		all.Do(func() error { a.discard(ctx, mc); return nil })
	}
	_ = all.Wait() // discard reports
}
