package gvisor

import (
	"context"
	"os"
	"sync"

	"hearth/internal/driver"
	"hearth/internal/driver/gvisor/console"
	"hearth/internal/driver/gvisor/launcher"
	"hearth/internal/driver/hostproc"
	"hearth/internal/hearth"
)

// A blank is a sandbox that was created and has not been told what to restore:
// its processes run, its namespaces, users and cgroup are there, its kernel is an
// empty one. That is half of what a restore takes, and the half that is the same
// for every checkpoint of a layer and a size. Its launcher waits with it.

// blank is one of them.
type blank struct {
	d      *Driver
	spec   driver.Spec
	origin origin
	pidfd  *os.File
	left   chan struct{} // closed when the launcher has restored it and has other work
	done   chan struct{} // closed when the sandbox, or its launcher, has ended, or when it is a machine

	mu   sync.Mutex // held while it is restored or closed
	l    *launcher.Launcher
	used bool
}

var _ driver.Preparer = (*Driver)(nil)

// Prepare makes a sandbox that waits.
func (d *Driver) Prepare(ctx context.Context, spec driver.Spec) (driver.Blank, error) {
	if spec.From != nil {
		return nil, hearth.Errorf(hearth.InvalidArgument, "from: what is to be restored is said later")
	}
	b, err := begin(ctx, d, spec, d.prepare)
	if err != nil {
		return nil, err
	}
	return b, nil
}

func (d *Driver) prepare(ctx context.Context, spec driver.Spec, from origin) (*blank, error) {
	req, err := d.describe(spec, from)
	if err != nil {
		return nil, err
	}
	req.Wait = true
	l, err := d.launchers.Get(spec.ID, &console.Console{})
	if err != nil {
		return nil, err
	}
	pid, err := l.Ask(ctx, req)
	if err != nil {
		return nil, err
	}
	pidfd, err := watchable(pid)
	if err != nil {
		l.Close()
		return nil, hearth.Wrap(hearth.Unavailable, err, "machine %s ended as it was prepared", spec.ID)
	}
	b := &blank{d: d, spec: spec, origin: from, pidfd: pidfd, l: l, left: make(chan struct{}), done: make(chan struct{})}
	go b.watch()
	return b, nil
}

func watchable(pid int) (*os.File, error) {
	p, err := hostproc.Identify(pid)
	if err != nil {
		return nil, err
	}
	return p.Open()
}

// watch waits until the sandbox ends, or the launcher, which a restored one does
// without.
func (b *blank) watch() {
	dead := make(chan struct{})
	go func() {
		_ = hostproc.Await(b.pidfd) // that it cannot be watched makes it useless, too
		close(dead)
	}()
	select {
	case <-dead:
	case <-b.left:
	case <-b.l.Ended():
	}
	_ = b.pidfd.Close()
	<-dead
	close(b.done)
}

// Done is closed when the blank is of no use any more.
func (b *blank) Done() <-chan struct{} { return b.done }

// Memory reads the sandbox's cgroup.
func (b *blank) Memory() int64 {
	anonymous, files := b.d.cgroup(b.spec.ID).Memory()
	return anonymous + files
}

// Restore tells the launcher what to restore.
func (b *blank) Restore(ctx context.Context, checkpoint *driver.Checkpoint) (driver.Machine, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "machine %s is not blank any more", b.spec.ID)
	}
	b.used = true
	m, err := b.restore(ctx, checkpoint)
	if err != nil {
		select {
		case <-b.left: // it is somebody else's by now
		default:
			b.l.Close()
		}
		b.d.undo(ctx, b.spec)
		return nil, err
	}
	return m, nil
}

func (b *blank) restore(ctx context.Context, checkpoint *driver.Checkpoint) (*machine, error) {
	spec := b.spec
	spec.From = checkpoint
	if checkpoint == nil || checkpoint.FilesOnly {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "machine %s can only be restored from memory", spec.ID)
	}
	from, err := b.d.origin(spec)
	if err != nil {
		return nil, err
	}
	if from.guest != b.origin.guest {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "checkpoint needs another guest image than machine %s was prepared with", spec.ID)
	}
	from.firstUID = b.origin.firstUID
	pid, err := b.d.launchers.Last(ctx, b.l, launcher.Request{ID: spec.ID, Image: checkpoint.Dir, Memory: b.d.memoryOf(from)})
	if err != nil {
		return nil, err
	}
	close(b.left)
	return b.d.started(pid, spec, from, &console.Console{})
}

// Close kills the launcher and the sandbox.
func (b *blank) Close(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used {
		return nil
	}
	b.l.Close()
	if err := b.d.release(ctx, b.spec.ID, b.spec.Dir, hostproc.RemoveDir); err != nil {
		return hearth.Wrap(hearth.Internal, err, "not all of the blank machine %s could be removed", b.spec.ID)
	}
	b.used = true
	return nil
}
