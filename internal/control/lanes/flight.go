package lanes

import (
	"context"
	"sync"

	"hearth/internal/hearth"
)

// Lanes runs calls: one at a time for a sandbox, and equal ones once.
type Lanes struct {
	Locks

	life context.Context
	work *sync.WaitGroup // counts calls that go on without their callers

	mu sync.Mutex
	of map[Key]*flight
}

// New returns lanes whose calls end with life, and are counted in work.
func New(life context.Context, work *sync.WaitGroup) *Lanes {
	return &Lanes{life: life, work: work, of: map[Key]*flight{}}
}

// Key says which calls are equal.
type Key struct {
	ID hearth.SandboxID
	Op string
}

// flight is one call under way. sb and err are set before done is closed.
type flight struct {
	done chan struct{}
	sb   *hearth.Sandbox
	err  error
}

// Step is what a flight does while it holds the sandbox's lock. after, if not
// nil, runs when the callers have their answer, still under the lock.
type Step func(ctx context.Context) (sb *hearth.Sandbox, after func(context.Context), err error)

// Share runs do under the sandbox's lock, without the end of ctx, or joins the
// flight of an equal call. joined says which. The caller stops waiting when ctx
// ends; the flight goes on.
func (l *Lanes) Share(ctx context.Context, key Key, do Step) (sb *hearth.Sandbox, joined bool, err error) {
	l.mu.Lock()
	f := l.of[key]
	joined = f != nil
	if !joined {
		f = &flight{done: make(chan struct{})}
		l.of[key] = f
		fctx := context.WithoutCancel(ctx)
		l.work.Go(func() { l.fly(fctx, key, f, do) })
	}
	l.mu.Unlock()
	select {
	case <-f.done:
	case <-ctx.Done():
		return nil, joined, Ended(ctx)
	}
	if f.err != nil {
		return nil, joined, f.err
	}
	out := *f.sb // callers that share a flight do not share a row
	return &out, joined, nil
}

func (l *Lanes) fly(ctx context.Context, key Key, f *flight, do Step) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.life, cancel)()
	land := func(sb *hearth.Sandbox, err error) {
		l.mu.Lock()
		delete(l.of, key)
		l.mu.Unlock()
		f.sb, f.err = sb, err
		close(f.done)
	}
	unlock, err := l.Lock(ctx, key.ID)
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
