package control

import (
	"context"
	"sync"

	"hearth/internal/hearth"
)

// locks holds one lock per sandbox that is being worked on.
type locks struct {
	mu   sync.Mutex
	held map[hearth.SandboxID]*lock
}

type lock struct {
	turn chan struct{} // holds a token while free
	uses int           // holders and waiters
}

// lock waits for the sandbox's turn. Call unlock once.
func (l *locks) lock(ctx context.Context, id hearth.SandboxID) (unlock func(), err error) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[hearth.SandboxID]*lock{}
	}
	k := l.held[id]
	if k == nil {
		k = &lock{turn: make(chan struct{}, 1)}
		k.turn <- struct{}{}
		l.held[id] = k
	}
	k.uses++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.uses--; k.uses == 0 {
			delete(l.held, id)
		}
	}
	select {
	case <-k.turn:
		return func() { k.turn <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ended(ctx)
	}
}

// ended is the error of a context that has.
func ended(ctx context.Context) error {
	cause := context.Cause(ctx)
	if ctx.Err() == context.DeadlineExceeded {
		return hearth.Wrap(hearth.DeadlineExceeded, cause, "the request took too long")
	}
	return hearth.Wrap(hearth.Canceled, cause, "the request was canceled")
}

// flights are the calls under way that equal calls join.
type flights struct {
	mu sync.Mutex
	of map[flightKey]*flight
}

type flightKey struct {
	id hearth.SandboxID
	op string
}

// flight is one call under way. sb and err are set before done is closed.
type flight struct {
	done chan struct{}
	sb   *hearth.Sandbox
	err  error
}

// step is what a flight does while it holds the sandbox's lock. after, if not
// nil, runs when the callers have their answer, still under the lock.
type step func(ctx context.Context) (sb *hearth.Sandbox, after func(context.Context), err error)

// share runs do under the sandbox's lock, without the end of ctx, or joins the
// flight of an equal call. joined says which. The caller stops waiting when ctx
// ends; the flight goes on.
func (c *Controller) share(ctx context.Context, key flightKey, do step) (sb *hearth.Sandbox, joined bool, err error) {
	c.flights.mu.Lock()
	if c.flights.of == nil {
		c.flights.of = map[flightKey]*flight{}
	}
	f := c.flights.of[key]
	joined = f != nil
	if !joined {
		f = &flight{done: make(chan struct{})}
		c.flights.of[key] = f
		fctx := context.WithoutCancel(ctx)
		c.work.Go(func() { c.fly(fctx, key, f, do) })
	}
	c.flights.mu.Unlock()
	select {
	case <-f.done:
	case <-ctx.Done():
		return nil, joined, ended(ctx)
	}
	if f.err != nil {
		return nil, joined, f.err
	}
	out := *f.sb // callers that share a flight do not share a row
	return &out, joined, nil
}

func (c *Controller) fly(ctx context.Context, key flightKey, f *flight, do step) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.life, cancel)()
	land := func(sb *hearth.Sandbox, err error) {
		c.flights.mu.Lock()
		delete(c.flights.of, key)
		c.flights.mu.Unlock()
		f.sb, f.err = sb, err
		close(f.done)
	}
	unlock, err := c.locks.lock(ctx, key.id)
	if err != nil {
		land(nil, err)
		return
	}
	defer unlock()
	sb, after, err := do(ctx)
	land(sb, err)
	if after != nil {
		after(ctx)
	}
}

// set is a set of sandboxes.
type set struct {
	mu  sync.Mutex
	ids map[hearth.SandboxID]bool
}

func (s *set) add(id hearth.SandboxID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ids == nil {
		s.ids = map[hearth.SandboxID]bool{}
	}
	s.ids[id] = true
}

// take empties the set.
func (s *set) take() []hearth.SandboxID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []hearth.SandboxID
	for id := range s.ids {
		ids = append(ids, id)
	}
	s.ids = nil
	return ids
}
