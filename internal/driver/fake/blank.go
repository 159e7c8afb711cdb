package fake

import (
	"context"
	"sync"

	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// blank is a machine of the host whose guest was not given its memory yet.
type blank struct {
	d    *Driver
	m    *machine
	mu   sync.Mutex // held while it is restored or closed
	used bool
}

var _ driver.Preparer = (*Driver)(nil)

// Prepare makes a machine without a guest.
func (d *Driver) Prepare(ctx context.Context, spec driver.Spec) (driver.Blank, error) {
	if spec.From != nil {
		return nil, hearth.Errorf(hearth.InvalidArgument, "from: what is to be restored is said later")
	}
	if err := d.check(spec); err != nil {
		return nil, err
	}
	if err := d.host.before(ctx, Prepare, spec.ID); err != nil {
		return nil, err
	}
	m, err := d.place(spec, nil)
	if err != nil {
		return nil, err
	}
	return &blank{d: d, m: m}, nil
}

// Restore gives the guest its memory and runs the host's Program in it.
func (b *blank) Restore(ctx context.Context, from *driver.Checkpoint) (driver.Machine, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "machine %s is not blank any more", b.m.spec.ID)
	}
	b.used = true
	if err := b.restore(ctx, from); err != nil {
		_ = b.m.free(context.WithoutCancel(ctx)) // nothing holds it up: it has no connections
		return nil, err
	}
	return b.m, nil
}

func (b *blank) restore(ctx context.Context, from *driver.Checkpoint) error {
	if from == nil || from.FilesOnly {
		return hearth.Errorf(hearth.FailedPrecondition, "machine %s can only be restored from memory", b.m.spec.ID)
	}
	memory, err := b.d.load(from)
	if err != nil {
		return err
	}
	if err := b.d.host.before(ctx, Restore, b.m.spec.ID); err != nil {
		return err
	}
	select {
	case <-b.m.done:
		return b.m.ended()
	default:
	}
	b.m.spec.From, b.m.guest.memory, b.m.guest.restored = from, memory, true
	b.d.run(b.m)
	return nil
}

// Memory is a constant.
func (b *blank) Memory() int64 { return 4 << 20 }

// Done is closed when the machine was killed.
func (b *blank) Done() <-chan struct{} { return b.m.done }

// Close removes the machine unless it was restored.
func (b *blank) Close(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used {
		return nil
	}
	if err := b.d.host.before(ctx, Close, b.m.spec.ID); err != nil {
		return err
	}
	b.used = true
	return b.m.free(ctx)
}
