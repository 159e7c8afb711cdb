package gvisor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"hearth/internal/driver"
	"hearth/internal/driver/gvisor/launcher"
	"hearth/internal/driver/hostproc"
	"hearth/internal/hearth"
)

// Attach finds a machine by its handle. One whose freeze or thaw was cut short by a
// crash is asked what came of it; one that cannot be asked counts as gone then.
func (d *Driver) Attach(ctx context.Context, h driver.Handle) (driver.Machine, error) {
	if err := h.CheckAttach(Name); err != nil {
		return nil, err
	}
	state, err := decodeState(h.State)
	if err != nil {
		return nil, h.Gone(err)
	}
	if !exists(d.socket(h.ID)) {
		return nil, h.Gone(errors.New("it has no control socket"))
	}
	unsure := exists(filepath.Join(h.Dir, unsureMark))
	if unsure && !(sharing && state.Switches) {
		return nil, h.Gone(errors.New("it was being frozen or thawed when its owner died"))
	}
	m, err := d.adopt(h.ID, h.Dir, state, nil)
	if err != nil {
		return nil, err
	}
	<-m.turn
	m.frozen = exists(filepath.Join(h.Dir, frozenMark))
	m.resting = m.frozen || unsure // perhaps
	m.turn <- struct{}{}
	if unsure {
		if err := m.ask(ctx); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
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
	used, err := d.uids.Used()
	if err != nil {
		return hearth.Wrap(hearth.Internal, err, "machines cannot be counted")
	}
	if len(used) > 0 {
		return hearth.Errorf(hearth.FailedPrecondition, "%d machines are still there", len(used))
	}
	errs := []error{os.RemoveAll(filepath.Join(d.cfg.Root, ownLessons)), d.cgroup("").RemoveParent()}
	for _, dir := range []string{filepath.Join(d.cfg.Root, usersDir), d.cfg.Root} {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, &fs.PathError{Op: "rmdir", Path: dir, Err: err})
		}
	}
	if err := errors.Join(errs...); err != nil {
		if used, _ := d.uids.Used(); len(used) > 0 {
			return hearth.Wrap(hearth.FailedPrecondition, err, "%d machines were started meanwhile", len(used))
		}
		return hearth.Wrap(hearth.Internal, err, "not all of the gvisor driver's directories could be removed")
	}
	return nil
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
// more. The range of users is given back last, when no process can be left in it.
func (d *Driver) release(ctx context.Context, id, dir string, policy hostproc.DirPolicy) error {
	if err := d.cgroup(id).Remove(ctx); err != nil {
		return err
	}
	var errs []error
	for _, name := range []string{"runsc-" + id + ".sock", id + "_sandbox:" + id + ".state", id + "_sandbox:" + id + ".lock"} {
		if err := os.Remove(filepath.Join(d.cfg.Root, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(append(errs, policy.Apply(dir))...); err != nil {
		return err
	}
	if err := d.uids.Free(id); err != nil {
		return err
	}
	d.launchers.Gone(id)
	return nil
}

// killStrays kills the machine's launcher, sandbox and gofer wherever they are.
func (d *Driver) killStrays(ctx context.Context, id string) error {
	if err := d.cgroup(id).Thaw(); err != nil {
		return err
	}
	return hostproc.KillStrays(ctx, func(args []string) bool {
		switch args[0] {
		case launcher.Name, "runsc-sandbox", "runsc-gofer":
			return args[len(args)-1] == id
		}
		return false
	})
}

func (d *Driver) cgroup(id string) hostproc.Cgroup {
	return hostproc.CgroupAt(filepath.Join(d.cfg.CgroupParent, id))
}
