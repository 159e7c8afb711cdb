package firecracker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"hearth/internal/driver/firecracker/pager"
	"hearth/internal/driver/hostproc"
)

const (
	pagerRoot      = "pager"     // in the machine's directory: the pager's chroot
	pagerLog       = "pager.log" // its last words
	workingSetFile = "working-set-"
	maxWorkingSets = 512 // kept on a host
	maxLastWords   = 1 << 10
	recordTime     = 2 * time.Second
	bothEnd        = 500 * time.Millisecond // between a machine's end and its pager's
)

// Main runs a pager when args are those of one, and reports whether it did. The
// program that Config.Exe names must call it first.
func Main(args []string) bool { return pager.Main(args) }

// startPager starts the process that will answer the machine's page faults. It is
// in the machine's control group, under a user of its own.
func (m *machine) startPager(ctx context.Context, o origin) error {
	memory, err := openAll(ctx, o.from.memory)
	defer closeAll(memory)
	if err != nil {
		return err
	}
	s := pager.Setup{
		ID: m.id, Memory: memory, Peer: m.jail.UID, UID: m.jail.UID + 1, GID: m.jail.UID + 1,
		Root: filepath.Join(m.dir, pagerRoot),
	}
	if err := os.Mkdir(s.Root, 0o555); err != nil {
		return err
	}
	if s.Log, err = os.OpenFile(filepath.Join(m.dir, pagerLog), os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return err
	}
	defer s.Log.Close()
	if s.Listener, err = m.jail.Listen(pagerSocket); err != nil {
		return err
	}
	defer s.Listener.Close()
	s.WorkingSet, err = os.Open(filepath.Join(m.d.workingSets(), o.from.id))
	if errors.Is(err, fs.ErrNotExist) {
		s.WorkingSet = nil
		s.Record, err = os.OpenFile(filepath.Join(m.dir, workingSetFile+o.from.id), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	}
	if err != nil {
		return err
	}
	defer s.Record.Close() // of nil, an error that is no matter
	defer s.WorkingSet.Close()
	cmd, err := pager.Start(m.d.cfg.Exe, s, m.joinCgroup)
	if err != nil {
		return err
	}
	p, err := hostproc.Identify(cmd.Process.Pid)
	if err != nil {
		return errors.Join(err, cmd.Wait())
	}
	m.state.Pager = &p
	return m.watchPager(p, cmd)
}

// joinCgroup puts a process under the machine's limits.
func (m *machine) joinCgroup(pid int) error {
	dirs := m.d.cgroup(m.id).Dirs()
	if len(dirs) == 0 {
		return errors.New("the machine has no cgroup")
	}
	for _, dir := range dirs {
		f, err := os.OpenFile(filepath.Join(dir, "cgroup.procs"), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(strconv.Itoa(pid))
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// watchPager kills the machine when its pager ends before it: its threads would
// sleep for ever on their next page. cmd is nil for a pager that an earlier
// process started.
func (m *machine) watchPager(p hostproc.Process, cmd *exec.Cmd) error {
	pidfd, err := p.Open()
	if err != nil {
		err = fmt.Errorf("its pager is gone: %w", err)
		if cmd != nil {
			err = errors.Join(err, cmd.Wait(), errors.New(m.pagerSaid()))
		}
		return err
	}
	m.pagerGone = make(chan struct{})
	go func() {
		defer close(m.pagerGone)
		if err := hostproc.Await(pidfd); err != nil {
			m.d.cfg.Log.Error("pager cannot be watched any more", "id", m.id, "error", err)
		}
		_ = pidfd.Close()
		if cmd != nil {
			_ = cmd.Wait()
		}
		select {
		case <-m.done: // first the machine, then its pager, as it should be
			return
		case <-time.After(bothEnd):
		}
		alive, err := m.state.Open()
		if errors.Is(err, fs.ErrNotExist) { // it ended, too, which is about to be told
			return
		}
		_ = alive.Close()
		why := cmp.Or(m.pagerSaid(), "killed")
		m.pagerEnd.Store(&why)
		m.kill()
	}()
	return nil
}

// awaitPager gives the pager of a machine that has ended a moment to write down
// what it recorded.
func (m *machine) awaitPager(ctx context.Context) {
	if m.pagerGone == nil {
		return
	}
	select {
	case <-m.pagerGone:
	case <-ctx.Done():
	case <-time.After(recordTime):
	}
}

// pagerSaid is the end of what the pager wrote.
func (m *machine) pagerSaid() string {
	f, err := os.Open(filepath.Join(m.dir, pagerLog))
	if err != nil {
		return ""
	}
	defer f.Close()
	raw, _ := io.ReadAll(io.LimitReader(f, maxLastWords))
	return strings.TrimSpace(string(raw))
}

func (d *Driver) workingSets() string { return filepath.Join(d.cfg.Root, "working-sets") }

// keepWorkingSet keeps what a machine's pager recorded, for the next machine from
// the same checkpoint. A record that is not whole is nobody's loss.
func (d *Driver) keepWorkingSet(dir string) {
	found, _ := filepath.Glob(filepath.Join(dir, workingSetFile+"*"))
	for _, path := range found {
		id := strings.TrimPrefix(filepath.Base(path), workingSetFile)
		raw, err := os.ReadFile(path)
		if err != nil || !isID(id) {
			continue
		}
		if w, err := pager.ParseWorkingSet(raw); err != nil || len(w.Pages) == 0 {
			continue
		}
		if err := d.saveWorkingSet(id, raw); err != nil {
			d.cfg.Log.Warn("working set is not kept", "error", err)
		}
	}
}

func (d *Driver) saveWorkingSet(id string, raw []byte) error {
	if err := os.MkdirAll(d.workingSets(), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(d.workingSets(), "new-")
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(d.workingSets(), id))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return d.forgetWorkingSets()
}

// forgetWorkingSets removes the oldest beyond maxWorkingSets.
func (d *Driver) forgetWorkingSets() error {
	entries, err := os.ReadDir(d.workingSets())
	if err != nil || len(entries) <= maxWorkingSets {
		return err
	}
	age := func(e os.DirEntry) int64 {
		info, err := e.Info()
		if err != nil {
			return 0 // gone meanwhile
		}
		return info.ModTime().UnixNano()
	}
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return cmp.Compare(age(a), age(b)) })
	var errs []error
	for _, e := range entries[:len(entries)-maxWorkingSets] {
		errs = append(errs, os.Remove(filepath.Join(d.workingSets(), e.Name())))
	}
	return errors.Join(errs...)
}
