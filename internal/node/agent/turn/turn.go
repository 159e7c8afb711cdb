// Package turn decides who goes when: locks by name, the queue of starts, and
// batches of work done a few at a time.
package turn

import (
	"context"
	"errors"
	"sync"
	"time"

	"hearth/internal/hearth"
)

// Locks is a set of locks by name. The zero value is ready.
type Locks[K comparable] struct {
	mu   sync.Mutex
	held map[K]*keyLock
}

type keyLock struct {
	turn chan struct{} // holds one token while the lock is free
	refs int
}

// Lock waits for its turn and returns the function that ends it. The error is
// the cause of ctx's end.
func (k *Locks[K]) Lock(ctx context.Context, key K) (unlock func(), err error) {
	k.mu.Lock()
	if k.held == nil {
		k.held = map[K]*keyLock{}
	}
	l := k.held[key]
	if l == nil {
		l = &keyLock{turn: make(chan struct{}, 1)}
		l.turn <- struct{}{}
		k.held[key] = l
	}
	l.refs++
	k.mu.Unlock()

	select {
	case <-l.turn:
		return func() { l.turn <- struct{}{}; k.drop(key, l) }, nil
	case <-ctx.Done():
		k.drop(key, l)
		return nil, Ended(ctx)
	}
}

func (k *Locks[K]) drop(key K, l *keyLock) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.refs--; l.refs == 0 {
		delete(k.held, key)
	}
}

// Ended turns the end of a context into an error with a kind.
func Ended(ctx context.Context) error {
	cause := context.Cause(ctx)
	if _, ok := errors.AsType[*hearth.Error](cause); ok {
		return cause
	}
	if errors.Is(cause, context.DeadlineExceeded) {
		return hearth.Wrap(hearth.DeadlineExceeded, cause, "the time for the request is over")
	}
	return hearth.Wrap(hearth.Canceled, cause, "the request was canceled")
}

// Batch runs functions, a few at a time, and joins their errors. The zero value
// is ready.
type Batch struct {
	sem  chan struct{}
	wg   sync.WaitGroup
	mu   sync.Mutex
	errs []error
}

const batchWidth = 8

// Do starts f as soon as there is room for it.
func (b *Batch) Do(f func() error) {
	if b.sem == nil {
		b.sem = make(chan struct{}, batchWidth)
	}
	b.sem <- struct{}{}
	b.wg.Go(func() {
		defer func() { <-b.sem }()
		if err := f(); err != nil {
			b.mu.Lock()
			b.errs = append(b.errs, err)
			b.mu.Unlock()
		}
	})
}

// Wait returns when every function has, with their errors joined.
func (b *Batch) Wait() error {
	b.wg.Wait()
	return errors.Join(b.errs...)
}

// Rest waits for d or the end of ctx.
func Rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// Because prefers the reason why ctx ended to the error that it led to.
func Because(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return Ended(ctx)
	}
	return err
}

// Cleanup returns a context for undoing things: it outlives the caller's, with
// a deadline of its own.
func Cleanup(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
}

// Within returns a context that also ends with life, and of the same cause.
func Within(ctx, life context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(life, func() { cancel(context.Cause(life)) })
	return ctx, func() { stop(); cancel(nil) }
}
