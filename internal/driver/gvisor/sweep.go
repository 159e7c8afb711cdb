package gvisor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/driver"
	"hearth/internal/driver/hostproc"
	"hearth/internal/hearth"
)

// Attach finds a machine by its handle. A machine whose freeze or thaw was cut
// short by a crash cannot be trusted to be either, and counts as gone.
func (d *Driver) Attach(_ context.Context, h driver.Handle) (driver.Machine, error) {
	gone := func(err error) error {
		return hearth.Wrap(hearth.NotFound, err, "machine %s is gone", h.ID)
	}
	if h.Driver != Name {
		return nil, gone(errors.New("handle of driver " + h.Driver))
	}
	if err := driver.CheckID(h.ID); err != nil {
		return nil, gone(err)
	}
	state, err := decodeState(h.State)
	if err != nil {
		return nil, gone(err)
	}
	if exists(filepath.Join(h.Dir, unsureMark)) {
		return nil, gone(errors.New("it was being frozen or thawed when its owner died"))
	}
	if !exists(d.socket(h.ID)) {
		return nil, gone(errors.New("it has no control socket"))
	}
	m, err := d.adopt(h.ID, h.Dir, state, nil)
	if err != nil {
		return nil, err
	}
	<-m.turn
	m.frozen = exists(filepath.Join(h.Dir, frozenMark))
	m.turn <- struct{}{}
	return m, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// Sweep removes all there is of a machine, whatever step its start, run or end
// had reached.
func (d *Driver) Sweep(ctx context.Context, h driver.Handle) error {
	if err := driver.CheckID(h.ID); err != nil {
		return err
	}
	if !filepath.IsAbs(h.Dir) || filepath.Clean(h.Dir) == "/" {
		return hearth.Errorf(hearth.InvalidArgument, "dir %q is not an absolute directory", h.Dir)
	}
	err := d.killStrays(ctx, h.ID)
	if err == nil {
		err = d.release(ctx, h.ID, h.Dir, removeDir)
	}
	if err != nil {
		return hearth.Wrap(hearth.Internal, err, "machine %s could not be swept", h.ID)
	}
	return nil
}

// Purge removes what the driver keeps between machines: its part of Config.Root
// and the parent cgroup. It fails, and removes nothing, while there are machines.
func (d *Driver) Purge() error {
	used, err := d.uids.Used()
	if err != nil {
		return hearth.Wrap(hearth.Internal, err, "machines cannot be counted")
	}
	if len(used) > 0 {
		return hearth.Errorf(hearth.FailedPrecondition, "%d machines are still there", len(used))
	}
	errs := []error{os.RemoveAll(d.lessons.dir)}
	for _, dir := range append(d.cgroup("").Dirs(), filepath.Join(d.cfg.Root, usersDir), d.cfg.Root) {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, &fs.PathError{Op: "rmdir", Path: dir, Err: err})
		}
	}
	if err := errors.Join(errs...); err != nil {
		return hearth.Wrap(hearth.Internal, err, "not all of the gvisor driver's directories could be removed")
	}
	return nil
}

// What release does with the machine's directory: a start that failed leaves it
// as it was given, empty.
type dirPolicy int

const (
	keepDir dirPolicy = iota
	removeDir
)

// release kills and removes what there is of a machine that has no launcher any
// more. The range of users is given back last, when no process can be left in it.
func (d *Driver) release(ctx context.Context, id, dir string, policy dirPolicy) error {
	if err := d.cgroup(id).Remove(ctx); err != nil {
		return err
	}
	var errs []error
	for _, name := range []string{"runsc-" + id + ".sock", id + "_sandbox:" + id + ".state", id + "_sandbox:" + id + ".lock"} {
		if err := os.Remove(filepath.Join(d.cfg.Root, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	errs = append(errs, empty(dir))
	if policy == removeDir {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return d.uids.Free(id)
}

// empty removes what is in a directory, which need not be there.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return errors.Join(errs...)
}

// killStrays kills the machine's launcher and sandbox wherever they are, and
// waits until they are gone, so that none can make anything after the sweep.
func (d *Driver) killStrays(ctx context.Context, id string) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		pids, err := processesOf(id)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

func (d *Driver) cgroup(id string) hostproc.Cgroup {
	return hostproc.CgroupAt(filepath.Join(d.cfg.CgroupParent, id))
}
