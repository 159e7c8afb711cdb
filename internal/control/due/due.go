// Package due remembers when sandboxes fall due, earliest first. It is a memory
// of the store's EndsAt and never the truth: whoever takes a sandbox from it
// asks the store again.
package due

import (
	"container/heap"
	"sync"
	"time"

	"hearth/internal/hearth"
)

// Queue is a priority queue of sandboxes by the time they end. Its methods are
// safe for concurrent use.
type Queue struct {
	mu     sync.Mutex
	items  items
	of     map[hearth.SandboxID]*item
	change chan struct{} // holds a token when the earliest item may be another
}

type item struct {
	id         hearth.SandboxID
	at         time.Time
	generation int64 // of the row that said so
	index      int
}

// New returns an empty queue.
func New() *Queue {
	return &Queue{of: map[hearth.SandboxID]*item{}, change: make(chan struct{}, 1)}
}

// Set notes when a sandbox ends, unless a later row said so already.
func (q *Queue) Set(sb *hearth.Sandbox) { q.put(sb.ID, sb.EndsAt, sb.Generation) }

func (q *Queue) put(id hearth.SandboxID, at time.Time, generation int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	it := q.of[id]
	switch {
	case it == nil:
		it = &item{id: id, at: at, generation: generation}
		q.of[id] = it
		heap.Push(&q.items, it)
	case it.generation > generation:
		return
	default:
		it.at, it.generation = at, generation
		heap.Fix(&q.items, it.index)
	}
	q.tell()
}

// Note is Set for a sandbox that the queue may have missed; what it has stays.
func (q *Queue) Note(id hearth.SandboxID, at time.Time) {
	q.mu.Lock()
	_, known := q.of[id]
	q.mu.Unlock()
	if !known {
		q.put(id, at, 0)
	}
}

// Drop forgets a sandbox.
func (q *Queue) Drop(id hearth.SandboxID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if it := q.of[id]; it != nil {
		heap.Remove(&q.items, it.index)
		delete(q.of, id)
		q.tell()
	}
}

// Changed has a value when the earliest end may be another than the last Take said.
func (q *Queue) Changed() <-chan struct{} { return q.change }

func (q *Queue) tell() {
	select {
	case q.change <- struct{}{}:
	default:
	}
}

// Take removes and returns what is due, and when the next one will be; zero if
// there is none.
func (q *Queue) Take(now time.Time) (due []hearth.SandboxID, next time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.items) > 0 {
		if q.items[0].at.After(now) {
			return due, q.items[0].at
		}
		it := heap.Pop(&q.items).(*item)
		delete(q.of, it.id)
		due = append(due, it.id)
	}
	return due, time.Time{}
}

// items implements heap.Interface.
type items []*item

func (s items) Len() int           { return len(s) }
func (s items) Less(i, j int) bool { return s[i].at.Before(s[j].at) }
func (s items) Swap(i, j int) {
	s[i], s[j] = s[j], s[i]
	s[i].index, s[j].index = i, j
}

func (s *items) Push(x any) {
	it := x.(*item)
	it.index = len(*s)
	*s = append(*s, it)
}

func (s *items) Pop() any {
	last := len(*s) - 1
	it := (*s)[last]
	(*s)[last] = nil
	*s = (*s)[:last]
	return it
}
