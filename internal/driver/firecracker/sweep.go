package firecracker

import (
	"context"
	"errors"
	"os"
	"strconv"

	"hearth/internal/driver"
	"hearth/internal/driver/firecracker/jail"
	"hearth/internal/driver/firecracker/pager"
	"hearth/internal/driver/firecracker/vmm"
	"hearth/internal/driver/hostproc"
	"hearth/internal/hearth"
)

// Attach finds a machine by its handle. A monitor that does not answer, and one
// whose pager is gone, count as gone.
func (d *Driver) Attach(ctx context.Context, h driver.Handle) (driver.Machine, error) {
	if err := h.CheckAttach(Name); err != nil {
		return nil, err
	}
	state, err := decodeState(h.State)
	if err != nil {
		return nil, h.Gone(err)
	}
	m, err := d.adopt(h.ID, h.Dir, state, nil)
	if err != nil {
		return nil, err
	}
	if state.Pager != nil {
		if err := m.watchPager(*state.Pager, nil); err != nil {
			m.letGo()
			return nil, h.Gone(err)
		}
	}
	info, err := m.api.Info(ctx)
	if err != nil || info.State != vmm.Running && info.State != vmm.Paused {
		m.letGo()
		return nil, h.Gone(errors.Join(err, errors.New("its monitor is in state "+strconv.Quote(string(info.State)))))
	}
	<-m.turn
	if info.State == vmm.Paused {
		m.motion = frozen
	}
	m.turn <- struct{}{}
	return m, nil
}

// Sweep removes all there is of a machine, whatever step its start, run or end
// had reached.
func (d *Driver) Sweep(ctx context.Context, h driver.Handle) error {
	if err := h.CheckSweep(); err != nil {
		return err
	}
	if err := d.clear(ctx, h.ID, h.Dir, hostproc.RemoveDir); err != nil {
		return hearth.Wrap(hearth.Internal, err, "not all of machine %s could be removed", h.ID)
	}
	return nil
}

// Purge removes the driver's own directories, empty as they are when it has no
// machines: those of Config.Root and, unless others have
// machines in it, the parent cgroup. It fails, and removes
// nothing, while there are machines.
func (d *Driver) Purge() error {
	used, err := d.users.Used()
	if err != nil {
		return hearth.Wrap(hearth.Internal, err, "machines cannot be counted")
	}
	if len(used) > 0 {
		return hearth.Errorf(hearth.FailedPrecondition, "%d machines are still there", len(used))
	}
	if err := errors.Join(d.cgroup("").RemoveParent(), os.RemoveAll(d.cfg.Root)); err != nil {
		return hearth.Wrap(hearth.Internal, err, "not all of the firecracker driver's directories could be removed")
	}
	return nil
}

// clear is release of a machine that may have a jailer. While a process is left, so is
// all else that is the machine's.
func (d *Driver) clear(ctx context.Context, id, dir string, policy hostproc.DirPolicy) error {
	if err := jail.KillStrays(ctx, id, pager.Name); err != nil {
		return err
	}
	return d.release(ctx, id, dir, policy)
}

// release kills and removes what there is of a machine that has no jailer any
// more. The users are given back last, when no process can be left that is theirs.
func (d *Driver) release(ctx context.Context, id, dir string, policy hostproc.DirPolicy) error {
	if err := d.cgroup(id).Remove(ctx); err != nil {
		return err
	}
	d.keepWorkingSet(dir)
	if err := jail.UnmountBelow(dir); err != nil {
		return err
	}
	if err := policy.Apply(dir); err != nil {
		return err
	}
	return d.users.Free(id)
}
