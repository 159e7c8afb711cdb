package control

import (
	"maps"
	"slices"
	"sync"

	"hearth/internal/hearth"
	"hearth/internal/store"
)

// Route is what the edge has to know of a sandbox to let traffic in.
type Route struct {
	Sandbox    hearth.SandboxID
	Team       hearth.TeamID
	Node       hearth.NodeID // empty unless a machine exists
	State      hearth.State
	Launch     int64 // differs from one machine of the sandbox to the next
	Network    hearth.Network
	Access     string // token of the guest daemon; empty: it asks for none
	Traffic    string // token that the edge asks for; empty: it asks for none
	AutoResume bool

	// Gone is closed when the machine of this route stops serving: the sandbox
	// is being paused or killed, or has died. Nil unless State is Running.
	Gone <-chan struct{}

	gone chan struct{}
}

func (c *Controller) route(sb *hearth.Sandbox) Route {
	r := Route{
		Sandbox: sb.ID, Team: sb.Team, Node: sb.Node, State: sb.State, Launch: sb.Launch,
		Network: sb.Network, AutoResume: sb.AutoResume,
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
func (c *Controller) Route(id hearth.SandboxID) (Route, bool) {
	c.table.mu.RLock()
	defer c.table.mu.RUnlock()
	r, ok := c.table.routes[id]
	return r, ok
}

// Live returns the sandboxes that run, in no order.
func (c *Controller) Live() []hearth.SandboxID {
	c.table.mu.RLock()
	defer c.table.mu.RUnlock()
	var ids []hearth.SandboxID
	for id, r := range c.table.routes {
		if r.State == hearth.Running {
			ids = append(ids, id)
		}
	}
	return ids
}

// Subscribe calls fn with every change of a route from now on, one at a time and
// in the order in which they happen to a sandbox, until cancel is called. fn
// must be quick and must not call the controller's methods that change sandboxes.
func (c *Controller) Subscribe(fn func(Route)) (cancel func()) {
	t := c.table
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.next
	t.next++
	t.watchers[n] = fn
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.watchers, n)
	}
}

// table is the routing state, and what may be counted of it at once.
type table struct {
	telling sync.Mutex // one change is told at a time; taken before mu

	mu       sync.RWMutex
	routes   map[hearth.SandboxID]Route
	counts   map[hearth.TeamID]map[hearth.State]int
	watchers map[int]func(Route)
	next     int
}

func newTable() *table {
	return &table{
		routes: map[hearth.SandboxID]Route{}, counts: map[hearth.TeamID]map[hearth.State]int{},
		watchers: map[int]func(Route){},
	}
}

// put replaces a sandbox's route and tells the watchers.
func (t *table) put(r Route) {
	t.telling.Lock()
	defer t.telling.Unlock()
	t.mu.Lock()
	r = t.swap(r)
	watchers := slices.Collect(maps.Values(t.watchers))
	t.mu.Unlock()
	for _, fn := range watchers {
		fn(r)
	}
}

// swap holds mu. It returns the route with its Gone.
func (t *table) swap(r Route) Route {
	old, was := t.routes[r.Sandbox]
	if was {
		t.count1(old, -1)
	}
	if r.State == hearth.Running {
		r.gone = old.gone
		if old.State != hearth.Running || old.Launch != r.Launch {
			r.gone = make(chan struct{})
		}
		r.Gone = r.gone
	}
	if old.gone != nil && old.gone != r.gone {
		close(old.gone)
	}
	if r.State == hearth.Stopped {
		delete(t.routes, r.Sandbox)
		return r
	}
	t.routes[r.Sandbox] = r
	t.count1(r, 1)
	return r
}

func (t *table) count1(r Route, by int) {
	states := t.counts[r.Team]
	if states == nil {
		states = map[hearth.State]int{}
		t.counts[r.Team] = states
	}
	if states[r.State] += by; states[r.State] == 0 {
		delete(states, r.State)
	}
	if len(states) == 0 {
		delete(t.counts, r.Team)
	}
}

// admit puts a sandbox that is about to get a machine, if its team may have one
// more. It tells nobody: the row is not written yet.
func (t *table) admit(r Route, limit int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if limit > 0 {
		machines := 0
		for state, n := range t.counts[r.Team] {
			if state != hearth.Paused {
				machines += n
			}
		}
		if machines >= limit {
			return hearth.Errorf(hearth.ResourceExhausted,
				"you have reached the maximum number of concurrent E2B sandboxes (%d). Kill one, or wait until one ends", limit)
		}
	}
	t.swap(r)
	return nil
}

// remove forgets a sandbox that was admitted and never was.
func (t *table) remove(id hearth.SandboxID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.routes[id]
	r.Sandbox, r.State = id, hearth.Stopped
	t.swap(r)
}

// count answers filters that ask for nothing but a team's sandboxes in states
// other than stopped.
func (t *table) count(f store.SandboxFilter) (int, bool) {
	if f.Team == "" || f.Node != "" || f.Template != "" || len(f.Metadata) > 0 || !f.StartedAfter.IsZero() ||
		len(f.States) == 0 || slices.Contains(f.States, hearth.Stopped) {
		return 0, false
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	n := 0
	for i, state := range f.States {
		if !slices.Contains(f.States[:i], state) {
			n += t.counts[f.Team][state]
		}
	}
	return n, true
}
