package agent

import (
	"context"
	"slices"
	"sync"
	"time"

	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/node/agent/demand"
	"hearth/internal/node/agent/journal"
	"hearth/internal/node/agent/turn"
)

// A pool holds machines of one warm snapshot that were restored, ran until
// their daemon answered, and were frozen: they cost memory but no CPU, and a
// start that takes one is a thaw and one request. No machine of a pool was ever
// unsealed.

// pool is guarded by Agent.mu.
type pool struct {
	build    hearth.Build
	snapshot hearth.Snapshot
	floor    int // machines to hold whatever is asked for
	ceiling  int // machines to hold at most; 0: the pool is to go
	demand   demand.Demand
	ready    []*machine // oldest first
	filling  int
	size     int64 // bytes of the machine that was made last
	failures int   // in a row
	retryAt  time.Time
}

// calm is how long nothing is made for a pool after a machine was taken from
// one, as long as the pool has more than half of what it wants: the first thing that is asked of
// that machine would compete for the processors with a restore.
const calm = 500 * time.Millisecond

// due is when the pool may be filled next, given when a machine was last taken
// from any.
func (p *pool) due(now, taken time.Time) time.Time {
	if rested := taken.Add(calm); 2*(len(p.ready)+p.filling) > p.want(now) && rested.After(p.retryAt) {
		return rested
	}
	return p.retryAt
}

// want is how many machines the pool should hold now: as many as the busiest
// ten seconds of the last ten minutes took, within its bounds.
func (p *pool) want(now time.Time) int {
	return min(max(p.demand.Peak(now), p.floor), p.ceiling)
}

// sizeGuess is the memory of a pool's first machine, before one was measured.
const sizeGuess = 128 << 20

func (p *pool) guess() int64 {
	if p.size > 0 {
		return p.size
	}
	return min(sizeGuess, int64(p.build.Resources.MemoryMiB)<<20)
}

// Keep declares the warm snapshots to hold machines of. Pools that are not
// named any more are emptied in the background.
func (a *Agent) Keep(_ context.Context, pools []node.Pool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.ready(); err != nil {
		return err
	}
	for _, p := range a.pools {
		p.floor, p.ceiling = 0, 0
	}
	for _, d := range pools {
		p := a.poolOf(d.Snapshot.ID)
		p.build, p.snapshot = d.Build, d.Snapshot
		p.floor = max(d.Floor, a.cfg.PoolFloor, 0)
		p.ceiling = min(max(d.Ceiling, p.floor), a.cfg.PoolCeiling)
	}
	a.kept = true
	a.nudge()
	return nil
}

// poolOf returns a snapshot's pool, made when there is none. The caller holds mu.
func (a *Agent) poolOf(id hearth.SnapshotID) *pool {
	p := a.pools[id]
	if p == nil {
		p = &pool{}
		a.pools[id] = p
	}
	return p
}

// asked notes that a snapshot's sandboxes are wanted. A pool that has to grow
// for it does so at once.
func (a *Agent) asked(p plan) {
	if p.restore == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if pl := a.pools[p.restore.ID]; pl != nil {
		pl.demand.Note(a.now())
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
	pl := a.pools[p.restore.ID]
	if pl == nil {
		return nil
	}
	at := slices.IndexFunc(pl.ready, func(mc *machine) bool { return mc.rec.Resources == p.resources })
	if at < 0 {
		return nil
	}
	mc := pl.ready[at]
	pl.ready = slices.Delete(pl.ready, at, at+1)
	a.taken = a.now()
	return mc
}

// takeFromPool removes a machine from its pool; false when it is in none. The
// caller holds mu.
func (a *Agent) takeFromPool(mc *machine) bool {
	p := a.pools[mc.rec.Restored]
	if p == nil {
		return false
	}
	at := slices.Index(p.ready, mc)
	if at < 0 {
		return false
	}
	p.ready = slices.Delete(p.ready, at, at+1)
	return true
}

// evict takes down a paused machine, of the largest pool, to make room for a
// user's. It reports whether there was one.
func (a *Agent) evict(ctx context.Context) bool {
	a.mu.Lock()
	var from *pool
	for _, p := range a.pools {
		if len(p.ready) > 0 && (from == nil || len(p.ready) > len(from.ready)) {
			from = p
		}
	}
	if from == nil {
		a.mu.Unlock()
		return false
	}
	mc := from.ready[0]
	from.ready = slices.Delete(from.ready, 0, 1)
	from.retryAt = a.now().Add(30 * time.Second) // not again at once what was too much
	a.mu.Unlock()
	a.discard(ctx, mc)
	return true
}

// held is the memory that the pools hold and are about to. The caller holds mu.
func (a *Agent) held() int64 {
	var sum int64
	for _, p := range a.pools {
		sum += int64(p.filling) * p.guess()
		for _, mc := range p.ready {
			sum += mc.size
		}
	}
	return sum
}

// trim takes down machines that are not wanted, and one more at a time while
// the host is short of memory.
func (a *Agent) trim(ctx context.Context) {
	m, err := a.deps.Memory()
	short := err == nil && m.Available < a.reserve(m)
	var gone []*machine
	now := a.now()
	a.mu.Lock()
	a.short = short
	for id, p := range a.pools {
		want := p.want(now)
		for a.kept && len(p.ready) > want {
			gone = append(gone, p.ready[0])
			p.ready = p.ready[1:]
		}
		if a.kept && p.ceiling == 0 && len(p.ready) == 0 && p.filling == 0 {
			delete(a.pools, id)
		}
	}
	a.mu.Unlock()
	for _, mc := range gone {
		a.discard(ctx, mc)
	}
	if short && a.evict(ctx) {
		a.log.Warn("the host is short of memory: a pool shrinks", "available", m.Available)
	}
}

// reserve is the host memory that pools leave alone.
func (a *Agent) reserve(m Memory) int64 {
	if a.cfg.HostReserve > 0 {
		return a.cfg.HostReserve
	}
	return m.Total / 16
}

// refill starts filling the pools that lack most, as many machines at once as
// configured. It returns how soon to look again, 0 when nothing is put off.
func (a *Agent) refill(ctx context.Context, fills *sync.WaitGroup) time.Duration {
	for ctx.Err() == nil {
		p, pl, wait := a.nextFill()
		if p == nil {
			return wait
		}
		fills.Go(func() {
			a.fill(ctx, p, pl)
			a.nudge()
		})
	}
	return 0
}

// nextFill chooses the pool that lacks most, counts a fill for it and says what
// to make. Where there is none because it is too early, it says how much.
func (a *Agent) nextFill() (_ *pool, _ plan, wait time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ready() != nil || a.short {
		return nil, plan{}, 0
	}
	filling, held := 0, a.held()
	for _, p := range a.pools {
		filling += p.filling
	}
	if filling >= a.cfg.PoolFills {
		return nil, plan{}, 0
	}
	now, most := a.now(), 0
	var next *pool
	for _, p := range a.pools {
		lacks := p.want(now) - len(p.ready) - p.filling
		if lacks <= 0 || held+p.guess() > a.poolMemory {
			continue
		}
		if early := p.due(now, a.taken).Sub(now); early > 0 {
			if wait == 0 || early < wait {
				wait = early
			}
		} else if lacks > most {
			most, next = lacks, p
		}
	}
	if next == nil {
		return nil, plan{}, wait
	}
	next.filling++
	build, snapshot := next.build, next.snapshot
	return next, plan{build: &build, restore: &snapshot, resources: build.Resources, urgency: turn.Background}, 0
}

// fill makes one machine for a pool. After a failure the pool waits, longer
// each time, so that a broken template does not keep the host busy.
func (a *Agent) fill(ctx context.Context, p *pool, pl plan) {
	mc, err := a.makePaused(ctx, pl)
	a.mu.Lock()
	p.filling--
	switch {
	case err != nil:
		p.failures++
		p.retryAt = a.now().Add(min(time.Second<<min(p.failures-1, 6), time.Minute))
	case a.state != open || mc.life.Err() != nil || a.pools[pl.restore.ID] != p:
		defer a.discard(ctx, mc)
	default:
		p.failures, p.size = 0, mc.size
		p.ready = append(p.ready, mc)
	}
	a.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		a.log.Warn("a pool cannot be filled", "snapshot", pl.restore.ID, "err", err)
	}
}

// makePaused restores a machine, lets it run until its daemon answers, so that
// what a restore puts off is done, and freezes it.
func (a *Agent) makePaused(ctx context.Context, pl plan) (*machine, error) {
	leave, err := a.queue.Enter(ctx, turn.Background)
	if err != nil {
		return nil, err
	}
	defer leave()
	ctx, cancel := context.WithTimeoutCause(ctx, a.cfg.StartTimeout, hearth.Errorf(hearth.DeadlineExceeded,
		"the machine was not ready within %s", a.cfg.StartTimeout))
	defer cancel()
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
		return because(ctx, err)
	}
	if err := g.Rehearse(ctx); err != nil && ctx.Err() == nil {
		a.log.Debug("a machine of the pool was not rehearsed", "machine", mc.id(), "err", err)
	}
	if err := mc.live.Freeze(ctx); err != nil {
		return because(ctx, err)
	}
	u, err := mc.live.Usage(ctx)
	if err != nil {
		return because(ctx, err)
	}
	mc.size = u.Memory
	mc.rec.Phase = journal.Pooled
	return a.journal.Write(mc.rec)
}

// drainAll takes down every machine of every pool.
func (a *Agent) drainAll(ctx context.Context) {
	a.mu.Lock()
	var list []*machine
	for _, p := range a.pools {
		list = append(list, p.ready...)
	}
	clear(a.pools)
	a.mu.Unlock()
	var all turn.Batch
	for _, mc := range list {
		all.Do(func() error { a.discard(ctx, mc); return nil })
	}
	_ = all.Wait() // discard reports
}
