package agent

import (
	"context"
	"os"
	"time"

	"hearth/internal/driver"
	"hearth/internal/guest"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/node/agent/journal"
	"hearth/internal/node/agent/shelf"
	"hearth/internal/node/agent/turn"
)

// Pause takes a sandbox's snapshot and ends its machine. Asked again with the
// same Into it returns the same snapshot.
func (a *Agent) Pause(ctx context.Context, id hearth.SandboxID, req node.PauseRequest) (*hearth.Snapshot, error) {
	if driver.CheckID(string(req.Into)) != nil {
		return nil, hearth.Errorf(hearth.InvalidArgument, "into %q is not a snapshot ID", req.Into)
	}
	unlock, err := a.locks.Lock(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	snap, owner, err := a.shelf.Find(ctx, req.Into)
	if err != nil && hearth.KindOf(err) != hearth.NotFound {
		return nil, err
	}
	b := a.box(id)
	switch {
	case err == nil && owner != id:
		return nil, hearth.Errorf(hearth.AlreadyExists, "snapshot %s is of another sandbox", req.Into)
	case err == nil && b == nil:
		return snap, nil
	case b == nil:
		return nil, notFound(id)
	}
	return a.pause(ctx, b, req)
}

// pause holds the sandbox's lock.
func (a *Agent) pause(ctx context.Context, b *box, req node.PauseRequest) (*hearth.Snapshot, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, a.cfg.PauseTimeout, hearth.Errorf(hearth.DeadlineExceeded,
		"the sandbox was not written within %s; it runs on", a.cfg.PauseTimeout))
	defer cancel()
	ctx, interrupt := context.WithCancelCause(ctx)
	defer interrupt(nil)
	if err := a.beginPause(b, interrupt); err != nil {
		return nil, err
	}
	defer a.work.Done()
	defer context.AfterFunc(a.life, func() { interrupt(errClosed()) })()
	b.mc.rec.Phase, b.mc.rec.Into = journal.Pausing, req.Into
	snap, err := a.takeSnapshot(ctx, b, req)
	if err == nil {
		b.mc.rec.Phase = journal.Ending
		err = a.journal.Write(b.mc.rec) // from here on the snapshot is what there is of the sandbox
	}
	_ = os.RemoveAll(a.dir("checkpoint", b.mc.id())) // discard and Open try again
	if err != nil {
		err = because(ctx, err)
		a.resume(ctx, b)
		return nil, err
	}
	if !a.remove(b) {
		return nil, notFound(b.id)
	}
	a.discard(ctx, b.mc)
	a.log.Info("sandbox paused", "sandbox", b.id, "snapshot", snap.ID)
	return snap, nil
}

// beginPause makes Close wait for the pause, and Stop able to cut it short.
func (a *Agent) beginPause(b *box, interrupt context.CancelCauseFunc) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.ready(); err != nil {
		return err
	}
	if b.mc.life.Err() != nil {
		return turn.Ended(b.mc.life)
	}
	a.work.Add(1)
	b.state, b.interrupt = hearth.Pausing, interrupt
	return nil
}

// quiesceTimeout bounds how long a guest may take to seal itself or to unseal.
const quiesceTimeout = 15 * time.Second

// takeSnapshot seals, freezes and writes a sandbox, and publishes the files.
func (a *Agent) takeSnapshot(ctx context.Context, b *box, req node.PauseRequest) (*hearth.Snapshot, error) {
	if err := a.shelf.Remove(ctx, req.Into); err != nil { // of an attempt that was cut short
		return nil, err
	}
	if err := a.journal.Write(b.mc.rec); err != nil {
		return nil, err
	}
	qctx, cancel := context.WithTimeout(ctx, quiesceTimeout)
	err := b.guest.Quiesce(qctx, guest.QuiesceRequest{Forget: req.Forget})
	cancel()
	if hearth.KindOf(err) == hearth.Unavailable && ctx.Err() == nil {
		// The node is there: asking it again would keep everyone waiting as long again.
		err = hearth.Wrap(hearth.DeadlineExceeded, err, "the sandbox's daemon does not answer")
	}
	if err != nil {
		return nil, err
	}
	b.sealed = true
	if err := b.mc.live.Freeze(ctx); err != nil {
		return nil, err
	}
	dir := a.dir("checkpoint", b.mc.id())
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, shelf.DiskError(err, "the checkpoint's directory cannot be made")
	}
	c, err := b.mc.live.Checkpoint(ctx, dir)
	if err != nil {
		return nil, shelf.DiskError(err, "the sandbox's state cannot be written")
	}
	caps, _ := a.capabilities(c.Driver)
	return a.shelf.Put(ctx, b.id, hearth.Snapshot{
		ID: req.Into, Build: b.mc.rec.Build, Parent: b.mc.rec.Restored, Memory: caps.MemorySnapshot, Created: a.now(),
	}, c)
}

// resume takes a pause back: the sandbox runs on, or ends when it cannot. The
// caller holds its lock. When a stop or the guest's death cut the pause short
// the sandbox is left to whoever did that.
func (a *Agent) resume(ctx context.Context, b *box) {
	ctx, cancel := cleanup(ctx)
	defer cancel()
	if err := a.shelf.Remove(ctx, b.mc.rec.Into); err != nil {
		a.log.Warn("files of an abandoned snapshot remain", "snapshot", b.mc.rec.Into, "err", err)
	}
	ctx, interrupt := context.WithCancelCause(ctx)
	defer interrupt(nil)
	given := func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		b.interrupt = interrupt // a stop need not wait for a daemon that does not answer
		return b.stopping || b.mc.life.Err() != nil
	}
	if !given() {
		if err := a.goOn(ctx, b); err != nil && !given() {
			a.log.Error("a sandbox does not go on after a failed pause", "sandbox", b.id, "err", err)
			if a.remove(b) {
				a.bury(ctx, b, "it could not go on after a pause that failed")
			}
			return
		}
	}
	a.mu.Lock()
	b.state, b.interrupt = hearth.Running, nil
	a.mu.Unlock()
}

// goOn thaws and unseals a sandbox, however far its pause got. A daemon that
// does not answer is an error only when it was sealed: then nobody can use it.
func (a *Agent) goOn(ctx context.Context, b *box) error {
	if err := b.mc.live.Thaw(ctx); err != nil {
		return err
	}
	ictx, cancel := context.WithTimeout(ctx, quiesceTimeout)
	defer cancel()
	if err := a.unseal(ictx, b.mc, b.guest); err != nil {
		if b.sealed {
			return err
		}
		a.log.Warn("a sandbox's daemon does not answer", "sandbox", b.id, "err", err)
	}
	b.sealed = false
	b.mc.rec.Phase, b.mc.rec.Into = journal.Running, ""
	if err := a.journal.Write(b.mc.rec); err != nil { // recovery would do all this once more, no harm
		a.log.Warn("a machine's record is out of date", "machine", b.mc.id(), "err", err)
	}
	return nil
}
