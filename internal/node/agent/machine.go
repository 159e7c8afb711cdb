package agent

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"net"
	"os"
	"path/filepath"
	"time"

	"hearth/internal/driver"
	"hearth/internal/guest"
	"hearth/internal/hearth"
	"hearth/internal/node/agent/journal"
	"hearth/internal/node/agent/turn"
)

// machine is everything this host holds for one guest. Its fields are the
// owner's; life may be used by anyone.
type machine struct {
	rec  journal.Record
	net  driver.Attachment
	live driver.Machine // nil until the driver has started it
	free *vacancy       // while it is a blank
	size int64          // bytes it held when it was frozen for a pool
	took []Step

	// secret names the sandbox whose control secret the guest holds, in memory that
	// it was restored with; empty: its own, or none yet.
	secret hearth.SandboxID
	given  string // that secret itself, when the memory came from elsewhere

	owner *box // guarded by Agent.mu

	life context.Context // ends when the guest has ended or the machine is taken down
	quit context.CancelCauseFunc
}

// Step is one part of a start.
type Step struct {
	Name  string
	Began time.Time
	Took  time.Duration
}

// String says what it took, for logs.
func (s Step) String() string { return s.Name + " " + s.Took.String() }

func newMachine(rec journal.Record) *machine {
	mc := &machine{rec: rec}
	mc.life, mc.quit = context.WithCancelCause(context.Background())
	return mc
}

func (mc *machine) id() string { return mc.rec.Handle.ID }

// step runs one part of a start and notes how long it took.
func (a *Agent) step(mc *machine, name string, f func() error) error {
	began := a.now()
	err := f()
	mc.took = append(mc.took, Step{Name: name, Began: began, Took: a.now().Sub(began)})
	return err
}

// within returns a context that also ends when the guest has ended.
func (mc *machine) within(ctx context.Context) (context.Context, context.CancelFunc) {
	return turn.Within(ctx, mc.life)
}

// guestOf returns a client of the machine's daemon; of a machine in a pool
// (sandbox is nil) one that can only ask whether it is ready.
func (a *Agent) guestOf(mc *machine) Guest {
	control := ""
	if mc.rec.Sandbox != nil {
		control = a.key.Of(mc.rec.Sandbox.ID)
	}
	return a.deps.Guest(mc.dial, control)
}

func (mc *machine) dial(ctx context.Context, port uint16) (net.Conn, error) {
	return mc.live.Dial(ctx, port)
}

// unseal makes the daemon of a machine that has just started the sandbox's own. It fails as soon as the guest ends.
func (a *Agent) unseal(ctx context.Context, mc *machine, g Guest) error {
	if mc.secret != "" && mc.secret != mc.rec.Sandbox.ID { // it knows the host by the secret of another
		g = a.deps.Guest(mc.dial, cmp.Or(mc.given, a.key.Of(mc.secret)))
	}
	if err := a.init(ctx, mc, g, guest.InitRequest{}); err != nil {
		return err
	}
	mc.secret = ""
	driver.ExactTimers(mc.live)
	return nil
}

// init sends a daemon the rest of req.
func (a *Agent) init(ctx context.Context, mc *machine, g Guest, req guest.InitRequest) error {
	ctx, cancel := mc.within(ctx)
	defer cancel()
	seed := make([]byte, 32)
	rand.Read(seed) // never fails
	s := mc.rec.Sandbox
	req.Now, req.Seed, req.Control, req.Token = a.now(), seed, a.key.Of(s.ID), s.Token
	req.SandboxID, req.TemplateID = string(s.ID), string(s.Template)
	req.Env, req.User, req.Workdir, req.DNS = s.Env, s.User, s.Workdir, a.cfg.DNS
	return turn.Because(ctx, g.Init(ctx, req))
}

// watch follows a started machine until it ends, is taken down, or the agent
// closes. Call it once, from a goroutine that the agent waits for.
func (a *Agent) watch(mc *machine) {
	a.work.Go(func() {
		select {
		case <-mc.live.Done():
		case <-mc.life.Done():
			return
		case <-a.life.Done():
			return
		}
		mc.quit(hearth.Errorf(hearth.Unavailable, "the sandbox ended: %s", mc.live.Exit().Why()))
		a.died(mc)
	})
}

// died takes down a machine whose guest has ended, whoever owns it. A start in
// flight notices by itself.
func (a *Agent) died(mc *machine) {
	ctx := context.WithoutCancel(a.life)
	a.mu.Lock()
	if a.pools.Take(mc) {
		a.mu.Unlock()
		a.log.Warn("a machine of the pool ended", "machine", mc.id(), "reason", mc.live.Exit().Why())
		a.discard(ctx, mc)
		a.nudge()
		return
	}
	b := mc.owner
	if b != nil && b.interrupt != nil {
		b.interrupt(context.Cause(mc.life))
	}
	a.mu.Unlock()
	if b == nil {
		return
	}
	unlock, err := a.locks.Lock(a.life, b.id)
	if err != nil {
		return // the agent closes; the next one finds the machine dead
	}
	defer unlock()
	if a.remove(b) {
		a.bury(ctx, b, mc.live.Exit().Why())
	}
}

// discard takes a machine down: the guest, its slot, its directories, its
// record, in this order. What cannot be taken down now keeps its record and its
// slot, and is tried again by Run and by the next Open.
func (a *Agent) discard(ctx context.Context, mc *machine) {
	ctx, cancel := turn.Cleanup(ctx)
	defer cancel()
	mc.quit(hearth.Errorf(hearth.Unavailable, "the sandbox is being stopped"))
	err := a.takeDown(ctx, mc)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil {
		delete(a.zombies, mc.id())
		return
	}
	mc.rec.Phase = journal.Ending
	if jerr := a.journal.Write(mc.rec); jerr != nil {
		err = errors.Join(err, jerr)
	}
	a.zombies[mc.id()] = mc
	a.log.Error("a machine cannot be taken down; it will be tried again", "machine", mc.id(), "err", err)
}

// dismiss takes a machine down behind the call that its sandbox needed it for. Who wants
// the sandbox next waits until it is gone: unlock is called then, and gone closed.
func (a *Agent) dismiss(ctx context.Context, mc *machine, unlock func()) (gone <-chan struct{}) {
	return a.endings.Do(a.work.Go, func() { defer unlock(); a.discard(ctx, mc) })
}

func (a *Agent) takeDown(ctx context.Context, mc *machine) error {
	if err := a.killMachine(ctx, mc); err != nil {
		return err
	}
	if mc.rec.Slot != journal.NoSlot {
		if err := a.deps.Network.Release(ctx, mc.rec.Slot); err != nil {
			return err
		}
		mc.rec.Slot = journal.NoSlot
	}
	var errs []error
	for _, d := range []string{"run", "restore", "checkpoint"} {
		errs = append(errs, os.RemoveAll(a.dir(d, mc.id())), os.RemoveAll(filepath.Join(a.cfg.Dir, d, mc.id()))) // before Plain was set
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := a.journal.Remove(mc.id()); err != nil {
		return err
	}
	if err := a.shelf.Release(ctx, mc.id()); err != nil {
		a.log.Warn("files of a removed snapshot remain until the next start", "snapshot", mc.rec.Restored, "err", err)
	}
	return nil
}

// killMachine closes a machine, and sweeps what Close could not free.
func (a *Agent) killMachine(ctx context.Context, mc *machine) error {
	if mc.live != nil {
		err := mc.live.Close(ctx)
		if err == nil {
			return nil
		}
		a.log.Warn("closing a machine failed; sweeping it", "machine", mc.id(), "err", err)
	}
	if mc.free != nil {
		err := mc.free.blank.Close(ctx)
		if err == nil {
			return nil
		}
		a.log.Warn("closing a blank failed; sweeping it", "machine", mc.id(), "err", err)
	}
	h := mc.rec.Handle
	if h.Dir == "" {
		h.Dir = a.dir("run", h.ID)
	}
	if d := a.deps.Drivers[h.Driver]; d != nil {
		return d.Sweep(ctx, h)
	}
	var errs []error // a torn record does not say whose the machine was
	for name, d := range a.deps.Drivers {
		errs = append(errs, d.Sweep(ctx, driver.Handle{Driver: name, ID: h.ID, Dir: h.Dir}))
	}
	return errors.Join(errs...)
}

// buryZombies tries again to take down what could not be taken down before.
func (a *Agent) buryZombies(ctx context.Context) {
	a.mu.Lock()
	list := make([]*machine, 0, len(a.zombies))
	for _, mc := range a.zombies {
		list = append(list, mc)
	}
	a.mu.Unlock()
	for _, mc := range list {
		a.discard(ctx, mc)
	}
}

// dir returns a path below the data directory.
func (a *Agent) dir(elem ...string) string {
	root := a.cfg.Dir
	if elem[0] == "restore" || elem[0] == "checkpoint" {
		root = cmp.Or(a.cfg.Plain, root)
	}
	return filepath.Join(append([]string{root}, elem...)...)
}
