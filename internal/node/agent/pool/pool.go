// Package pool decides which machines a node holds ready, and makes none itself.
//
// There are two kinds. A pool holds machines of one warm snapshot that were
// restored, ran until their daemon answered, and were frozen: they cost memory but
// no CPU, and a start that takes one is a thaw and one request. No machine of a
// pool was ever unsealed. Behind the pools are blanks (driver.Blank): machines of
// one shape without a state, into which any checkpoint of that shape is restored
// in about half the time.
//
// Nothing here is safe for concurrent use: the agent's lock guards it.
package pool

import (
	"slices"
	"time"

	"hearth/internal/hearth"
	"hearth/internal/node/agent/demand"
)

// Member is a machine that waits. It is held by one pool at most, or is one blank.
type Member interface {
	comparable
	Held() int64                 // bytes of the host's memory
	Resources() hearth.Resources // it was made with
	Snapshot() hearth.SnapshotID // it was restored from; empty: a blank
}

// Pool is of one warm snapshot.
type Pool[M Member] struct {
	Build    hearth.Build
	Warm     hearth.Snapshot
	floor    int  // machines to hold whatever is asked for
	ceiling  int  // machines to hold at most
	named    bool // by the last Keep
	demand   demand.Demand
	ready    []M // oldest first
	filling  int
	size     int64 // bytes of the machine that was made last
	failures int   // in a row
	retryAt  time.Time
}

// calm is how long nothing is made after a machine was taken, as long as the pool has half of what it
// wants: what is asked of that machine first, a command or a cell, would compete for the processors with a
// restore. It is little more than that takes, so that starts which follow each other leave a time to fill in.
// A pool that has less waits less: starts that leave no such time do not empty it.
const calm = 75 * time.Millisecond

// sizeGuess is the memory of a pool's first machine, before one was measured.
const sizeGuess = 128 << 20

// due is when the pool may be filled next, given when a machine was last taken
// from any.
func (p *Pool[M]) due(now, taken time.Time) time.Time {
	wait, has, want := calm, 2*(len(p.ready)+p.filling), p.want(now)
	if has < want {
		wait = calm * time.Duration(has) / time.Duration(want)
	}
	if rested := taken.Add(wait); rested.After(p.retryAt) {
		return rested
	}
	return p.retryAt
}

// lacks says how many machines are missing of what the pool wants.
func (p *Pool[M]) lacks(now time.Time) int { return p.want(now) - len(p.ready) - p.filling }

// want is how many machines the pool should hold now: as many as the busiest
// ten seconds of the last ten minutes took, within its bounds.
func (p *Pool[M]) want(now time.Time) int {
	return min(max(p.demand.Peak(now), p.floor), p.ceiling)
}

func (p *Pool[M]) guess() int64 {
	if p.size > 0 {
		return p.size
	}
	return min(sizeGuess, int64(p.Build.Resources.MemoryMiB)<<20)
}

// Set is all pools of a node, and the blanks behind them.
type Set[M Member] struct {
	pools  map[hearth.SnapshotID]*Pool[M]
	blanks map[Shape]*tier[M]
	each   int       // blanks of a shape
	named  bool      // pools were named: those that are not go
	taken  time.Time // when a machine was last taken
}

// New returns a set without pools that holds each blanks for every shape of theirs.
func New[M Member](each int) *Set[M] {
	return &Set[M]{pools: map[hearth.SnapshotID]*Pool[M]{}, blanks: map[Shape]*tier[M]{}, each: each}
}

// Bounds are how many machines a pool holds.
type Bounds struct{ Floor, Ceiling int }

// Forget ends all pools but for those that Keep names next.
func (s *Set[M]) Forget() {
	for _, p := range s.pools {
		p.floor, p.ceiling, p.named = 0, 0, false
	}
	s.named = true
}

// Keep names a pool. Blanks of its snapshot's shape are kept, too, if it has one.
func (s *Set[M]) Keep(b hearth.Build, warm hearth.Snapshot, of Bounds) {
	p := s.of(warm.ID)
	p.Build, p.Warm, p.floor, p.ceiling, p.named = b, warm, of.Floor, of.Ceiling, true
}

func (s *Set[M]) of(id hearth.SnapshotID) *Pool[M] {
	p := s.pools[id]
	if p == nil {
		p = &Pool[M]{}
		s.pools[id] = p
	}
	return p
}

// Empty takes out every machine and every pool.
func (s *Set[M]) Empty() []M {
	list := s.Machines()
	clear(s.pools)
	return append(list, s.Blanks()...)
}

// Asked notes that a snapshot's sandboxes are wanted; false when there is no such pool.
func (s *Set[M]) Asked(id hearth.SnapshotID, now time.Time) bool {
	p := s.pools[id]
	if p != nil {
		p.demand.Note(now)
	}
	return p != nil
}

// Claim takes the oldest machine of a snapshot that has the resources.
func (s *Set[M]) Claim(id hearth.SnapshotID, r hearth.Resources, now time.Time) (m M, found bool) {
	p := s.pools[id]
	if p == nil {
		return m, false
	}
	at := slices.IndexFunc(p.ready, func(m M) bool { return m.Resources() == r })
	if at < 0 {
		return m, false
	}
	m = p.ready[at]
	p.ready = slices.Delete(p.ready, at, at+1)
	s.taken = now
	return m, true
}

// Take removes a machine; false when it is in no pool and no blank of the set's.
func (s *Set[M]) Take(m M) bool {
	if m.Snapshot() == "" {
		return s.takeBlank(m)
	}
	p := s.pools[m.Snapshot()]
	if p == nil {
		return false
	}
	at := slices.Index(p.ready, m)
	if at < 0 {
		return false
	}
	p.ready = slices.Delete(p.ready, at, at+1)
	return true
}

// Evict takes out a machine to make room: a blank, which is the soonest made again,
// or the oldest of the largest pool. Its kind is not made again for a while.
func (s *Set[M]) Evict(now time.Time) (m M, found bool) {
	const pause = 30 * time.Second
	for _, t := range s.blanks {
		if len(t.ready) > 0 {
			m, t.ready = t.ready[0], t.ready[1:]
			t.retryAt = now.Add(pause)
			return m, true
		}
	}
	var from *Pool[M]
	for _, p := range s.pools {
		if len(p.ready) > 0 && (from == nil || len(p.ready) > len(from.ready)) {
			from = p
		}
	}
	if from == nil {
		return m, false
	}
	m = from.ready[0]
	from.ready = slices.Delete(from.ready, 0, 1)
	from.retryAt = now.Add(pause)
	return m, true
}

// Trim takes out what is not wanted any more.
func (s *Set[M]) Trim(now time.Time) []M {
	if !s.named {
		return nil
	}
	gone := s.trimBlanks()
	for id, p := range s.pools {
		want := p.want(now)
		for len(p.ready) > want {
			gone = append(gone, p.ready[0])
			p.ready = p.ready[1:]
		}
		if !p.named && len(p.ready) == 0 && p.filling == 0 {
			delete(s.pools, id)
		}
	}
	return gone
}

// Held is the memory that pools and blanks hold and are about to.
func (s *Set[M]) Held() int64 {
	sum := s.heldBlank()
	for _, p := range s.pools {
		sum += int64(p.filling) * p.guess()
		for _, m := range p.ready {
			sum += m.Held()
		}
	}
	return sum
}

// Filling counts the machines that are being made.
func (s *Set[M]) Filling() int {
	n := s.fillingBlank()
	for _, p := range s.pools {
		n += p.filling
	}
	return n
}

// Next chooses the pool that lacks most, within memory, and counts a fill for it
// that Filled ends. Where there is none because it is too early, it says how much.
func (s *Set[M]) Next(now time.Time, memory int64) (next *Pool[M], wait time.Duration) {
	most, held := 0, s.Held()
	for _, p := range s.pools {
		lacks := p.lacks(now)
		if lacks <= 0 || held+p.guess() > memory {
			continue
		}
		if early := p.due(now, s.taken).Sub(now); early > 0 {
			if wait == 0 || early < wait {
				wait = early
			}
		} else if lacks > most {
			most, next = lacks, p
		}
	}
	if next == nil {
		return nil, wait
	}
	next.filling++
	return next, 0
}

// Filled ends a fill that brought a machine; false when its pool is gone and the machine not wanted.
func (s *Set[M]) Filled(p *Pool[M], m M) bool {
	p.filling--
	if s.pools[m.Snapshot()] != p {
		return false
	}
	p.failures = 0
	p.put(m)
	return true
}

// Wasted ends a fill that brought a machine nobody wants any more.
func (s *Set[M]) Wasted(p *Pool[M]) { p.filling-- }

// Failed ends a fill that failed. The pool then waits, longer each time, so that a
// broken template does not keep the host busy.
func (s *Set[M]) Failed(p *Pool[M], now time.Time) {
	p.filling--
	p.failures++
	p.retryAt = now.Add(backoff(p.failures))
}

func backoff(failures int) time.Duration {
	return min(time.Second<<min(failures-1, 6), time.Minute)
}

// Adopt puts a machine of an earlier process into its pool. A later Keep decides
// whether it stays.
func (s *Set[M]) Adopt(m M) { s.of(m.Snapshot()).put(m) }

func (p *Pool[M]) put(m M) {
	p.ready, p.size = append(p.ready, m), m.Held()
}

// Machines lists the machines of all pools.
func (s *Set[M]) Machines() []M {
	var list []M
	for _, p := range s.pools {
		list = append(list, p.ready...)
	}
	return list
}

// Ready counts them by snapshot, for every pool there is.
func (s *Set[M]) Ready() map[hearth.SnapshotID]int {
	n := map[hearth.SnapshotID]int{}
	for id, p := range s.pools {
		n[id] = len(p.ready)
	}
	return n
}

// Cached enters the snapshots and builds that there are pools of.
func (s *Set[M]) Cached(into map[string]bool) {
	for id, p := range s.pools {
		into[string(id)], into[string(p.Build.ID)] = true, true
	}
}
