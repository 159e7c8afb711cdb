package control

import (
	"context"
	"sync"
	"time"

	"hearth/internal/control/usage"
	"hearth/internal/hearth"
	"hearth/internal/node"
)

// Bounds of sampling.
const (
	samplers     = 8
	usageTimeout = 2 * time.Second
)

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
	return c.samples.Between(id, start, end, usage.StepOf(end.Sub(start), c.limits.Sample)), nil
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
		c.samples.Keep(lives)
		c.gates.failed.Keep(lives)
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
		c.unclear.Add(id) // an event may have been missed
	}
	if err != nil {
		c.log.Debug("usage could not be sampled", "sandbox", id, "err", err)
		return
	}
	if u.At.IsZero() {
		u.At = c.clock()
	}
	c.samples.Add(id, u)
}
