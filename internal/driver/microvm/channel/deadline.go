package channel

import (
	"sync"
	"time"
)

// deadline is a moment that can be set again while others wait for it.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	past  chan struct{} // closed once the moment has come
}

func newDeadline() *deadline { return &deadline{past: make(chan struct{})} }

// set moves the moment; zero is never.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.past // the timer runs: let it close the channel
	}
	d.timer = nil
	select {
	case <-d.past:
		d.past = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return
	}
	if wait := time.Until(t); wait > 0 {
		past := d.past
		d.timer = time.AfterFunc(wait, func() { close(past) })
		return
	}
	close(d.past)
}

// wait returns what is closed when the moment has come.
func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.past
}
