package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/sandbox"

	"hearth/internal/driver"
	"hearth/internal/driver/gvisor/console"
	"hearth/internal/driver/hostproc"
	"hearth/internal/hearth"
)

// Marks in a machine's directory that outlive this process. A freeze or a thaw
// is a mark, a call, a mark: only a crash in the middle leaves an unsure one, and
// who finds it asks the sandbox what came of the call.
const (
	frozenMark = "frozen"
	unsureMark = "unsure"
)

// machine is one running sandbox.
type machine struct {
	d     *Driver
	id    string
	dir   string
	state machineState
	box   *sandbox.Sandbox // its control socket
	pidfd *os.File
	con   *console.Console // nil after Attach

	turn    chan struct{} // holds one token: who has it may call the sandbox
	frozen  bool          // the guest; owned by the holder of turn
	unsure  bool          // whether it is, for a call failed; likewise
	resting bool          // and perhaps the sandbox itself, by its cgroup; likewise

	conns   connections
	closing atomic.Bool   // Close was called: its end is no news
	done    chan struct{} // closed by watch
	exit    driver.Exit   // written before done is closed
}

// adopt makes a machine of a running sandbox and watches it.
func (d *Driver) adopt(id, dir string, state machineState, con *console.Console) (*machine, error) {
	pidfd, err := state.Open()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hearth.Wrap(hearth.NotFound, err, "machine %s is gone", id)
	}
	if err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "machine %s cannot be watched", id)
	}
	m := &machine{
		d: d, id: id, dir: dir, state: state, pidfd: pidfd, con: con,
		box:  &sandbox.Sandbox{ID: id, ControlSocketPath: d.socket(id)},
		turn: make(chan struct{}, 1),
		done: make(chan struct{}),
	}
	m.box.Pid.Store(state.PID)
	m.turn <- struct{}{}
	go m.watch()
	return m, nil
}

func (d *Driver) socket(id string) string {
	return filepath.Join(d.cfg.Root, "runsc-"+id+".sock")
}

// Handle identifies the sandbox process by number, start time and executable.
func (m *machine) Handle() driver.Handle {
	raw, err := json.Marshal(m.state)
	if err != nil {
		raw = nil // plain numbers and strings: cannot fail
	}
	return driver.Handle{Driver: Name, ID: m.id, Dir: m.dir, State: raw}
}

// watch waits for the sandbox's end and says how it ended.
func (m *machine) watch() {
	err := hostproc.Await(m.pidfd)
	if err != nil {
		m.d.cfg.Log.Error("machine cannot be watched any more", "id", m.id, "error", err)
	}
	m.exit = m.howEnded()
	if !m.closing.Load() {
		m.d.cfg.Log.Info("machine ended", "id", m.id, "code", m.exit.Code, "reason", m.exit.Reason, "console", m.con.Tail())
	}
	m.con.Close()
	_ = m.pidfd.Close()
	m.conns.closeAll()
	close(m.done)
}

func (m *machine) howEnded() driver.Exit {
	exit := driver.Exit{Code: -1, Reason: "ended, nobody saw how", At: time.Now()}
	status, known := hostproc.ExitStatus(m.pidfd, m.state.Process)
	switch {
	case known && status.Signaled():
		exit.Code = 128 + int(status.Signal())
		exit.Reason = "sandbox killed by " + unix.SignalName(status.Signal())
	case known:
		exit.Code = status.ExitStatus()
		exit.Reason = fmt.Sprintf("guest's first process ended with %d", exit.Code)
	}
	const killed = 128 + int(unix.SIGKILL)
	if m.d.cgroup(m.id).OOMKills() > 0 && (exit.Code == killed || !known) {
		exit.OOM = true
		exit.Reason = fmt.Sprintf("out of memory: %d MiB of memory and %d MiB of disk are all it may use",
			m.state.Resources.MemoryMiB, m.state.Resources.DiskMiB)
	}
	return exit
}

func (m *machine) Done() <-chan struct{} { return m.done }

// Exit is zero while the machine runs.
func (m *machine) Exit() driver.Exit {
	select {
	case <-m.done:
		return m.exit
	default:
		return driver.Exit{}
	}
}

// control runs one call to the sandbox while no other runs. A sandbox is hostile
// and may never answer: when ctx ends first the call is abandoned, and later
// ones wait for it until they give up or the machine is closed.
func (m *machine) control(ctx context.Context, what string, call func() error) error {
	select {
	case <-m.turn:
	case <-m.done:
		return m.ended()
	case <-ctx.Done():
		return hearth.Wrap(hearth.DeadlineExceeded, context.Cause(ctx), "machine %s: %s did not begin in time", m.id, what)
	}
	result := make(chan error, 1)
	go func() {
		defer func() { m.turn <- struct{}{} }()
		err := m.wake()
		if err == nil {
			err = call()
		}
		result <- err
	}()
	select {
	case err := <-result:
		switch {
		case err == nil || hearth.KindOf(err) != hearth.Internal:
			return err
		case m.over():
			return m.ended()
		}
		return hearth.Wrap(hearth.Internal, err, "machine %s: %s failed", m.id, what)
	case <-m.done:
		return m.ended()
	case <-ctx.Done():
		return hearth.Wrap(hearth.DeadlineExceeded, context.Cause(ctx), "machine %s: %s did not end in time", m.id, what)
	}
}

// over says whether the machine has ended. That its process has is known a moment
// before watch is through with it: then it waits for that.
func (m *machine) over() bool {
	pidfd, err := m.state.Open()
	if err == nil {
		_ = pidfd.Close()
	} else if errors.Is(err, fs.ErrNotExist) {
		<-m.done
	}
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}

func (m *machine) ended() error {
	return hearth.Errorf(hearth.NotFound, "machine %s has ended: %s", m.id, m.exit.Reason)
}

// Freeze stops the guest's tasks in place.
func (m *machine) Freeze(ctx context.Context) error {
	return m.control(ctx, "freeze", func() error { return m.setFrozen(true, false) })
}

// Rest freezes the guest and then, by its cgroup, the sandbox, where timers and
// Go's runtime go on beside a frozen guest. Published gVisor does not survive that
// (patch/8-freezer.patch).
func (m *machine) Rest(ctx context.Context) error {
	if !sharing {
		return m.Freeze(ctx)
	}
	return m.control(ctx, "rest", func() error {
		if err := m.setFrozen(true, true); err != nil {
			return err
		}
		m.resting = true
		err := m.d.cgroup(m.id).Freeze()
		if m.closing.Load() { // Close has thawed it, perhaps before this
			return m.wake()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // this host has no freezer
		}
		return err
	})
}

// wake thaws the sandbox, so that it hears.
func (m *machine) wake() error {
	if !m.resting {
		return nil
	}
	err := m.d.cgroup(m.id).Thaw()
	m.resting = err != nil
	return err
}

// Thaw lets them go on.
func (m *machine) Thaw(ctx context.Context) error {
	return m.control(ctx, "thaw", func() error { return m.setFrozen(false, false) })
}

// ExactTimers makes the guest's timers as exact as the host's, where its launcher left them coarse.
func (m *machine) ExactTimers() {
	if err := hostproc.SetTimers(m.state.PID, hostproc.ExactTimers); err != nil {
		m.d.cfg.Log.Warn("a machine's timers stay coarse", "id", m.id, "error", err)
	}
}

// setFrozen makes the guest's tasks stop, perhaps for long, or go on, between two marks.
// After a call that failed it is made again: unless it would be counted.
func (m *machine) setFrozen(frozen, long bool) error {
	if m.frozen == frozen && !(m.unsure && m.switches()) {
		return nil
	}
	m.unsure = true
	if err := mark(m.dir, unsureMark); err != nil {
		return err
	}
	if err := m.setPaused(frozen, long); err != nil {
		return err
	}
	return m.settle(frozen)
}

// switches says whether the sandbox's kernel can be asked. One of published gVisor, or
// of a build of ours before that, counts pauses, and panics over a resume too many.
func (m *machine) switches() bool { return sharing && m.state.Switches }

func (m *machine) setPaused(paused, long bool) error {
	switch {
	case m.switches():
		return switchTo(m.box, paused, long)
	case paused:
		return m.box.Pause(m.id)
	}
	return m.box.Resume(m.id)
}

// mark makes a mark in a machine's directory: another name of a file that is there.
func mark(dir, name string) error {
	path := filepath.Join(dir, name)
	err := os.Link(filepath.Join(dir, configFile), path)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return nil
	}
	return os.WriteFile(path, nil, 0o600) // a machine of a build that has it elsewhere, or no links here
}

// settle notes what the guest is for sure.
func (m *machine) settle(frozen bool) error {
	unsure, marked := filepath.Join(m.dir, unsureMark), filepath.Join(m.dir, frozenMark)
	m.frozen = frozen
	err := os.Remove(marked) // to rename one name of a file to another one changes nothing
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
	case frozen:
		err = os.Rename(unsure, marked)
	default:
		err = os.Remove(unsure)
	}
	m.unsure = err != nil
	return err
}

// settleTimeout bounds how long a sandbox may take to say what it is.
const settleTimeout = 15 * time.Second

// ask finds out what came of a freeze or a thaw that was cut short by its owner's death.
func (m *machine) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	return m.control(ctx, "asking", func() error {
		frozen, err := isPaused(m.box)
		if err != nil {
			return err
		}
		return m.settle(frozen)
	})
}

// Usage reads the machine's cgroup and its network interface.
func (m *machine) Usage(context.Context) (driver.Usage, error) {
	select {
	case <-m.done:
		return driver.Usage{}, m.ended()
	default:
	}
	c := m.d.cgroup(m.id)
	anonymous, files := c.Memory() // the overlay's and tmpfs's pages are files
	u := driver.Usage{CPU: c.CPUTime(), Memory: anonymous + files, MemoryMax: memoryLimit(m.state.Resources)}
	u.RxBytes, u.TxBytes = hostproc.Traffic(m.state.PID, m.state.Net.Device)
	return u, nil
}

// Close kills the sandbox and removes all there is of the machine.
func (m *machine) Close(ctx context.Context) error {
	if !m.closing.Swap(true) {
		m.learn(ctx)
	}
	_ = m.d.cgroup(m.id).Thaw() // or it would not die; without success the wait below says so
	hostproc.Kill(m.pidfd)
	select {
	case <-m.done:
	case <-ctx.Done():
		return hearth.Wrap(hearth.DeadlineExceeded, context.Cause(ctx), "machine %s did not die in time", m.id)
	}
	if err := m.d.release(ctx, m.id, m.dir, hostproc.RemoveDir); err != nil {
		return hearth.Wrap(hearth.Internal, err, "machine %s is dead but not all of it could be removed", m.id)
	}
	return nil
}
