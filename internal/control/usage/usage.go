// Package usage remembers what sandboxes used lately.
package usage

import (
	"maps"
	"sync"
	"time"

	"hearth/internal/hearth"
	"hearth/internal/node"
)

// Bounds of the samples kept: per sandbox, and over all of them (~20 MiB).
// Where there are many sandboxes each keeps fewer, but never below the least.
const (
	maxSamples   = 720 // an hour of one every five seconds
	leastSamples = 24
	allSamples   = 1 << 18
)

// Samples is the recent usage of sandboxes, oldest first. Its methods are safe for
// concurrent use.
type Samples struct {
	mu sync.Mutex
	of map[hearth.SandboxID][]node.Usage
}

// New returns an empty set of samples.
func New() *Samples { return &Samples{of: map[hearth.SandboxID][]node.Usage{}} }

// Add notes one sample of a sandbox.
func (s *Samples) Add(id hearth.SandboxID, u node.Usage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	keep := min(maxSamples, max(leastSamples, allSamples/max(len(s.of), 1)))
	list := append(s.of[id], u)
	if over := len(list) - keep; over > 0 {
		list = list[:copy(list, list[over:])]
	}
	s.of[id] = list
}

// Keep forgets all but what still lives.
func (s *Samples) Keep(lives func(hearth.SandboxID) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.of, func(id hearth.SandboxID, _ []node.Usage) bool { return !lives(id) })
}

// Between returns the last sample of every step from start to end.
func (s *Samples) Between(id hearth.SandboxID, start, end time.Time, step time.Duration) []node.Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []node.Usage
	for _, u := range s.of[id] {
		if u.At.Before(start) || u.At.After(end) {
			continue
		}
		if n := len(out); n > 0 && out[n-1].At.Truncate(step).Equal(u.At.Truncate(step)) {
			out[n-1] = u
			continue
		}
		out = append(out, u)
	}
	return out
}

// StepOf is the distance of samples in a range of the given length.
func StepOf(length, least time.Duration) time.Duration {
	switch {
	case length < time.Hour:
		return least
	case length < 6*time.Hour:
		return 30 * time.Second
	case length < 12*time.Hour:
		return time.Minute
	case length < 24*time.Hour:
		return 2 * time.Minute
	case length < 7*24*time.Hour:
		return 5 * time.Minute
	}
	return 15 * time.Minute
}
