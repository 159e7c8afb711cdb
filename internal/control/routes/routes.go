// Package routes holds in memory where every sandbox is: what the edge asks for
// with every request, and what may be counted of it at once.
package routes

import (
	"maps"
	"slices"
	"sync"
	"time"

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
	Idle       time.Duration // without use for so long it is to be paused; 0: never
	Since      time.Time     // when its machine started
	History    bool          // a step is to be kept after each command or cell

	// Gone is closed when the machine of this route stops serving: the sandbox
	// is being paused or killed, or has died. Nil unless State is Running.
	Gone <-chan struct{}

	gone chan struct{}
}

// Table is the routes of all sandboxes. Its methods are safe for concurrent use.
type Table struct {
	telling sync.Mutex // one change is told at a time; taken before mu

	mu       sync.RWMutex
	routes   map[hearth.SandboxID]Route
	counts   map[hearth.TeamID]map[hearth.State]int
	watchers map[int]func(Route)
	next     int
}

// New returns an empty table.
func New() *Table {
	return &Table{
		routes: map[hearth.SandboxID]Route{}, counts: map[hearth.TeamID]map[hearth.State]int{},
		watchers: map[int]func(Route){},
	}
}

// Put replaces a sandbox's route and tells the watchers.
func (t *Table) Put(r Route) {
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

// Route returns what is known of a sandbox, false when it is not there or has
// stopped.
func (t *Table) Route(id hearth.SandboxID) (Route, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	r, ok := t.routes[id]
	return r, ok
}

// Live returns the sandboxes that run, in no order.
func (t *Table) Live() []hearth.SandboxID {
	return t.choose(func(r Route) bool { return r.State == hearth.Running })
}

// Reachable returns the sandboxes that traffic may get to, in no order: those that
// run or are taken back to a snapshot, and those that traffic resumes.
func (t *Table) Reachable() []hearth.SandboxID {
	return t.choose(func(r Route) bool {
		return r.State == hearth.Running || r.State == hearth.Reverting || r.AutoResume && r.State != hearth.Stopping
	})
}

func (t *Table) choose(wanted func(Route) bool) []hearth.SandboxID {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var ids []hearth.SandboxID
	for id, r := range t.routes {
		if wanted(r) {
			ids = append(ids, id)
		}
	}
	return ids
}

// Idlers returns the running sandboxes that are to be paused when they are idle.
func (t *Table) Idlers() []Route {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var list []Route
	for _, r := range t.routes {
		if r.State == hearth.Running && r.Idle > 0 {
			list = append(list, r)
		}
	}
	return list
}

// Subscribe calls fn with every change from now on, one at a time and in the
// order in which they happen to a sandbox, until cancel is called. fn must be
// quick.
func (t *Table) Subscribe(fn func(Route)) (cancel func()) {
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

// swap holds mu. It returns the route with its Gone.
func (t *Table) swap(r Route) Route {
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

func (t *Table) count1(r Route, by int) {
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

// Admit puts a sandbox that is about to get a machine, if its team may have one
// more. It tells nobody: the row is not written yet.
func (t *Table) Admit(r Route, limit int) error {
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

// Remove forgets a sandbox that was admitted and never was.
func (t *Table) Remove(id hearth.SandboxID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.routes[id]
	r.Sandbox, r.State = id, hearth.Stopped
	t.swap(r)
}

// Count answers filters that ask for nothing but a team's sandboxes in states
// other than stopped.
func (t *Table) Count(f store.SandboxFilter) (int, bool) {
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
