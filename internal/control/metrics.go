package control

import (
	"context"
	"time"

	"hearth/internal/control/usage"
	"hearth/internal/hearth"
	"hearth/internal/node"
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
	s := usage.Sampler{
		Every: c.limits.Sample, Into: c.samples, Routes: c.table, Node: c.nodes.Node, Now: c.clock, Log: c.log,
		Missing: c.unclear.Add, // an event may have been missed
	}
	s.Run(ctx)
}
