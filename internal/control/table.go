package control

import (
	"hearth/internal/control/routes"
	"hearth/internal/hearth"
)

// Route is what the edge has to know of a sandbox to let traffic in.
type Route = routes.Route

func (c *Controller) route(sb *hearth.Sandbox) Route {
	r := Route{
		Sandbox: sb.ID, Team: sb.Team, Node: sb.Node, State: sb.State, Launch: sb.Launch,
		Network: sb.Network, AutoResume: sb.AutoResume, Idle: sb.Lifecycle.Idle, Since: sb.StartedAt,
		History: sb.Lifecycle.History > 0,
	}
	if !sb.Open {
		r.Access = c.tokens.Access(sb.ID)
	}
	if sb.Network.PrivateIngress {
		r.Traffic = c.tokens.Traffic(sb.ID)
	}
	return r
}

// Route returns what is known of a sandbox, false when it is not there or has
// stopped. It looks at memory alone.
func (c *Controller) Route(id hearth.SandboxID) (Route, bool) { return c.table.Route(id) }

// Live returns the sandboxes that run, in no order.
func (c *Controller) Live() []hearth.SandboxID { return c.table.Live() }

// Reachable returns the sandboxes that run, soon do, or are woken by traffic, in no order.
func (c *Controller) Reachable() []hearth.SandboxID { return c.table.Reachable() }

// Subscribe calls fn with every change of a route from now on, one at a time and
// in the order in which they happen to a sandbox, until cancel is called. fn
// must be quick and must not call the controller's methods that change sandboxes.
func (c *Controller) Subscribe(fn func(Route)) (cancel func()) { return c.table.Subscribe(fn) }
