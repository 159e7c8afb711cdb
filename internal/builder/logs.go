package builder

import (
	"context"
	"iter"
	"sync"
	"time"

	"hearth/internal/hearth"
)

// The levels of a LogEntry.
const (
	Debug = "debug"
	Info  = "info"
	Warn  = "warn"
	Error = "error"
)

// LogEntry is one line of a build's log.
type LogEntry struct {
	At      time.Time
	Level   string
	Step    string // "base", a step's number, or "finalize"
	Message string // at most 4 KiB
}

const (
	maxEntries = 2000 // per build; older ones are forgotten
	maxMessage = 4 << 10
)

// ring keeps the last entries of one log. Offsets count from the first entry
// ever written.
type ring struct {
	mu      sync.Mutex
	entries []LogEntry
	dropped int // entries forgotten
	more    chan struct{}
	closed  bool
}

func newRing() *ring { return &ring{more: make(chan struct{})} }

func (r *ring) add(level, step, message string) {
	if len(message) > maxMessage {
		message = message[:maxMessage-3] + "..."
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	if len(r.entries) == maxEntries { // a quarter at once, so that adding stays cheap
		r.entries = append(make([]LogEntry, 0, maxEntries), r.entries[maxEntries/4:]...)
		r.dropped += maxEntries / 4
	}
	r.entries = append(r.entries, LogEntry{At: time.Now(), Level: level, Step: step, Message: message})
	close(r.more)
	r.more = make(chan struct{})
}

func (r *ring) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	close(r.more)
	r.more = make(chan struct{})
}

// read returns up to limit entries from offset on, the offset after them, and
// a channel that is closed when there is more; nil at the end of a closed log.
func (r *ring) read(offset, limit int) ([]LogEntry, int, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	from := max(0, offset-r.dropped)
	if from >= len(r.entries) || limit <= 0 {
		if r.closed {
			return nil, offset, nil
		}
		return nil, offset, r.more
	}
	to := min(len(r.entries), from+limit)
	return append([]LogEntry(nil), r.entries[from:to]...), r.dropped + to, r.more
}

// Logs returns at most limit entries of a build's log from the offset-th on,
// oldest first; none when the build is unknown. Of a long log only the newest
// entries are kept: an offset before them reads from the oldest there is.
func (b *Builder) Logs(build hearth.BuildID, offset, limit int) []LogEntry {
	j := b.job(build)
	if j == nil || offset < 0 {
		return nil
	}
	list, _, _ := j.log.read(offset, limit)
	return list
}

// Follow yields a build's log from its first entry on until the build is
// finished or ctx ends.
func (b *Builder) Follow(ctx context.Context, build hearth.BuildID) iter.Seq[LogEntry] {
	return func(yield func(LogEntry) bool) {
		j := b.job(build)
		if j == nil {
			return
		}
		for offset := 0; ; {
			list, next, more := j.log.read(offset, pageSize)
			offset = next
			for _, e := range list {
				if !yield(e) {
					return
				}
			}
			if len(list) > 0 {
				continue
			}
			if more == nil {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-more:
			}
		}
	}
}
