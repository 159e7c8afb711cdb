package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"hearth/internal/driver"
	"hearth/internal/guest"
	"hearth/internal/hearth"
	"hearth/internal/node/agent/journal"
	"hearth/internal/node/agent/secret"
	"hearth/internal/node/agent/shelf"
	"hearth/internal/node/agent/turn"
)

// Open makes the data directory ready and takes up what an earlier process left:
// sandboxes and pools that live are attached, the rest is taken down and
// reported as events. After an error the agent can only be closed.
func (a *Agent) Open(ctx context.Context) error {
	if err := a.prepare(ctx); err != nil {
		return err
	}
	list, err := a.journal.Load()
	if err != nil {
		return shelf.DiskError(err, "the journal of machines cannot be read")
	}
	if err := a.holdAll(ctx, list); err != nil {
		return err
	}
	a.work.Add(1)
	defer a.work.Done()
	var all turn.Batch
	for _, rec := range journal.Newest(list) {
		all.Do(func() error { a.recover(ctx, rec); return nil })
	}
	_ = all.Wait() // recover reports
	if err := a.sweepDirs(ctx); err != nil {
		return err
	}
	if err := a.shelf.Sweep(ctx); err != nil {
		return err
	}
	if err := a.deps.Network.Sweep(ctx, a.slots()); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.state != made {
		return errClosed()
	}
	a.state = open
	if n := len(list); n > 0 {
		a.log.Info("machines of an earlier process taken up", "found", n, "sandboxes", len(a.boxes))
	}
	return nil
}

// holdAll keeps what machines were restored from, before anything can remove it.
func (a *Agent) holdAll(ctx context.Context, list []journal.Record) error {
	for _, rec := range list {
		if rec.Restored == "" {
			continue
		}
		if err := a.shelf.Hold(ctx, rec.Handle.ID, rec.Restored); err != nil && hearth.KindOf(err) != hearth.NotFound {
			return err
		}
	}
	return nil
}

// prepare makes directories and the key, and asks what drivers and host can do.
func (a *Agent) prepare(ctx context.Context) error {
	if !filepath.IsAbs(a.cfg.Dir) {
		return hearth.Errorf(hearth.InvalidArgument, "the node's directory %q is not absolute", a.cfg.Dir)
	}
	if err := os.RemoveAll(a.dir("checkpoint")); err != nil { // never needed by a later process
		return shelf.DiskError(err, "the node's directory cannot be cleaned")
	}
	for _, d := range []string{"machines", "run", "restore", "checkpoint"} {
		if err := os.MkdirAll(a.dir(d), 0o700); err != nil {
			return shelf.DiskError(err, "the node's directory cannot be made")
		}
	}
	key, err := secret.Load(a.dir("control.key"))
	if err != nil {
		return shelf.DiskError(err, "the node's control key cannot be read or made")
	}
	caps := map[string]driver.Capabilities{}
	var unable []error
	for name, d := range a.deps.Drivers {
		c, err := d.Probe(ctx)
		if err != nil {
			unable = append(unable, err)
			a.log.Info("a driver cannot run here", "driver", name, "err", err)
			continue
		}
		caps[name] = c
	}
	if len(caps) == 0 {
		return errors.Join(append(unable, hearth.Errorf(hearth.FailedPrecondition, "no driver can run on this host"))...)
	}
	m, err := a.deps.Memory()
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.key, a.caps = key, caps
	a.total = m.Capacity(a.cfg.Total, a.cfg.Dir)
	a.poolMemory = a.cfg.PoolMemory
	if a.poolMemory <= 0 {
		a.poolMemory = m.Total / 4
	}
	return nil
}

// takeUpTime bounds how long it may take to take up one machine.
const takeUpTime = 2 * time.Minute

// recover takes up one machine, or takes it down: never because somebody stops this
// process meanwhile.
func (a *Agent) recover(ctx context.Context, rec journal.Record) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeUpTime)
	defer cancel()
	mc := newMachine(rec)
	var err error
	switch {
	case rec.Phase == journal.Running, rec.Phase == journal.Pausing:
		err = a.adoptSandbox(ctx, mc)
	case rec.Phase == journal.Pooled && rec.Sandbox == nil:
		err = a.adoptPooled(ctx, mc)
	default:
		err = hearth.Errorf(hearth.Unavailable, "the node restarted before the sandbox had started")
	}
	if err == nil {
		return
	}
	a.discard(ctx, mc)
	if rec.Sandbox == nil {
		return
	}
	state, reason := hearth.Stopped, hearth.Shown(err)
	if _, owner, ferr := a.shelf.Find(ctx, rec.Into); rec.Into != "" && ferr == nil && owner == rec.Sandbox.ID {
		state, reason = hearth.Paused, "" // it was whole; Pause returns it again
	}
	a.log.Warn("a sandbox's machine did not outlive the restart", "sandbox", rec.Sandbox.ID, "state", state, "err", err)
	a.publish(rec.Sandbox.ID, rec.Sandbox.Generation, state, reason)
}

// attach finds a machine and takes its slot.
func (a *Agent) attach(ctx context.Context, mc *machine) error {
	d := a.deps.Drivers[mc.rec.Handle.Driver]
	if d == nil {
		return hearth.Errorf(hearth.FailedPrecondition, "driver %q is gone from this node", mc.rec.Handle.Driver)
	}
	live, err := d.Attach(ctx, mc.rec.Handle)
	for try := 0; err != nil && hearth.KindOf(err) != hearth.NotFound && try < 3 && ctx.Err() == nil; try++ {
		turn.Rest(ctx, 100*time.Millisecond<<try)
		live, err = d.Attach(ctx, mc.rec.Handle)
	}
	if err != nil {
		if hearth.KindOf(err) == hearth.NotFound {
			return hearth.Wrap(hearth.NotFound, err, "the sandbox ended while the node was down")
		}
		return err
	}
	mc.live = live
	a.watch(mc)
	slot, err := a.deps.Network.Attach(ctx, mc.rec.Slot)
	if err != nil {
		return err
	}
	mc.net = slot.Net
	return nil
}

// adoptSandbox takes up a running sandbox. A pause that was cut short is taken back.
func (a *Agent) adoptSandbox(ctx context.Context, mc *machine) error {
	s := mc.rec.Sandbox
	if s == nil {
		return hearth.Errorf(hearth.Internal, "the machine's record names no sandbox")
	}
	if err := a.attach(ctx, mc); err != nil {
		return err
	}
	if err := a.deps.Network.SetPolicy(ctx, mc.rec.Slot, s.Network); err != nil {
		return err
	}
	g := a.guestOf(mc)
	if mc.rec.Phase == journal.Pausing {
		if err := mc.live.Thaw(ctx); err != nil {
			return err
		}
		ictx, cancel := context.WithTimeout(ctx, quiesceTimeout)
		defer cancel()
		if err := a.init(ictx, mc, g, guest.InitRequest{GoesOn: true}); err != nil {
			return err
		}
	}
	if mc.rec.Into != "" { // only now: else it would be all there is
		if err := a.shelf.Remove(ctx, mc.rec.Into); err != nil {
			a.log.Warn("files of an abandoned snapshot remain", "snapshot", mc.rec.Into, "err", err)
		}
		mc.rec.Into = ""
	}
	driver.ExactTimers(mc.live) // who handed it over may not have known of them
	_, err := a.register(ctx, mc, g)
	return err
}

// adoptPooled puts a machine back into its pool. Keep decides later whether it stays.
func (a *Agent) adoptPooled(ctx context.Context, mc *machine) error {
	if err := a.attach(ctx, mc); err != nil {
		return err
	}
	u, err := mc.live.Usage(ctx)
	if err != nil {
		return err
	}
	mc.size = u.Memory
	a.mu.Lock()
	defer a.mu.Unlock()
	if mc.life.Err() != nil {
		return turn.Ended(mc.life)
	}
	a.pools.Adopt(mc)
	return nil
}

// slots lists the slots that machines hold, the undead included.
func (a *Agent) slots() []int {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []int
	for _, b := range a.boxes {
		list = append(list, b.mc.rec.Slot)
	}
	for _, mc := range a.pools.Machines() {
		list = append(list, mc.rec.Slot)
	}
	for _, mc := range a.zombies {
		list = append(list, mc.rec.Slot)
	}
	return slices.DeleteFunc(list, func(i int) bool { return i == journal.NoSlot })
}

// sweepDirs removes machines' directories that no record names.
func (a *Agent) sweepDirs(ctx context.Context) error {
	for _, d := range []string{"restore", "run"} {
		strays, err := a.journal.Strays(a.dir(d))
		if err != nil {
			return shelf.DiskError(err, "the machines' directories cannot be read")
		}
		for _, id := range strays {
			if d == "run" && driver.CheckID(id) == nil {
				a.discard(ctx, newMachine(journal.Record{Phase: journal.Ending, Slot: journal.NoSlot, Handle: driver.Handle{ID: id}}))
			} else if err := os.RemoveAll(a.dir(d, id)); err != nil {
				return shelf.DiskError(err, "a stray directory cannot be removed")
			}
		}
	}
	return nil
}
