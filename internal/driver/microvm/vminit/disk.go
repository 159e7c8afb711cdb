package vminit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	diskMount = "/disk"

	// settled is how long the disk stands still for a host that does not come back.
	settled = 30 * time.Second

	fifreeze = 0xc0045877 // of linux/fs.h
	fithaw   = 0xc0045878
)

// disk is the writable disk, which the host may copy while it stands still. It has
// no journal and is never unmounted, so only then what is on it is whole.
type disk struct {
	freezing sync.Mutex // held by who waits for the kernel
	mu       sync.Mutex
	wanted   bool        // that it stands still
	still    *time.Timer // nil: it can be written to
}

// Settle implements channel.Guest. Who writes to the disk may keep the kernel
// waiting as long as he likes.
func (m *machine) Settle(ctx context.Context) error {
	result := make(chan error, 1)
	go func() { result <- m.disk.settle() }()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// settle writes out all there is, and holds up who writes from then on.
func (d *disk) settle() error {
	d.freezing.Lock()
	defer d.freezing.Unlock()
	d.mu.Lock()
	d.wanted = true
	if d.still != nil {
		d.still.Reset(settled)
		d.mu.Unlock()
		return nil
	}
	d.mu.Unlock()
	err := tell(fifreeze)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case err != nil && !errors.Is(err, unix.EBUSY): // then somebody inside has done it
		return fmt.Errorf("disk: %w", err)
	case !d.wanted:
		return errors.Join(errors.New("disk: it took too long"), tell(fithaw))
	}
	d.still = time.AfterFunc(settled, d.thaw)
	return nil
}

// thaw lets the disk be written to again. It does nothing when it can be.
func (d *disk) thaw() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wanted = false
	if d.still == nil {
		return
	}
	d.still.Stop()
	d.still = nil
	if err := tell(fithaw); err != nil && !errors.Is(err, unix.EINVAL) { // then somebody inside has done it
		logf("disk: %v", err)
	}
}

func tell(request uint) error {
	f, err := os.Open(diskMount)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlSetInt(int(f.Fd()), request, 0)
}
