package agent

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"net"
	"slices"
	"syscall"

	"hearth/internal/guest"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/node/agent/journal"
	"hearth/internal/node/agent/meter"
	"hearth/internal/node/agent/turn"
)

// box is a sandbox with a machine. Its machine's owner is whoever holds the
// sandbox's lock; state, interrupt and cpu are guarded by Agent.mu; the rest
// does not change.
type box struct {
	id        hearth.SandboxID
	mc        *machine
	guest     Guest
	inst      node.Instance // State aside
	resources hearth.Resources
	sealed    bool // Quiesce was answered; the lock holder's

	state     hearth.State
	interrupt context.CancelCauseFunc // ends the checkpoint in progress, or taking it back
	still     chan struct{}           // while the machine stands still and goes on in a moment; closed then
	stopping  bool                    // a Stop waits for the lock
	cpu       meter.CPU
}

// instance copies what callers may see. The caller holds Agent.mu.
func (b *box) instance() *node.Instance {
	inst := b.inst
	inst.State = b.state
	return &inst
}

// register gives a machine that runs to its sandbox. It fails when the start
// was called off or the guest has ended meanwhile; the caller then discards.
func (a *Agent) register(ctx context.Context, mc *machine, g Guest) (*node.Instance, error) {
	mc.rec.Phase = journal.Running
	if err := a.step(mc, "record", func() error { return a.journal.Write(mc.rec) }); err != nil {
		return nil, err
	}
	s := mc.rec.Sandbox
	b := &box{
		id: s.ID, mc: mc, guest: g, state: hearth.Running, resources: mc.rec.Resources,
		inst: node.Instance{ID: s.ID, Generation: s.Generation, StartedAt: s.StartedAt},
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	b.inst.Driver, b.inst.Isolation = mc.rec.Handle.Driver, a.caps[mc.rec.Handle.Driver].Isolation
	if ctx.Err() != nil {
		return nil, turn.Ended(ctx)
	}
	if mc.life.Err() != nil { // died took mu after this ended: one of us sees the other
		return nil, turn.Ended(mc.life)
	}
	if old := a.boxes[b.id]; old != nil { // it was kept in case this one failed
		old.mc.owner = nil
	}
	a.boxes[b.id], mc.owner = b, b
	return b.instance(), nil
}

// box returns a sandbox's box, nil when it has none.
func (a *Agent) box(id hearth.SandboxID) *box {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.boxes[id]
}

// remove takes a box out of the table; false when it is not there any more. The
// caller holds the sandbox's lock and then takes the machine down.
func (a *Agent) remove(b *box) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.boxes[b.id] != b {
		return false
	}
	delete(a.boxes, b.id)
	b.mc.owner = nil
	return true
}

// bury takes down the machine of a box that ended unasked, and says so.
func (a *Agent) bury(ctx context.Context, b *box, reason string) {
	a.discard(ctx, b.mc)
	a.log.Info("a sandbox ended", "sandbox", b.id, "reason", reason)
	a.publish(b.inst.ID, b.inst.Generation, hearth.Stopped, reason)
}

func (a *Agent) publish(id hearth.SandboxID, generation int64, s hearth.State, reason string) {
	a.hub.Publish(node.Event{At: a.now(), ID: id, Generation: generation, State: s, Reason: reason})
}

// Stop kills a sandbox's machine, cutting short a start or a pause in progress.
// A start of the same or an earlier generation that arrives later is refused.
func (a *Agent) Stop(ctx context.Context, id hearth.SandboxID, reason string) error {
	leave, err := a.enter()
	if err != nil {
		return err
	}
	defer leave()
	return a.stop(ctx, id, reason)
}

func (a *Agent) stop(ctx context.Context, id hearth.SandboxID, reason string) error {
	cause := hearth.Errorf(hearth.NotFound, "the sandbox was stopped: %s", reason)
	a.mu.Lock()
	if f := a.flights[id]; f != nil {
		a.tombs.Add(id, f.generation)
		f.cancel(cause)
	}
	if b := a.boxes[id]; b != nil {
		a.tombs.Add(id, b.inst.Generation)
		b.stopping = true
		if b.interrupt != nil {
			b.interrupt(cause)
		}
	}
	a.mu.Unlock()
	unlock, err := a.locks.Lock(ctx, id)
	if err != nil {
		return err
	}
	b := a.box(id)
	if b == nil || !a.remove(b) {
		unlock()
		return nil
	}
	select {
	case <-a.dismiss(ctx, b.mc, unlock):
	case <-b.mc.live.Done(): // nothing of it runs any more; what it held is freed behind this answer
	}
	a.log.Info("sandbox stopped", "sandbox", id, "reason", reason)
	return nil
}

// Update replaces the traffic policy, which is in force when it returns, and
// survives a restart of the node.
func (a *Agent) Update(ctx context.Context, id hearth.SandboxID, network hearth.Network) error {
	unlock, err := a.locks.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	b := a.box(id)
	if b == nil {
		return notFound(id)
	}
	if err := a.deps.Network.SetPolicy(ctx, b.mc.rec.Slot, network); err != nil {
		return err
	}
	before := b.mc.rec.Sandbox.Network
	b.mc.rec.Sandbox.Network = network
	if err := a.journal.Write(b.mc.rec); err != nil {
		b.mc.rec.Sandbox.Network = before
		ctx, cancel := turn.Cleanup(ctx)
		defer cancel()
		return errors.Join(err, a.deps.Network.SetPolicy(ctx, b.mc.rec.Slot, before))
	}
	return nil
}

func notFound(id hearth.SandboxID) error {
	return hearth.Errorf(hearth.NotFound, "sandbox %s was not found, or has ended", id)
}

// awake returns a sandbox's box when its machine runs, and waits while it stands
// still for a moment.
func (a *Agent) awake(ctx context.Context, id hearth.SandboxID) (*box, error) {
	for {
		a.mu.Lock()
		b := a.boxes[id]
		var state hearth.State
		var still chan struct{}
		if b != nil {
			state, still = b.state, b.still
		}
		a.mu.Unlock()
		switch {
		case b == nil:
			return nil, notFound(id)
		case still == nil && state != hearth.Running:
			return nil, hearth.Errorf(hearth.Unavailable, "sandbox %s is %s", id, state)
		case still == nil:
			return b, nil
		}
		select {
		case <-still:
		case <-ctx.Done():
			return nil, turn.Ended(ctx)
		}
	}
}

// hush makes new connections to a box wait until the function that it returns
// is called.
func (a *Agent) hush(b *box) (wake func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	still := make(chan struct{})
	b.still = still
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if b.still == still {
			b.still = nil
			close(still)
		}
	}
}

// Dial connects to a port of a sandbox. A port that only listens on the guest's
// loopback is reached through its daemon.
func (a *Agent) Dial(ctx context.Context, id hearth.SandboxID, port uint16) (net.Conn, error) {
	b, err := a.awake(ctx, id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := b.mc.within(ctx)
	defer cancel()
	conn, err := b.mc.live.Dial(ctx, port)
	if errors.Is(err, syscall.ECONNREFUSED) && port != guest.Port {
		refused := err
		if conn, err = b.guest.Forward(ctx, port); err != nil {
			err = hearth.Wrap(hearth.Unavailable, errors.Join(refused, err), "nothing listens on port %d of sandbox %s", port, id)
		}
	}
	return conn, turn.Because(ctx, err)
}

// Events yields what happened to sandboxes unasked, from the call on; to the
// first reader also what happened before, recovery included.
func (a *Agent) Events(ctx context.Context) iter.Seq2[node.Event, error] { return a.hub.Subscribe(ctx) }

// List returns the sandboxes that have a machine here, by ID.
func (a *Agent) List(context.Context) ([]*node.Instance, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.ready(); err != nil {
		return nil, err
	}
	list := make([]*node.Instance, 0, len(a.boxes))
	for _, b := range a.boxes {
		list = append(list, b.instance())
	}
	slices.SortFunc(list, func(x, y *node.Instance) int { return cmp.Compare(x.ID, y.ID) })
	return list, nil
}
