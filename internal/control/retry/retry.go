// Package retry repeats what may work when it is tried again.
package retry

import (
	"context"
	"math/rand/v2"
	"time"

	"hearth/internal/hearth"
)

// delay is the pause before the n-th try, n from 1: 20 ms, doubled up to
// 2 s, and a random half of it more.
func delay(n int) time.Duration {
	d := min(20*time.Millisecond<<min(n-1, 10), 2*time.Second)
	return d + rand.N(d/2)
}

// Do calls fn until it succeeds, fails for good, ctx ends, or tries are used
// up. Unavailable and, where a compare-and-swap was lost, Aborted are worth
// another try.
func Do(ctx context.Context, tries int, fn func() error) error {
	for n := 1; ; n++ {
		err := fn()
		if err == nil || n >= tries || !Passing(err) || !Wait(ctx, n) {
			return err
		}
	}
}

// Wait is the pause before another try. False when ctx ended first.
func Wait(ctx context.Context, n int) bool {
	timer := time.NewTimer(delay(n))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// Passing reports whether another try makes sense.
func Passing(err error) bool {
	kind := hearth.KindOf(err)
	return kind == hearth.Unavailable || kind == hearth.Aborted
}
