package control

import (
	"context"
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
	samplers     = 8
	usageTimeout = 2 * time.Second
)

// samples is the recent usage of sandboxes, oldest first.
type samples struct {
	mu sync.Mutex
	of map[hearth.SandboxID][]node.Usage
}

func newSamples() *samples { return &samples{of: map[hearth.SandboxID][]node.Usage{}} }

func (s *samples) add(id hearth.SandboxID, u node.Usage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	keep := min(maxSamples, max(leastSamples, allSamples/max(len(s.of), 1)))
	list := append(s.of[id], u)
	if over := len(list) - keep; over > 0 {
		list = list[:copy(list, list[over:])]
	}
	s.of[id] = list
}

// keep forgets all but what still lives.
func (s *samples) keep(lives func(hearth.SandboxID) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.of, func(id hearth.SandboxID, _ []node.Usage) bool { return !lives(id) })
}

// between returns the last sample of every step from start to end.
func (s *samples) between(id hearth.SandboxID, start, end time.Time, step time.Duration) []node.Usage {
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

// Metrics returns what a sandbox used between two times, oldest first; zero
// times are its start and now. Longer ranges have fewer samples. Only the last
// hour is kept, and none of it over a restart of the server.
func (c *Controller) Metrics(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, start, end time.Time) ([]node.Usage, error) {
	sb, err := c.Sandbox(ctx, team, id)
	if err != nil {
		return nil, err
	}
	if start.IsZero() {
		start = sb.CreatedAt
	}
	if end.IsZero() {
		end = c.clock()
	}
	if start.After(end) {
		return nil, hearth.Errorf(hearth.InvalidArgument, "start must not be after end")
	}
	return c.samples.between(id, start, end, stepOf(end.Sub(start), c.limits.Sample)), nil
}

// stepOf is the distance of samples in a range of the given length.
func stepOf(length, least time.Duration) time.Duration {
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

// sample asks the nodes for the usage of every running sandbox, again and again.
func (c *Controller) sample(ctx context.Context) {
	tick := time.NewTicker(c.limits.Sample)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var wg sync.WaitGroup
		turns := make(chan struct{}, samplers)
		for _, id := range c.Live() {
			turns <- struct{}{}
			wg.Go(func() {
				defer func() { <-turns }()
				c.sampleOne(ctx, id)
			})
		}
		wg.Wait()
		lives := func(id hearth.SandboxID) bool {
			_, ok := c.Route(id)
			return ok
		}
		c.samples.keep(lives)
		c.gates.failed.keep(lives)
	}
}

func (c *Controller) sampleOne(ctx context.Context, id hearth.SandboxID) {
	r, ok := c.Route(id)
	if !ok || r.State != hearth.Running {
		return
	}
	svc, err := c.nodes.Node(r.Node)
	if err != nil {
		return // its node is away; follow says so
	}
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	u, err := svc.Usage(ctx, id)
	if missing(err) {
		c.unclear.add(id) // an event may have been missed
	}
	if err != nil {
		c.log.Debug("usage could not be sampled", "sandbox", id, "err", err)
		return
	}
	if u.At.IsZero() {
		u.At = c.clock()
	}
	c.samples.add(id, u)
}
