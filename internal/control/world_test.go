package control_test

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/blob"
	"hearth/internal/control"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/store"
	"hearth/internal/store/memstore"
)

// world is what outlives a controller: the store, the hosts with their machines
// and the snapshots' files. It notes whatever must never happen.
type world struct {
	store *memstore.Store
	log   *slog.Logger

	mu       sync.Mutex
	machines map[hearth.NodeID]map[hearth.SandboxID]*node.Instance
	over     map[hearth.SandboxID]int64 // generations that were stopped
	files    map[hearth.SnapshotID]hearth.SandboxID
	policies map[hearth.SandboxID]hearth.Network
	events   map[int]chan node.Event
	next     int
	starts   int
	wrong    []string

	unused  bool                        // nobody uses any sandbox
	bytes   int64                       // of a snapshot's file
	sizes   map[hearth.SnapshotID]int64 // of those that were taken
	shared  blob.Object                 // what all have in common; it is in none's file
	common  int64                       // of a file, what is in shared once it is packed
	packed  map[hearth.SnapshotID]bool
	weighed []string // what was asked for

	delay  map[string]time.Duration // how long a node's call takes
	refuse map[string]error         // what a node's call, or the write of a row in a state, fails with, without effect
}

func newWorld(t *testing.T) *world {
	w := &world{
		store: memstore.New(), log: slog.New(slog.DiscardHandler),
		machines: map[hearth.NodeID]map[hearth.SandboxID]*node.Instance{"n1": {}, "n2": {}},
		over:     map[hearth.SandboxID]int64{}, files: map[hearth.SnapshotID]hearth.SandboxID{"warm": ""},
		policies: map[hearth.SandboxID]hearth.Network{}, events: map[int]chan node.Event{},
		bytes: 1000, sizes: map[hearth.SnapshotID]int64{}, packed: map[hearth.SnapshotID]bool{}, delay: map[string]time.Duration{}, refuse: map[string]error{},
	}
	ctx := context.Background()
	now := time.Now().UTC()
	for _, err := range []error{
		w.store.CreateSnapshot(ctx, &hearth.Snapshot{ID: "warm", Driver: "fake", Memory: true}),
		w.store.CreateTemplate(ctx, &hearth.Template{ID: "tpl", Team: "t1", Aliases: []string{"base", "second"}, Public: true, CreatedAt: now}),
		w.store.CreateBuild(ctx, &hearth.Build{ID: "b1", Template: "tpl", Status: hearth.BuildWaiting, CreatedAt: now}),
		w.store.FinishBuild(ctx, &hearth.Build{ID: "b1", Template: "tpl", Status: hearth.BuildReady, Warm: map[string]hearth.SnapshotID{"fake": "warm"},
			Resources: hearth.Resources{VCPUs: 2, MemoryMiB: 512, DiskMiB: 1024}}),
		w.store.CreateTemplate(ctx, &hearth.Template{ID: "new", Team: "t1", Aliases: []string{"soon"}, CreatedAt: now}),
		w.store.CreateBuild(ctx, &hearth.Build{ID: "b2", Template: "new", Status: hearth.BuildBuilding, CreatedAt: now}),
		w.store.CreateTemplate(ctx, &hearth.Template{ID: "arriving", Team: "t1", CreatedAt: now}),
		w.store.CreateTemplate(ctx, &hearth.Template{ID: "bad", Team: "t1", Aliases: []string{"broken"}, CreatedAt: now}),
		w.store.CreateBuild(ctx, &hearth.Build{ID: "b3", Template: "bad", Status: hearth.BuildWaiting, CreatedAt: now}),
		w.store.FinishBuild(ctx, &hearth.Build{ID: "b3", Template: "bad", Status: hearth.BuildError, Reason: "no such package"}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w *world) bad(format string, args ...any) {
	w.wrong = append(w.wrong, fmt.Sprintf(format, args...))
}

// set changes what the hosts do.
func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// die ends a machine by itself.
func (w *world) die(id hearth.SandboxID, reason string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, machines := range w.machines {
		if m := machines[id]; m != nil {
			delete(machines, id)
			for _, ch := range w.events {
				ch <- node.Event{At: time.Now(), ID: id, Generation: m.Generation, State: hearth.Stopped, Reason: reason}
			}
		}
	}
}

// host is a scripted node.Service.
type host struct {
	w  *world
	id hearth.NodeID
}

func (h host) enter(ctx context.Context, op string) error {
	h.w.mu.Lock()
	d, err := h.w.delay[op], h.w.refuse[op]
	h.w.mu.Unlock()
	if d > 0 {
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return hearth.Wrap(hearth.DeadlineExceeded, context.Cause(ctx), "%s took too long", op)
		}
	}
	return err
}

func (h host) Start(ctx context.Context, req node.StartRequest) (*node.Instance, error) {
	if err := h.enter(ctx, "start"); err != nil {
		return nil, err
	}
	w, s := h.w, req.Sandbox
	w.mu.Lock()
	defer w.mu.Unlock()
	if m := w.machines[h.id][s.ID]; m != nil && m.Generation == s.Launch {
		return m, nil
	} else if m != nil && m.Generation > s.Launch || w.over[s.ID] >= s.Launch {
		return nil, hearth.Errorf(hearth.Aborted, "generation %d is over", s.Launch)
	}
	if req.Revert && w.machines[h.id][s.ID] == nil {
		return nil, hearth.Errorf(hearth.NotFound, "no such sandbox")
	}
	for id, machines := range w.machines {
		if m := machines[s.ID]; m != nil && !req.Revert {
			w.bad("%s is started on %s with generation %d while %s has it with %d", s.ID, h.id, s.Launch, id, m.Generation)
		}
	}
	if r := req.Restore; r != nil {
		if owner, ok := w.files[r.ID]; !ok || owner != r.Sandbox && owner != s.ID {
			return nil, hearth.Errorf(hearth.FailedPrecondition, "snapshot %s is not there", r.ID)
		}
	}
	if want := "token of " + string(s.ID); !s.Open && req.Token != want {
		w.bad("%s is started with the token %q", s.ID, req.Token)
	}
	m := &node.Instance{ID: s.ID, Generation: s.Launch, StartedAt: time.Now(), State: hearth.Running, Driver: req.Driver, Isolation: hearth.HardwareVM}
	if req.Restore != nil && req.Restore.Driver != req.Driver {
		w.bad("%s is to run on %s from a snapshot of %s", s.ID, req.Driver, req.Restore.Driver)
	}
	w.machines[h.id][s.ID] = m
	w.policies[s.ID] = s.Network
	w.starts++
	return m, nil
}

func (h host) Pause(ctx context.Context, id hearth.SandboxID, req node.PauseRequest) (*hearth.Snapshot, error) {
	if err := h.enter(ctx, "pause"); err != nil {
		return nil, err
	}
	w := h.w
	w.mu.Lock()
	defer w.mu.Unlock()
	owner, done := w.files[req.Into]
	m := w.machines[h.id][id]
	driver := "fake"
	if m != nil {
		driver = m.Driver
	}
	switch {
	case m == nil && !done:
		return nil, hearth.Errorf(hearth.NotFound, "no such sandbox")
	case done && owner != id:
		return nil, hearth.Errorf(hearth.AlreadyExists, "of another sandbox")
	case m != nil:
		w.files[req.Into] = id
		delete(w.machines[h.id], id)
	}
	return &hearth.Snapshot{ID: req.Into, Build: "b1", Driver: driver, Memory: true, Created: time.Now()}, nil
}

func (h host) Snapshot(ctx context.Context, id hearth.SandboxID, req node.SnapshotRequest) (*hearth.Snapshot, error) {
	if err := h.enter(ctx, "snapshot"); err != nil {
		return nil, err
	}
	w := h.w
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.machines[h.id][id]
	if m == nil {
		return nil, hearth.Errorf(hearth.NotFound, "no such sandbox")
	}
	w.files[req.Into], w.sizes[req.Into] = id, w.bytes
	return &hearth.Snapshot{ID: req.Into, Build: "b1", Driver: "fake", Memory: true, Created: time.Now(), Sandbox: id,
		Files: []hearth.File{{Name: "memory", Bytes: w.bytes}}}, nil
}

func (h host) Stop(ctx context.Context, id hearth.SandboxID, _ string) error {
	if err := h.enter(ctx, "stop"); err != nil {
		return err
	}
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	if m := h.w.machines[h.id][id]; m != nil {
		h.w.over[id] = max(h.w.over[id], m.Generation)
		delete(h.w.machines[h.id], id)
	}
	return nil
}

func (h host) Update(ctx context.Context, id hearth.SandboxID, n hearth.Network) error {
	if err := h.enter(ctx, "update"); err != nil {
		return err
	}
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	if h.w.machines[h.id][id] == nil {
		return hearth.Errorf(hearth.NotFound, "no such sandbox")
	}
	h.w.policies[id] = n
	return nil
}

func (h host) Dial(context.Context, hearth.SandboxID, uint16) (net.Conn, error) {
	return nil, hearth.Errorf(hearth.Unimplemented, "not in this world")
}

func (h host) Usage(ctx context.Context, id hearth.SandboxID) (node.Usage, error) {
	if err := h.enter(ctx, "usage"); err != nil {
		return node.Usage{}, err
	}
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	if h.w.machines[h.id][id] == nil {
		return node.Usage{}, hearth.Errorf(hearth.NotFound, "no such sandbox")
	}
	return node.Usage{At: time.Now(), VCPUs: 2, Memory: 1 << 20}, nil
}

func (h host) Status(context.Context) (*hearth.NodeStatus, error) {
	return &hearth.NodeStatus{ID: h.id, Drivers: []string{"fake", "vm"}, Offers: []string{"fake", "vm"}}, nil
}

func (h host) List(ctx context.Context) ([]*node.Instance, error) {
	if err := h.enter(ctx, "list"); err != nil {
		return nil, err
	}
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	return slices.Collect(maps.Values(h.w.machines[h.id])), nil
}

func (h host) Keep(context.Context, []node.Pool) error { return nil }

func (h host) Events(ctx context.Context) iter.Seq2[node.Event, error] {
	return func(yield func(node.Event, error) bool) {
		ch := make(chan node.Event, 1000)
		h.w.mu.Lock()
		n := h.w.next
		h.w.next++
		h.w.events[n] = ch
		h.w.mu.Unlock()
		defer func() {
			h.w.mu.Lock()
			defer h.w.mu.Unlock()
			delete(h.w.events, n)
		}()
		for {
			select {
			case <-ctx.Done():
				return
			case ev := <-ch:
				switch {
				case ev.ID == "" && ev.Reason == "lost":
					if !yield(ev, hearth.Errorf(hearth.Aborted, "events were lost")) {
						return
					}
				case ev.ID == "":
					yield(ev, hearth.Errorf(hearth.Unavailable, "the connection broke"))
					return
				case !yield(ev, nil):
					return
				}
			}
		}
	}
}

// Remove implements the controller's shelf.
func (w *world) Remove(_ context.Context, id hearth.SnapshotID) error {
	w.mu.Lock()
	wait := w.delay["remove"]
	w.mu.Unlock()
	time.Sleep(wait)
	w.mu.Lock()
	defer w.mu.Unlock()
	if id == "warm" || id == "" {
		w.bad("snapshot %q was removed", id)
	}
	delete(w.files, id)
	return nil
}

// Weigh implements the controller's shelf.
func (w *world) Weigh(_ context.Context, id hearth.SnapshotID, over ...hearth.SnapshotID) (whole, added int64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.weighed = append(w.weighed, fmt.Sprintf("%s over %s", id, over))
	if err := w.refuse["weigh "+string(id)]; err != nil {
		return 0, 0, err
	}
	return 2 * w.bytes, w.bytes, nil
}

// Objects implements the controller's shelf.
func (w *world) Objects(_ context.Context, ids []hearth.SnapshotID) (map[hearth.SnapshotID][]blob.Object, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := map[hearth.SnapshotID][]blob.Object{}
	for _, id := range ids {
		own := blob.Object{Name: string(id), Bytes: w.sizes[id]}
		if w.packed[id] {
			own.Bytes -= w.common
		}
		all[id] = []blob.Object{own}
		if w.packed[id] || w.common == 0 {
			all[id] = append(all[id], w.shared)
		}
	}
	return all, nil
}

// Pack implements the controller's shelf.
func (w *world) Pack(_ context.Context, ids []hearth.SnapshotID) error {
	w.mu.Lock()
	wait := w.delay["pack"]
	w.mu.Unlock()
	time.Sleep(wait)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.refuse["pack"]; err != nil {
		return err
	}
	for _, id := range ids {
		w.packed[id] = true
	}
	return nil
}

type testTokens struct{}

func (testTokens) Access(id hearth.SandboxID) string  { return "token of " + string(id) }
func (testTokens) Traffic(id hearth.SandboxID) string { return "traffic token of " + string(id) }

// process is one life of the server: a controller, and the faults between it
// and the world. When it is dead nothing it does has an effect any more.
type process struct {
	*control.Controller
	w    *world
	stop context.CancelFunc
	done chan struct{}

	mu     sync.Mutex
	calls  int
	faults map[int]fault // by number of the call
	dead   bool
}

// fault is what happens to one call of the store, a node or the shelf.
type fault int

const (
	fails     fault = iota // it fails and has no effect
	losesRace              // the same, as a lost compare-and-swap
	silent                 // it has its effect, but fails
	diesFirst              // the process ends before the call
	diesAfter              // the process ends after the call
	faultKinds
)

// run starts a server on the world.
func (w *world) run(limits control.Limits) *process {
	p := &process{w: w, faults: map[int]fault{}, done: make(chan struct{})}
	p.Controller = control.New(control.Deps{
		Store: &faultyStore{w.store, p}, Nodes: p, Tokens: testTokens{}, Shelf: faultyShelf{p}, Now: time.Now, Log: w.log, Limits: limits,
		Unused: func(hearth.SandboxID) (time.Time, bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return time.Time{}, w.unused
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	if err := p.Reconcile(ctx); err != nil && !p.isDead() {
		w.mu.Lock()
		w.bad("Reconcile: %v", err)
		w.mu.Unlock()
	}
	go func() {
		defer close(p.done)
		p.Run(ctx)
	}()
	synctest.Wait()
	return p
}

// end waits for the server's end.
func (p *process) end() {
	p.stop()
	<-p.done
}

// kill ends the server as a signal would, at once.
func (p *process) kill() {
	p.mu.Lock()
	p.dead = true
	p.mu.Unlock()
	p.end()
}

func (p *process) isDead() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dead
}

// arm lets the n-th call from now go wrong.
func (p *process) arm(n int, f fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults[p.calls+n] = f
}

func (p *process) disarm() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.faults)
}

var errKilled = hearth.Errorf(hearth.Unavailable, "the process is dead")

// through makes one call, with its fault.
func (p *process) through(call func() error) error {
	p.mu.Lock()
	p.calls++
	f, faulty := p.faults[p.calls]
	delete(p.faults, p.calls)
	if faulty && f == diesFirst {
		p.dead = true
	}
	if p.dead {
		p.mu.Unlock()
		return errKilled
	}
	p.mu.Unlock()
	if faulty && f == fails {
		return hearth.Errorf(hearth.Unavailable, "injected")
	}
	if faulty && f == losesRace {
		return hearth.Errorf(hearth.Aborted, "injected")
	}
	err := call()
	if faulty && f == silent {
		return hearth.Errorf(hearth.Unavailable, "injected after the effect")
	}
	if faulty && f == diesAfter {
		p.mu.Lock()
		p.dead = true
		p.mu.Unlock()
		return errKilled
	}
	return err
}

// Node and Statuses implement the controller's nodes.
func (p *process) Node(id hearth.NodeID) (node.Service, error) {
	return faultyNode{host{p.w, id}, p}, nil
}

func (p *process) Statuses() []*hearth.NodeStatus {
	return []*hearth.NodeStatus{{ID: "n1", Drivers: []string{"fake", "vm"}, Offers: []string{"fake", "vm"}}, {ID: "n2", Drivers: []string{"fake"}, Offers: []string{"fake"}}}
}

type faultyNode struct {
	host
	p *process
}

func (n faultyNode) Start(ctx context.Context, req node.StartRequest) (m *node.Instance, err error) {
	err = n.p.through(func() error { m, err = n.host.Start(ctx, req); return err })
	return m, err
}

func (n faultyNode) Pause(ctx context.Context, id hearth.SandboxID, req node.PauseRequest) (s *hearth.Snapshot, err error) {
	err = n.p.through(func() error { s, err = n.host.Pause(ctx, id, req); return err })
	return s, err
}

func (n faultyNode) Snapshot(ctx context.Context, id hearth.SandboxID, req node.SnapshotRequest) (s *hearth.Snapshot, err error) {
	err = n.p.through(func() error { s, err = n.host.Snapshot(ctx, id, req); return err })
	return s, err
}

func (n faultyNode) Stop(ctx context.Context, id hearth.SandboxID, reason string) error {
	return n.p.through(func() error { return n.host.Stop(ctx, id, reason) })
}

func (n faultyNode) Update(ctx context.Context, id hearth.SandboxID, net hearth.Network) error {
	return n.p.through(func() error { return n.host.Update(ctx, id, net) })
}

func (n faultyNode) List(ctx context.Context) (l []*node.Instance, err error) {
	err = n.p.through(func() error { l, err = n.host.List(ctx); return err })
	return l, err
}

type faultyShelf struct{ p *process }

func (f faultyShelf) Remove(ctx context.Context, id hearth.SnapshotID) error {
	return f.p.through(func() error { return f.p.w.Remove(ctx, id) })
}

func (f faultyShelf) Weigh(ctx context.Context, id hearth.SnapshotID, over ...hearth.SnapshotID) (whole, added int64, err error) {
	err = f.p.through(func() error { whole, added, err = f.p.w.Weigh(ctx, id, over...); return err })
	return whole, added, err
}

func (f faultyShelf) Objects(ctx context.Context, ids []hearth.SnapshotID) (of map[hearth.SnapshotID][]blob.Object, err error) {
	err = f.p.through(func() error { of, err = f.p.w.Objects(ctx, ids); return err })
	return of, err
}

func (f faultyShelf) Pack(ctx context.Context, ids []hearth.SnapshotID) error {
	return f.p.through(func() error { return f.p.w.Pack(ctx, ids) })
}

// faultyStore checks every write of a sandbox against the state table.
type faultyStore struct {
	*memstore.Store
	p *process
}

func (f *faultyStore) Sandbox(ctx context.Context, id hearth.SandboxID) (s *hearth.Sandbox, err error) {
	err = f.p.through(func() error { s, err = f.Store.Sandbox(ctx, id); return err })
	return s, err
}

func (f *faultyStore) CreateSandbox(ctx context.Context, s *hearth.Sandbox) error {
	return f.p.through(func() error { return f.Store.CreateSandbox(ctx, s) })
}

func (f *faultyStore) UpdateSandbox(ctx context.Context, id hearth.SandboxID, change func(*hearth.Sandbox) error) (s *hearth.Sandbox, err error) {
	err = f.p.through(func() error {
		var before hearth.Sandbox
		s, err = f.Store.UpdateSandbox(ctx, id, func(s *hearth.Sandbox) error {
			before = *s
			if err := change(s); err != nil {
				return err
			}
			f.p.w.mu.Lock()
			defer f.p.w.mu.Unlock()
			return f.p.w.refuse["write "+string(s.State)]
		})
		if err == nil {
			f.check(&before, s)
		}
		return err
	})
	return s, err
}

func (f *faultyStore) check(before, after *hearth.Sandbox) {
	f.p.w.mu.Lock()
	defer f.p.w.mu.Unlock()
	if before.State != after.State && !before.State.CanBecome(after.State) {
		f.p.w.bad("%s became %s from %s", after.ID, after.State, before.State)
	}
	if before.State == hearth.Reverting && after.Launch < before.Launch {
		before.Launch = after.Launch // back to the machine it had
	}
	if after.Generation != before.Generation+1 || after.Launch < before.Launch || after.Launch > after.Generation {
		f.p.w.bad("%s: generation %d after %d, launch %d after %d", after.ID, after.Generation, before.Generation, after.Launch, before.Launch)
	}
	if after.State == hearth.Stopped && (after.StopReason == "" || after.Snapshot != "" || after.Node != "") {
		f.p.w.bad("%s stopped with reason %q, snapshot %q, node %q", after.ID, after.StopReason, after.Snapshot, after.Node)
	}
	if after.State == hearth.Paused && (after.Snapshot == "" || after.Node != "") {
		f.p.w.bad("%s paused with snapshot %q, node %q", after.ID, after.Snapshot, after.Node)
	}
}

func (f *faultyStore) CreateSnapshot(ctx context.Context, s *hearth.Snapshot) error {
	return f.p.through(func() error { return f.Store.CreateSnapshot(ctx, s) })
}

func (f *faultyStore) Snapshot(ctx context.Context, id hearth.SnapshotID) (s *hearth.Snapshot, err error) {
	err = f.p.through(func() error { s, err = f.Store.Snapshot(ctx, id); return err })
	return s, err
}

func (f *faultyStore) UpdateSnapshot(ctx context.Context, id hearth.SnapshotID, change func(*hearth.Snapshot) error) (s *hearth.Snapshot, err error) {
	err = f.p.through(func() error { s, err = f.Store.UpdateSnapshot(ctx, id, change); return err })
	return s, err
}

func (f *faultyStore) FindSnapshots(ctx context.Context, filter store.SnapshotFilter, p store.Page) (l []*hearth.Snapshot, next string, err error) {
	err = f.p.through(func() error { l, next, err = f.Store.FindSnapshots(ctx, filter, p); return err })
	return l, next, err
}

func (f *faultyStore) SnapshotUses(ctx context.Context, id hearth.SnapshotID) (u store.SnapshotUses, err error) {
	err = f.p.through(func() error { u, err = f.Store.SnapshotUses(ctx, id); return err })
	return u, err
}

func (f *faultyStore) DeleteSnapshot(ctx context.Context, id hearth.SnapshotID) error {
	return f.p.through(func() error { return f.Store.DeleteSnapshot(ctx, id) })
}

// audit waits until everything is at rest, because a call answers before it has
// put away what it no longer needs, and compares rows, machines, files and routes.
func (w *world) audit(p *process) []string {
	synctest.Wait()
	ctx := context.Background()
	rows, _, err := w.store.ListSandboxes(ctx, store.SandboxFilter{}, store.Page{Limit: store.MaxPage})
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.bad("%v", err)
	}
	machines := map[hearth.SandboxID]*node.Instance{}
	for at, list := range w.machines {
		for id, m := range list {
			sb := rowOf(rows, id)
			if machines[id] != nil {
				w.bad("%s has two machines", id)
			}
			machines[id] = m
			if sb == nil || sb.State != hearth.Running || sb.Node != at || sb.Launch != m.Generation {
				w.bad("machine %s generation %d on %s has the row %+v", id, m.Generation, at, sb)
			}
		}
	}
	used := map[hearth.SnapshotID]bool{"warm": true}
	live := 0
	for _, sb := range rows {
		r, routed := p.Route(sb.ID)
		switch sb.State {
		case hearth.Running:
			live++
			if machines[sb.ID] == nil {
				w.bad("%s runs without a machine", sb.ID)
			}
			if sb.Snapshot != "" {
				w.bad("%s runs and still has snapshot %s", sb.ID, sb.Snapshot)
			}
		case hearth.Paused:
			used[sb.Snapshot] = true
			if w.files[sb.Snapshot] != sb.ID {
				w.bad("the files of %s's snapshot are not there", sb.ID)
			}
		case hearth.Stopped:
			if routed {
				w.bad("%s has stopped and has a route: %+v", sb.ID, r)
			}
			continue
		default:
			w.bad("%s is left %s", sb.ID, sb.State)
		}
		if !routed || r.State != sb.State || r.Node != sb.Node || r.Launch != sb.Launch {
			w.bad("route %+v of the row %+v", r, sb)
		}
	}
	if n := len(p.Live()); n != live {
		w.bad("%d sandboxes are live, %d run", n, live)
	}
	snaps, err := w.store.ListSnapshots(ctx)
	if err != nil {
		w.bad("%v", err)
	}
	for _, s := range snaps {
		_, there := w.files[s.ID]
		switch {
		case used[s.ID]:
		case s.Kind != hearth.OwnedSnapshot && s.Kind != hearth.ForkSnapshot && s.Status == hearth.SnapshotReady:
			used[s.ID] = true
			if sb := rowOf(rows, s.Sandbox); s.Kind == hearth.StepSnapshot && (sb == nil || sb.State == hearth.Stopped || s.Step == 0 || s.Step > sb.Lifecycle.Steps) {
				w.bad("step %+v is left of %+v", s, sb)
			}
			if !there || s.Sandbox == "" || s.Team == "" || len(s.Files) == 0 {
				w.bad("snapshot %+v is offered; it has files: %t", s, there)
			}
		case s.Status == hearth.SnapshotFailed:
			if sb := rowOf(rows, s.Sandbox); s.Kind != hearth.StepSnapshot || s.Reason == "" || sb == nil || sb.State == hearth.Stopped {
				w.bad("the failed snapshot %+v is left of %+v", s, sb)
			}
		case s.Status == hearth.SnapshotGone:
			if u, err := w.store.SnapshotUses(ctx, s.ID); err != nil || u.Heirs == 0 {
				w.bad("the row of snapshot %s is left, and nothing comes after it", s.ID)
			}
		default:
			w.bad("the row of snapshot %s is left: %+v", s.ID, s)
		}
	}
	for id := range w.files {
		if !used[id] {
			w.bad("the files of snapshot %s are left", id)
		}
	}
	return w.wrong
}

func rowOf(rows []*hearth.Sandbox, id hearth.SandboxID) *hearth.Sandbox {
	for _, sb := range rows {
		if sb.ID == id {
			return sb
		}
	}
	return nil
}
