package qemu

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/driver"
	"hearth/internal/driver/hostproc"
	"hearth/internal/driver/qemu/jail"
	"hearth/internal/driver/qemu/qmp"
	"hearth/internal/hearth"
)

const attachTime = 10 * time.Second

// Attach finds a machine by its handle, and takes its connections over. QEMU
// itself knows whether it is frozen.
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
	ctx, cancel := context.WithTimeout(ctx, attachTime)
	defer cancel()
	if err := m.resumeOwning(ctx); err != nil {
		m.abandon()
		return nil, err
	}
	return m, nil
}

// resumeOwning takes over the connections, and asks QEMU how things stand.
func (m *machine) resumeOwning(ctx context.Context) error {
	if err := m.link.own(ctx); err != nil {
		return err
	}
	return m.control(ctx, "attach", func(ctx context.Context, q *qmp.Conn) error {
		var status struct {
			Status string `json:"status"`
		}
		if err := q.Ask(ctx, "query-status", &status); err != nil {
			return err
		}
		switch status.Status {
		case "running":
		case "paused":
			m.motion = frozen
		default: // it was being made, or cannot go on
			return hearth.Errorf(hearth.NotFound, "machine %s is of no use: QEMU says it is %q", m.id, status.Status)
		}
		return nil
	})
}

// abandon lets go of a machine that goes on without us. What watches it ends
// with it.
func (m *machine) abandon() {
	m.closing.Store(true)
	m.link.finish()
}

// Sweep removes all there is of a machine, whatever step its start, run or end
// had reached.
func (d *Driver) Sweep(ctx context.Context, h driver.Handle) error {
	if err := h.CheckSweep(); err != nil {
		return err
	}
	if err := d.clear(ctx, h.ID, h.Dir, hostproc.RemoveDir); err != nil {
		return hearth.Wrap(hearth.Internal, err, "machine %s could not be swept", h.ID)
	}
	return nil
}

// Purge removes what the driver keeps between machines: its part of Config.Root
// and, unless others have machines in it, the parent cgroup. It fails, and removes
// nothing, while there are machines.
func (d *Driver) Purge() error {
	used, err := d.users.Used()
	if err != nil {
		return hearth.Wrap(hearth.Internal, err, "machines cannot be counted")
	}
	if len(used) > 0 {
		return hearth.Errorf(hearth.FailedPrecondition, "%d machines are still there", len(used))
	}
	errs := []error{d.cgroup("").RemoveParent()}
	for _, dir := range []string{filepath.Join(d.cfg.Root, usersDir), filepath.Join(d.cfg.Root, jailDir), d.cfg.Root} {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, &fs.PathError{Op: "rmdir", Path: dir, Err: err})
		}
	}
	if err := errors.Join(errs...); err != nil {
		if used, _ := d.users.Used(); len(used) > 0 {
			return hearth.Wrap(hearth.FailedPrecondition, err, "%d machines were started meanwhile", len(used))
		}
		return hearth.Wrap(hearth.Internal, err, "not all of the qemu driver's directories could be removed")
	}
	return nil
}

func (d *Driver) cgroup(id string) hostproc.Cgroup {
	return hostproc.CgroupAt(filepath.Join(d.cfg.CgroupParent, id))
}

// clear is release of a machine that may have a launcher. While a process is left, so is
// all else that is the machine's.
func (d *Driver) clear(ctx context.Context, id, dir string, policy hostproc.DirPolicy) error {
	if err := d.killStrays(ctx, id); err != nil {
		return err
	}
	return d.release(ctx, id, dir, policy)
}

// release kills and removes what there is of a machine that has no launcher any
// more. The user is given back last, when no process can be left with it.
func (d *Driver) release(ctx context.Context, id, dir string, policy hostproc.DirPolicy) error {
	if err := d.cgroup(id).Remove(ctx); err != nil {
		return err
	}
	if err := policy.Apply(dir); err != nil {
		return err
	}
	return d.users.Free(id)
}

// killStrays kills the machine's launcher and QEMU wherever they are.
func (d *Driver) killStrays(ctx context.Context, id string) error {
	return hostproc.KillStrays(ctx, func(args []string) bool {
		return slices.Equal(args, []string{jail.LauncherName, id}) ||
			len(args) > 3 && slices.Equal(args[:3], []string{jail.ProcessName, "-name", id})
	})
}
