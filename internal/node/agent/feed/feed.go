// Package feed hands a node's events to any number of readers, each at its own
// pace, in bounded memory, without ever losing a sandbox's last event.
package feed

import (
	"context"
	"iter"
	"sync"

	"hearth/internal/hearth"
	"hearth/internal/node"
)

// maxPending bounds what one slow reader of events costs. Events are merged per
// sandbox, so that this many different sandboxes have to change before a reader
// is told to list again.
const maxPending = 65536

// A Hub hands events to every reader. A reader that is slow sees the newest event
// of each sandbox, never loses the last one, and never blocks the node. Events
// that happen while nobody reads wait for the first reader.
type Hub struct {
	mu      sync.Mutex
	readers map[*mailbox]struct{}
	backlog *mailbox
	done    chan struct{}
	once    sync.Once
}

// New returns a hub without readers.
func New() *Hub {
	return &Hub{readers: map[*mailbox]struct{}{}, backlog: newMailbox(), done: make(chan struct{})}
}

// Close ends every reader, once it has read what is pending. Idempotent.
func (h *Hub) Close() { h.once.Do(func() { close(h.done) }) }

// Publish never blocks.
func (h *Hub) Publish(e node.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.readers) == 0 {
		h.backlog.put(e)
		return
	}
	for m := range h.readers {
		m.put(e)
	}
}

// Subscribe registers at once and yields until ctx ends or the hub closes.
func (h *Hub) Subscribe(ctx context.Context) iter.Seq2[node.Event, error] {
	h.mu.Lock()
	m := newMailbox()
	if len(h.readers) == 0 {
		m, h.backlog = h.backlog, m
	}
	h.readers[m] = struct{}{}
	h.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { h.leave(m) })
	return func(yield func(node.Event, error) bool) {
		defer h.leave(m)
		defer stop()
		for {
			if !m.drain(yield) {
				return
			}
			select {
			case <-m.ready:
			case <-ctx.Done():
				return
			case <-h.done:
				m.drain(yield)
				return
			}
		}
	}
}

func (h *Hub) leave(m *mailbox) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.readers, m)
}

// mailbox holds the newest unread event of each sandbox, oldest first.
type mailbox struct {
	ready chan struct{}

	mu      sync.Mutex
	pending map[hearth.SandboxID]node.Event
	order   []hearth.SandboxID
	lost    bool
}

func newMailbox() *mailbox {
	return &mailbox{ready: make(chan struct{}, 1), pending: map[hearth.SandboxID]node.Event{}}
}

func (m *mailbox) put(e node.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, there := m.pending[e.ID]; !there {
		if len(m.pending) >= maxPending {
			clear(m.pending)
			m.order, m.lost = nil, true
		}
		m.order = append(m.order, e.ID)
	}
	m.pending[e.ID] = e
	select {
	case m.ready <- struct{}{}:
	default:
	}
}

// drain yields what is pending; false when the reader has had enough.
func (m *mailbox) drain(yield func(node.Event, error) bool) bool {
	list, lost := m.take()
	for _, e := range list {
		if !yield(e, nil) {
			return false
		}
	}
	return !lost || yield(node.Event{}, hearth.Errorf(hearth.Aborted,
		"more than %d sandboxes changed unread; list them again", maxPending))
}

func (m *mailbox) take() (list []node.Event, lost bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range m.order {
		list = append(list, m.pending[id])
	}
	clear(m.pending)
	lost, m.order, m.lost = m.lost, nil, false
	return list, lost
}
