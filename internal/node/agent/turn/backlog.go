package turn

import "sync"

// mostBehind is how much work is done behind calls at once.
const mostBehind = 8

// Backlog is work that is done behind the calls it is for. It must not be copied.
type Backlog struct {
	room chan struct{}
	all  sync.WaitGroup
}

// NewBacklog returns a Backlog.
func NewBacklog() *Backlog { return &Backlog{room: make(chan struct{}, mostBehind)} }

// Do has work done in a goroutine that spawn starts, or at once, by the caller, while
// there is no room: who asks for more than can be done waits for it. Done is closed
// afterwards.
func (b *Backlog) Do(spawn func(func()), work func()) (done <-chan struct{}) {
	end := make(chan struct{})
	b.all.Add(1)
	select {
	case b.room <- struct{}{}:
		spawn(func() {
			defer b.all.Done()
			defer func() { <-b.room }()
			defer close(end)
			work()
		})
	default:
		defer b.all.Done()
		defer close(end)
		work()
	}
	return end
}

// Wait waits until all is done that Do was called with before.
func (b *Backlog) Wait() { b.all.Wait() }
