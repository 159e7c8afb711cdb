package agent

import (
	"cmp"
	"context"
	"maps"
	"os"

	"hearth/internal/driver"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/node/agent/journal"
	"hearth/internal/node/agent/shelf"
	"hearth/internal/node/agent/turn"
	"hearth/internal/trace"
)

// defaultUser is who commands run as in templates that do not say: every image
// is made with it.
const defaultUser = "user"

// flight is a start in progress. Everyone who asks for the same sandbox and
// generation meanwhile waits for it; it is called off when nobody waits any more.
type flight struct {
	generation int64
	waiters    int // guarded by Agent.mu
	cancel     context.CancelCauseFunc
	done       chan struct{}
	inst       *node.Instance // after done
	err        error
}

// Start runs a sandbox and returns when its daemon is its own. Asked again with
// the same generation it returns the same machine; a greater generation
// replaces the machine, a smaller one is refused with Aborted.
func (a *Agent) Start(ctx context.Context, req node.StartRequest) (*node.Instance, error) {
	if err := req.Check(); err != nil {
		return nil, err
	}
	req.Sandbox.Generation = cmp.Or(req.Sandbox.Launch, req.Sandbox.Generation)
	for {
		f, before, err := a.board(ctx, req)
		if err != nil {
			return nil, err
		}
		if before != nil { // an older start has to be undone first
			select {
			case <-before.done:
				continue
			case <-ctx.Done():
				return nil, turn.Ended(ctx)
			}
		}
		select {
		case <-f.done:
			if f.err != nil {
				return nil, f.err
			}
			inst := *f.inst
			return &inst, nil
		case <-ctx.Done():
		}
		a.mu.Lock()
		if f.waiters--; f.waiters == 0 {
			f.cancel(turn.Ended(ctx))
		}
		a.mu.Unlock()
		return nil, turn.Ended(ctx)
	}
}

// board joins the flight for the request or starts one. It returns before
// instead when another flight for the sandbox has to end first.
func (a *Agent) board(ctx context.Context, req node.StartRequest) (f, before *flight, err error) {
	s := req.Sandbox
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.ready(); err != nil {
		return nil, nil, err
	}
	f = a.flights[s.ID]
	switch {
	case f == nil:
	case f.generation > s.Generation:
		return nil, nil, stale(s)
	case f.generation < s.Generation:
		f.cancel(hearth.Errorf(hearth.Aborted, "a later start of the sandbox took over"))
		return nil, f, nil
	case f.waiters == 0:
		return nil, f, nil
	default:
		f.waiters++
		return f, nil, nil
	}
	if a.tombs.Covers(s.ID, s.Generation) {
		return nil, nil, stale(s)
	}
	fctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	f = &flight{generation: s.Generation, waiters: 1, cancel: cancel, done: make(chan struct{})}
	a.flights[s.ID] = f
	a.work.Go(func() {
		defer cancel(nil)
		defer context.AfterFunc(a.life, func() { cancel(errClosed()) })()
		fctx, stop := context.WithTimeoutCause(fctx, a.cfg.StartTimeout, hearth.Errorf(hearth.DeadlineExceeded,
			"the sandbox did not start within %s", a.cfg.StartTimeout))
		defer stop()
		inst, err := a.start(fctx, req)
		a.mu.Lock()
		f.inst, f.err = inst, err
		delete(a.flights, s.ID)
		a.mu.Unlock()
		close(f.done)
	})
	return f, nil, nil
}

func stale(s hearth.Sandbox) error {
	return hearth.Errorf(hearth.Aborted, "generation %d of sandbox %s is over", s.Generation, s.ID)
}

// start is one flight. It waits for the sandbox's lock.
func (a *Agent) start(ctx context.Context, req node.StartRequest) (*node.Instance, error) {
	unlock, err := a.locks.Lock(ctx, req.Sandbox.ID)
	if err != nil {
		return nil, err
	}
	defer func() { unlock() }()
	if b := a.box(req.Sandbox.ID); b != nil {
		switch {
		case b.inst.Generation > req.Sandbox.Generation:
			return nil, stale(req.Sandbox)
		case b.inst.Generation == req.Sandbox.Generation && b.mc.life.Err() == nil:
			inst := b.inst
			inst.State = hearth.Running
			return &inst, nil
		}
		if req.Revert {
			inst, err := a.revert(ctx, b, a.planOf(req))
			if err == nil {
				a.dismiss(ctx, b.mc, unlock)
				unlock = func() {}
			}
			return inst, err
		}
		if a.remove(b) {
			a.discard(ctx, b.mc)
		}
	} else if req.Revert {
		return nil, notFound(req.Sandbox.ID)
	}
	p := a.planOf(req)
	a.asked(p)
	if inst, err := a.startWarm(ctx, p); inst != nil || err != nil {
		return inst, err
	}
	return a.startCold(ctx, p)
}

// plan is what boot needs to know of a machine to be.
type plan struct {
	build     *hearth.Build
	restore   *hearth.Snapshot // nil boots from the layers
	driver    string           // boots it; empty: the node's own choice
	resources hearth.Resources
	sandbox   *journal.Sandbox // nil for a pool
	urgency   turn.Urgency
	blank     bool // it is prepared, and restored later
}

func (a *Agent) planOf(req node.StartRequest) plan {
	env := maps.Clone(req.Build.Env)
	if env == nil {
		env = map[string]string{}
	}
	maps.Copy(env, req.Sandbox.Env)
	return plan{
		build: &req.Build, restore: req.Restore, driver: req.Driver, resources: req.Sandbox.Resources, urgency: turn.User,
		sandbox: &journal.Sandbox{
			ID: req.Sandbox.ID, Generation: req.Sandbox.Generation, StartedAt: a.now(),
			Template: req.Sandbox.Template, Network: req.Sandbox.Network, Token: req.Token, Env: env,
			User: cmp.Or(req.Build.User, defaultUser), Workdir: req.Build.Workdir,
		},
	}
}

// startWarm thaws a machine of the pool and makes it the sandbox's own; nothing when there is none that works.
func (a *Agent) startWarm(ctx context.Context, p plan) (*node.Instance, error) {
	for ctx.Err() == nil {
		mc := a.claim(p)
		if mc == nil {
			return nil, nil
		}
		a.nudge()
		inst, err := a.handOver(ctx, mc, p)
		if err == nil {
			a.count(&a.warm)
			return inst, nil
		}
		a.discard(ctx, mc)
		if ctx.Err() != nil || hearth.KindOf(err) == hearth.InvalidArgument {
			return nil, turn.Because(ctx, err)
		}
		a.log.Warn("a machine of the pool was of no use; trying another", "machine", mc.id(), "err", err)
	}
	return nil, turn.Ended(ctx)
}

func (a *Agent) count(n *int64) {
	a.mu.Lock()
	*n++
	a.mu.Unlock()
}

func (a *Agent) handOver(ctx context.Context, mc *machine, p plan) (*node.Instance, error) {
	mc.took = nil
	mc.rec.Sandbox, mc.rec.Phase = p.sandbox, journal.Starting
	if err := a.step(mc, "record", func() error { return a.journal.Write(mc.rec) }); err != nil {
		return nil, err
	}
	if err := a.step(mc, "thaw", func() error {
		policy := make(chan error, 1) // the guest is sealed until Init: the policy need only be there by then
		go func() { policy <- a.deps.Network.SetPolicy(ctx, mc.rec.Slot, p.sandbox.Network) }()
		return cmp.Or(mc.live.Thaw(ctx), <-policy)
	}); err != nil {
		return nil, err
	}
	return a.settle(ctx, mc, p)
}

// settle unseals a machine's daemon and gives it to its sandbox, in the state in
// which the build's sandboxes begin.
func (a *Agent) settle(ctx context.Context, mc *machine, p plan) (*node.Instance, error) {
	g := a.guestOf(mc)
	if err := a.step(mc, "init", func() error { return a.unseal(ctx, mc, g) }); err != nil {
		return nil, err
	}
	if p.restore == nil {
		prepare := func() error {
			ctx, cancel := mc.within(ctx)
			defer cancel()
			return turn.Because(ctx, g.Prepare(ctx, p.build))
		}
		if err := a.step(mc, "prepare", prepare); err != nil {
			return nil, err
		}
	}
	inst, err := a.register(ctx, mc, g)
	if err == nil {
		a.log.Debug("sandbox started", "sandbox", inst.ID, "machine", mc.id(), "steps", mc.took)
		for _, s := range mc.took {
			trace.Note(ctx, "agent."+s.Name, s.Began, s.Took)
		}
	}
	return inst, err
}

// startCold restores or boots a machine, when its turn has come. By then the
// pool may have one after all.
func (a *Agent) startCold(ctx context.Context, p plan) (*node.Instance, error) {
	if err := a.hasMemory(); err != nil {
		return nil, err
	}
	began := a.now()
	leave, err := a.queue.Enter(ctx, turn.User)
	if err != nil {
		return nil, err
	}
	defer leave()
	waited := a.now().Sub(began)
	if inst, err := a.startWarm(ctx, p); inst != nil || err != nil {
		return inst, err
	}
	mc, err := a.boot(ctx, p)
	if err != nil {
		return nil, err
	}
	mc.took = append([]Step{{Name: "queue", Began: began, Took: waited}}, mc.took...)
	inst, err := a.settle(ctx, mc, p)
	if err != nil {
		a.discard(ctx, mc)
		return nil, err
	}
	a.count(&a.cold)
	return inst, nil
}

// hasMemory refuses machines that a host short of memory had better not start.
func (a *Agent) hasMemory() error {
	m, err := a.deps.Memory()
	if least := m.Reserve(a.cfg.HostReserve); err == nil && m.Available < least {
		return hearth.Errorf(hearth.ResourceExhausted, "the host is short of memory: %d MiB are available, %d are kept free", m.Available>>20, least>>20)
	}
	return nil
}

// boot makes a machine that runs, its daemon still sealed. When it fails
// nothing is left.
func (a *Agent) boot(ctx context.Context, p plan) (*machine, error) {
	d, err := a.driverFor(p)
	if err != nil {
		return nil, err
	}
	if mc, err := a.fromBlank(ctx, p); mc != nil || err != nil {
		return mc, err
	}
	rec := journal.Record{
		Phase: journal.Starting, Slot: journal.NoSlot, Resources: p.resources, Build: p.build.ID, Sandbox: p.sandbox,
		Handle: driver.Handle{Driver: d.Name(), ID: journal.NewID()},
	}
	rec.Handle.Dir = a.dir("run", rec.Handle.ID)
	if p.restore != nil {
		rec.Restored = p.restore.ID
	}
	mc := newMachine(rec)
	if p.restore != nil && p.restore.Memory {
		mc.secret = p.restore.Sandbox
	}
	if err := a.bring(ctx, d, mc, p); err != nil {
		a.discard(ctx, mc)
		return nil, turn.Because(ctx, err)
	}
	return mc, nil
}

// bring takes a machine through the steps of its start. What it did until an
// error is undone by discard.
func (a *Agent) bring(ctx context.Context, d driver.Driver, mc *machine, p plan) error {
	spec := driver.Spec{ID: mc.id(), Dir: mc.rec.Handle.Dir, Resources: p.resources}
	if p.sandbox != nil {
		spec.Hostname = string(p.sandbox.ID)
	}
	return a.steps(ctx, mc, []stage{
		{"files", func() (err error) {
			if spec.Layers, err = a.shelf.Layers(ctx, p.build.Layers); err == nil {
				spec.From, err = a.checkpoint(ctx, mc, p.restore)
			}
			return err
		}},
		{"slot", func() error { return a.acquire(ctx, mc, p) }},
		{"record", func() error {
			spec.Net = mc.net
			if err := a.journal.Write(mc.rec); err != nil {
				return err
			}
			return shelf.DiskError(os.Mkdir(spec.Dir, 0o700), "the machine's directory cannot be made")
		}},
		{"policy", func() error { // in force before the guest's first instruction
			policy := hearth.Network{AllowInternet: new(bool)} // a pool's machine has nobody to talk to
			if p.sandbox != nil {
				policy = p.sandbox.Network
			}
			return a.deps.Network.SetPolicy(ctx, mc.rec.Slot, policy)
		}},
		{"machine", func() error {
			if p.blank {
				return a.prepareBlank(ctx, d, mc, spec)
			}
			live, err := d.Start(ctx, spec)
			if err != nil {
				return shelf.DiskError(err, "the machine cannot be started")
			}
			mc.live, mc.rec.Handle = live, live.Handle()
			a.watch(mc)
			return nil
		}},
	})
}

// stage is one step of a start.
type stage struct {
	name string
	do   func() error
}

func (a *Agent) steps(ctx context.Context, mc *machine, list []stage) error {
	for _, s := range list {
		if err := a.step(mc, s.name, s.do); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return turn.Ended(ctx)
		}
	}
	return nil
}

// acquire takes a slot; when all are taken, a paused machine of a pool gives up its own.
func (a *Agent) acquire(ctx context.Context, mc *machine, p plan) error {
	take := a.deps.Network.Acquire
	if caps, _ := a.capabilities(mc.rec.Handle.Driver); caps.Tap {
		take = a.deps.Network.AcquireTap
	}
	slot, err := take(ctx)
	for hearth.KindOf(err) == hearth.ResourceExhausted && p.urgency == turn.User && a.evict(ctx) {
		slot, err = take(ctx)
	}
	if err != nil {
		return err
	}
	mc.rec.Slot, mc.net = slot.Index, slot.Net
	return nil
}
