package qemu

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
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
	used, err := d.users.Used()
	if err != nil {
		return hearth.Wrap(hearth.Internal, err, "machines cannot be counted")
	}
	if len(used) > 0 {
		return hearth.Errorf(hearth.FailedPrecondition, "%d machines are still there", len(used))
	}
	var errs []error
	for _, dir := range append(d.cgroup("").Dirs(), filepath.Join(d.cfg.Root, usersDir), filepath.Join(d.cfg.Root, jailDir), d.cfg.Root) {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, &fs.PathError{Op: "rmdir", Path: dir, Err: err})
		}
	}
	if err := errors.Join(errs...); err != nil {
		return hearth.Wrap(hearth.Internal, err, "not all of the qemu driver's directories could be removed")
	}
	return nil
}

func (d *Driver) cgroup(id string) hostproc.Cgroup {
	return hostproc.CgroupAt(filepath.Join(d.cfg.CgroupParent, id))
}

// What release does with the machine's directory: a start that failed leaves it
// as it was given, empty.
type dirPolicy int

const (
	keepDir dirPolicy = iota
	removeDir
)

// release kills and removes what there is of a machine that has no launcher any
// more. The user is given back last, when no process can be left with it.
func (d *Driver) release(ctx context.Context, id, dir string, policy dirPolicy) error {
	if err := d.cgroup(id).Remove(ctx); err != nil {
		return err
	}
	err := empty(dir)
	if policy == removeDir && err == nil {
		if err = os.Remove(dir); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err != nil {
		return err
	}
	return d.users.Free(id)
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

// killStrays kills the machine's launcher and QEMU wherever they are, and waits
// until they are gone, so that none can make anything after the sweep.
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

// processesOf finds a machine's processes by their command lines: those that no
// cgroup lists are caught between two steps of a start.
func processesOf(id string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		raw, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(raw) == 0 {
			continue
		}
		args := strings.Split(strings.TrimSuffix(string(raw), "\x00"), "\x00")
		if slices.Equal(args, []string{jail.LauncherName, id}) ||
			len(args) > 3 && slices.Equal(args[:3], []string{jail.ProcessName, "-name", id}) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
