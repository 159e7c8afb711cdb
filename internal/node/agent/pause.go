package agent

import (
	"context"
	"math"
	"os"
	"time"

	"hearth/internal/driver"
	"hearth/internal/guest"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/node/agent/journal"
	"hearth/internal/node/agent/shelf"
	"hearth/internal/node/agent/turn"
	"hearth/internal/trace"
)

// Pause takes a sandbox's snapshot and ends its machine. Asked again with the
// same Into it returns the same snapshot.
func (a *Agent) Pause(ctx context.Context, id hearth.SandboxID, req node.PauseRequest) (*hearth.Snapshot, error) {
	snap, b, unlock, err := a.checkpointed(ctx, id, req.Into)
	if err != nil {
		return nil, err
	}
	if b != nil {
		snap, err = a.roomy(ctx, b, func() (*hearth.Snapshot, error) { return a.pause(ctx, b, req, unlock) })
		if err == nil {
			return snap, nil
		}
	} else if snap == nil {
		err = notFound(id)
	}
	unlock()
	return snap, err
}

// roomy takes a checkpoint of b, and takes it once more when the disk was full but the
// sandbox runs on: plain files of other snapshots, which are a cache, are given up for
// it. First as many as the machine has in memory, which is about what is written, and
// then all that there are. The caller holds the sandbox's lock.
func (a *Agent) roomy(ctx context.Context, b *box, take func() (*hearth.Snapshot, error)) (*hearth.Snapshot, error) {
	snap, err := take()
	for round := 0; round < 2 && err != nil && hearth.KindOf(err) == hearth.ResourceExhausted && a.box(b.id) == b; round++ {
		enough := int64(math.MaxInt64)
		if u, err := b.mc.live.Usage(ctx); err == nil && round == 0 {
			enough = u.Memory
		}
		freed, ferr := a.shelf.MakeRoom(ctx, enough)
		if freed > 0 || ferr != nil {
			a.log.Warn("the disk is full: plain files of packed snapshots were removed", "bytes", freed, "err", ferr)
		}
		if freed > 0 {
			snap, err = take()
		}
	}
	return snap, err
}

// Snapshot writes a sandbox's state and lets it go on. Asked again with the same
// Into it returns the same snapshot.
func (a *Agent) Snapshot(ctx context.Context, id hearth.SandboxID, req node.SnapshotRequest) (*hearth.Snapshot, error) {
	snap, b, unlock, err := a.checkpointed(ctx, id, req.Into)
	if err != nil {
		return nil, err
	}
	defer unlock()
	switch {
	case snap != nil:
		return snap, nil
	case b != nil:
		return a.roomy(ctx, b, func() (*hearth.Snapshot, error) { return a.snapshot(ctx, b, req) })
	}
	return nil, notFound(id)
}

// checkpointed takes a sandbox's lock, and looks for its machine and for the
// snapshot that somebody asks for, perhaps again. Both may be nil.
func (a *Agent) checkpointed(ctx context.Context, id hearth.SandboxID, into hearth.SnapshotID) (snap *hearth.Snapshot, b *box, unlock func(), err error) {
	if driver.CheckID(string(into)) != nil {
		return nil, nil, nil, hearth.Errorf(hearth.InvalidArgument, "into %q is not a snapshot ID", into)
	}
	unlock, err = a.locks.Lock(ctx, id)
	if err != nil {
		return nil, nil, nil, err
	}
	snap, owner, err := a.shelf.Find(ctx, into)
	switch {
	case err == nil && owner != id:
		err = hearth.Errorf(hearth.AlreadyExists, "snapshot %s is of another sandbox", into)
	case err != nil && hearth.KindOf(err) == hearth.NotFound:
		snap, err = nil, nil
	}
	if err != nil {
		unlock()
		return nil, nil, nil, err
	}
	return snap, a.box(id), unlock, nil
}

// pause holds the sandbox's lock. When it succeeds, the state is safe and the
// machine stands still: the caller need not wait until it is gone. Whoever
// wants the sandbox next does, for unlock is called then, and only then.
func (a *Agent) pause(ctx context.Context, b *box, req node.PauseRequest, unlock func()) (*hearth.Snapshot, error) {
	checkpoint := b.mc.live.Checkpoint
	if req.FilesOnly {
		keeper, able := b.mc.live.(driver.FileKeeper)
		if caps, _ := a.capabilities(b.mc.rec.Handle.Driver); !able || !caps.FileSnapshot {
			return nil, hearth.Errorf(hearth.FailedPrecondition, "driver %s cannot keep files without memory", b.mc.rec.Handle.Driver)
		}
		checkpoint = keeper.CheckpointFiles
	}
	ctx, end, err := a.beginCheckpoint(ctx, b, hearth.Pausing)
	if err != nil {
		return nil, err
	}
	defer end()
	snap := a.record(b, req.Into)
	if req.Forget {
		snap.Sandbox = "" // nobody's secrets are in it
	}
	c, err := a.capture(ctx, b, guest.QuiesceRequest{Forget: req.Forget}, checkpoint)
	if err == nil {
		snap, err = a.keepFiles(ctx, b, snap, c)
	}
	if err == nil {
		b.mc.rec.Phase = journal.Ending
		err = a.journal.Write(b.mc.rec) // from here on the snapshot is what there is of the sandbox
	}
	if err != nil {
		_ = os.RemoveAll(a.dir("checkpoint", b.mc.id())) // discard and Open try again
		err = turn.Because(ctx, err)
		a.resume(ctx, b)
		return nil, err
	}
	if !a.remove(b) {
		return nil, notFound(b.id)
	}
	a.log.Info("sandbox paused", "sandbox", b.id, "snapshot", snap.ID)
	a.dismiss(ctx, b.mc, unlock)
	return snap, nil
}

// snapshot holds the sandbox's lock. The machine stands still until its state is
// written; the files become blobs while it runs again.
func (a *Agent) snapshot(ctx context.Context, b *box, req node.SnapshotRequest) (*hearth.Snapshot, error) {
	ctx, end, err := a.beginCheckpoint(ctx, b, hearth.Running)
	if err != nil {
		return nil, err
	}
	defer end()
	snap := a.record(b, req.Into)
	wake := a.hush(b)
	began := a.now()
	c, err := a.capture(ctx, b, guest.QuiesceRequest{Hold: true}, b.mc.live.Checkpoint)
	if err != nil {
		err = turn.Because(ctx, err)
		_ = os.RemoveAll(a.dir("checkpoint", b.mc.id()))
		a.resume(ctx, b)
		wake()
		return nil, err
	}
	goesOn := a.runOn(ctx, b)
	wake()
	if !goesOn {
		return nil, hearth.Errorf(hearth.Unavailable, "sandbox %s did not go on after its snapshot", b.id)
	}
	stood := a.now().Sub(began)
	snap, err = a.keepFiles(ctx, b, snap, c)
	cctx, cancel := turn.Cleanup(ctx)
	defer cancel()
	_ = os.RemoveAll(a.dir("checkpoint", b.mc.id()))
	b.mc.rec.Into = ""
	if err == nil {
		err = a.journal.Write(b.mc.rec) // with the old record, recovery would remove the snapshot
	}
	if err != nil {
		if rerr := a.shelf.Remove(cctx, req.Into); rerr != nil {
			a.log.Warn("files of an abandoned snapshot remain", "snapshot", req.Into, "err", rerr)
		}
		return nil, turn.Because(ctx, err)
	}
	a.log.Info("snapshot taken", "sandbox", b.id, "snapshot", snap.ID, "stood", stood)
	return snap, nil
}

// beginCheckpoint makes Close wait for a checkpoint, and Stop and the guest's
// death able to cut it short. The box is in the given state until end is called
// or another is set.
func (a *Agent) beginCheckpoint(ctx context.Context, b *box, during hearth.State) (_ context.Context, end func(), err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.ready(); err != nil {
		return nil, nil, err
	}
	if b.mc.life.Err() != nil {
		return nil, nil, turn.Ended(b.mc.life)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, a.cfg.PauseTimeout, hearth.Errorf(hearth.DeadlineExceeded,
		"the sandbox was not written within %s; it runs on", a.cfg.PauseTimeout))
	ctx, interrupt := context.WithCancelCause(ctx)
	stop := context.AfterFunc(a.life, func() { interrupt(errClosed()) })
	a.work.Add(1)
	b.state, b.interrupt = during, interrupt
	return ctx, func() {
		a.mu.Lock()
		b.interrupt = nil
		a.mu.Unlock()
		stop()
		interrupt(nil)
		cancel()
		a.work.Done()
	}, nil
}

// record is what the agent itself knows of a snapshot of a box's machine.
func (a *Agent) record(b *box, into hearth.SnapshotID) *hearth.Snapshot {
	b.mc.rec.Phase, b.mc.rec.Into = journal.Pausing, into
	return &hearth.Snapshot{
		ID: into, Build: b.mc.rec.Build, Parent: b.mc.rec.Restored, Sandbox: b.id, Resources: b.mc.rec.Resources, Created: a.now(),
	}
}

// quiesceTimeout bounds how long a guest may take to seal itself or to unseal.
const quiesceTimeout = 15 * time.Second

// writer is a way to write a frozen machine's checkpoint into a directory.
type writer func(ctx context.Context, dir string) (*driver.Checkpoint, error)

// capture seals, freezes and writes a sandbox, which stays frozen.
func (a *Agent) capture(ctx context.Context, b *box, how guest.QuiesceRequest, write writer) (*driver.Checkpoint, error) {
	if err := a.shelf.Remove(ctx, b.mc.rec.Into); err != nil { // of an attempt that was cut short
		return nil, err
	}
	if err := a.journal.Write(b.mc.rec); err != nil {
		return nil, err
	}
	qctx, cancel := context.WithTimeout(ctx, quiesceTimeout)
	err := b.guest.Quiesce(qctx, how)
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
	defer trace.Begin(ctx, "agent.checkpoint")()
	dir := a.dir("checkpoint", b.mc.id())
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, shelf.DiskError(err, "the checkpoint's directory cannot be made")
	}
	c, err := write(ctx, dir)
	if err != nil {
		return nil, shelf.DiskError(err, "the sandbox's state cannot be written")
	}
	return c, nil
}

// keepFiles makes a snapshot of a checkpoint.
func (a *Agent) keepFiles(ctx context.Context, b *box, snap *hearth.Snapshot, c *driver.Checkpoint) (*hearth.Snapshot, error) {
	defer trace.Begin(ctx, "agent.keep")()
	caps, _ := a.capabilities(c.Driver)
	snap.Memory = caps.MemorySnapshot && !c.FilesOnly
	return a.shelf.Put(ctx, b.id, *snap, c)
}

// resume takes a checkpoint back: the sandbox runs on, or ends when it cannot.
// The caller holds its lock.
func (a *Agent) resume(ctx context.Context, b *box) {
	ctx, cancel := turn.Cleanup(ctx)
	defer cancel()
	if into := b.mc.rec.Into; into != "" {
		if err := a.shelf.Remove(ctx, into); err != nil {
			a.log.Warn("files of an abandoned snapshot remain", "snapshot", into, "err", err)
		}
	}
	b.mc.rec.Into = ""
	a.runOn(ctx, b)
}

// runOn lets a frozen sandbox run on, and ends it when it cannot: false then.
// When a stop or the guest's death is under way the sandbox is left to whoever
// does that.
func (a *Agent) runOn(ctx context.Context, b *box) bool {
	ctx, cancel := turn.Cleanup(ctx)
	defer cancel()
	ctx, interrupt := context.WithCancelCause(ctx)
	defer interrupt(nil)
	var before context.CancelCauseFunc
	given := func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return b.stopping || b.mc.life.Err() != nil
	}
	a.mu.Lock()
	before, b.interrupt = b.interrupt, interrupt // a stop need not wait for a daemon that does not answer
	a.mu.Unlock()
	if !given() {
		if err := a.goOn(ctx, b); err != nil && !given() {
			a.log.Error("a sandbox does not go on after a checkpoint", "sandbox", b.id, "err", err)
			if a.remove(b) {
				a.bury(ctx, b, "it could not go on after a pause or snapshot")
			}
			return false
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	b.state, b.interrupt = hearth.Running, before
	return !b.stopping && b.mc.life.Err() == nil
}

// goOn thaws and unseals a sandbox, however far its checkpoint got. A daemon that
// does not answer is an error only when it was sealed: then nobody can use it.
func (a *Agent) goOn(ctx context.Context, b *box) error {
	if err := b.mc.live.Thaw(ctx); err != nil {
		return err
	}
	ictx, cancel := context.WithTimeout(ctx, quiesceTimeout)
	defer cancel()
	if err := a.init(ictx, b.mc, b.guest, guest.InitRequest{GoesOn: true}); err != nil {
		if b.sealed {
			return err
		}
		a.log.Warn("a sandbox's daemon does not answer", "sandbox", b.id, "err", err)
	}
	b.sealed = false
	b.mc.rec.Phase = journal.Running
	if err := a.journal.Write(b.mc.rec); err != nil { // recovery would do all this once more, no harm
		a.log.Warn("a machine's record is out of date", "machine", b.mc.id(), "err", err)
	}
	return nil
}
