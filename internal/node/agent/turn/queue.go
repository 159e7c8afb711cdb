package turn

import (
	"container/list"
	"context"
	"sync"
	"time"

	"hearth/internal/hearth"
)

// Urgency says who waits for a start.
type Urgency int

// The urgencies.
const (
	User       Urgency = iota // somebody waits for it
	Background                // a pool; goes only when no user waits
)

// Queue lets a bounded number of machines start at once, first come first
// served, so that a burst is worked off at the host's pace instead of
// collapsing it.
type Queue struct {
	mu      sync.Mutex
	free    int
	limit   int // users that may wait
	waiting [2]*list.List
	active  int
	users   int           // that wait or start
	calm    chan struct{} // closed when there are none again; nil while there are none
}

// NewQueue returns a queue for width starts at once, and limit users that wait.
func NewQueue(width, limit int) *Queue {
	return &Queue{free: width, limit: limit, waiting: [2]*list.List{list.New(), list.New()}}
}

// Enter waits for a turn; leave ends it and may be called once. A user who
// finds the queue full gets ResourceExhausted at once.
func (q *Queue) Enter(ctx context.Context, u Urgency) (leave func(), err error) {
	if ctx.Err() != nil {
		return nil, Ended(ctx)
	}
	q.mu.Lock()
	if q.free > 0 && q.waiting[User].Len() == 0 && (u == User || q.waiting[Background].Len() == 0) {
		q.free--
		q.active++
		q.came(u)
		q.mu.Unlock()
		return func() { q.leave(u) }, nil
	}
	line := q.waiting[u]
	if n := line.Len(); u == User && n >= q.limit {
		q.mu.Unlock()
		return nil, hearth.Errorf(hearth.ResourceExhausted,
			"the node is busy: %d starts wait for their turn, which is the limit; try again in a few seconds", n)
	}
	turn := make(chan struct{})
	at := line.PushBack(turn)
	q.came(u)
	q.mu.Unlock()

	select {
	case <-turn:
		return func() { q.leave(u) }, nil
	case <-ctx.Done():
	}
	q.mu.Lock()
	select {
	case <-turn: // it was granted meanwhile: pass it on
		q.mu.Unlock()
		q.leave(u)
	default:
		line.Remove(at)
		q.went(u)
		q.mu.Unlock()
	}
	return nil, Ended(ctx)
}

// came and went count the users.
func (q *Queue) came(u Urgency) {
	if u != User {
		return
	}
	if q.users++; q.users == 1 {
		q.calm = make(chan struct{})
	}
}

func (q *Queue) went(u Urgency) {
	if u != User {
		return
	}
	if q.users--; q.users == 0 {
		close(q.calm)
		q.calm = nil
	}
}

// patience is how long what is made to wait gives way to users' starts: to one start, or a
// few. A host that is never calm has the time for it, because starts wait for much that
// is no work.
const patience = 100 * time.Millisecond

// Calm waits until no user's start waits or is under way, for a tenth of a second at most. To Enter
// may take longer.
func (q *Queue) Calm(ctx context.Context) {
	q.mu.Lock()
	calm := q.calm
	q.mu.Unlock()
	if calm == nil {
		return
	}
	over := time.NewTimer(patience)
	defer over.Stop()
	select {
	case <-calm:
	case <-over.C:
	case <-ctx.Done():
	}
}

func (q *Queue) leave(u Urgency) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.went(u)
	for _, line := range q.waiting {
		if first := line.Front(); first != nil {
			line.Remove(first)
			close(first.Value.(chan struct{}))
			return
		}
	}
	q.free++
	q.active--
}

// Busy reports whether a user's start waits or is under way.
func (q *Queue) Busy() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.users > 0
}

// Load reports how many starts run and how many users wait.
func (q *Queue) Load() (active, waiting int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.active, q.waiting[User].Len()
}
