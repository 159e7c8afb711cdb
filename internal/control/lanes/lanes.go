// Package lanes keeps calls for one sandbox apart.
package lanes

import (
	"context"
	"sync"

	"hearth/internal/hearth"
)

// Locks holds one lock per sandbox that is being worked on. The zero value is ready.
type Locks struct {
	mu   sync.Mutex
	held map[hearth.SandboxID]*lock
}

type lock struct {
	turn chan struct{} // holds a token while free
	uses int           // holders and waiters
}

// Lock waits for the sandbox's turn. Call unlock once.
func (l *Locks) Lock(ctx context.Context, id hearth.SandboxID) (unlock func(), err error) {
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
		return nil, Ended(ctx)
	}
}

// Busy reports whether somebody holds the sandbox's lock or waits for it.
func (l *Locks) Busy(id hearth.SandboxID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held[id] != nil
}

// Ended is the error of a context that has.
func Ended(ctx context.Context) error {
	cause := context.Cause(ctx)
	if ctx.Err() == context.DeadlineExceeded {
		return hearth.Wrap(hearth.DeadlineExceeded, cause, "the request took too long")
	}
	return hearth.Wrap(hearth.Canceled, cause, "the request was canceled")
}

// Set is a set of sandboxes. The zero value is ready.
type Set struct {
	mu  sync.Mutex
	ids map[hearth.SandboxID]bool
}

// Add puts one more into the set.
func (s *Set) Add(id hearth.SandboxID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ids == nil {
		s.ids = map[hearth.SandboxID]bool{}
	}
	s.ids[id] = true
}

// Take empties the set.
func (s *Set) Take() []hearth.SandboxID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []hearth.SandboxID
	for id := range s.ids {
		ids = append(ids, id)
	}
	s.ids = nil
	return ids
}
