package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/driver"
	"hearth/internal/driver/firecracker/jail"
	"hearth/internal/driver/firecracker/vmm"
	"hearth/internal/driver/hostproc"
	"hearth/internal/driver/microvm"
	"hearth/internal/driver/microvm/channel"
	"hearth/internal/hearth"
)

// machineState is Handle.State, as JSON: what Attach needs and must check.
type machineState struct {
	hostproc.Process
	Pager     *hostproc.Process `json:"pager,omitempty"`
	Exe       string            `json:"exe"` // base name of the monitor's program
	UID       int               `json:"uid"`
	Key       string            `json:"key"`
	Layers    []string          `json:"layers"`
	Guest     string            `json:"guest"`
	Resources hearth.Resources  `json:"resources"`
	Net       driver.Attachment `json:"net"`
	Hostname  string            `json:"hostname"`
	From      []base            `json:"from,omitempty"` // what it was restored from, then what that lies over
}

// base is a checkpoint, in a handle.
type base struct {
	Dir   string   `json:"dir"`
	Key   string   `json:"key"`
	Files []string `json:"files"`
}

func stateOf(p hostproc.Process, spec driver.Spec, o origin) machineState {
	s := machineState{
		Process: p, Exe: filepath.Base(o.host.firecracker), UID: int(o.firstUID), Key: o.host.key.String(),
		Layers: spec.Layers, Guest: o.guest, Resources: spec.Resources, Net: spec.Net, Hostname: spec.Hostname,
	}
	if o.from.boots() {
		return s
	}
	for c := spec.From; c != nil; c = c.Base {
		s.From = append(s.From, base{Dir: c.Dir, Key: c.Key, Files: c.Files})
	}
	return s
}

func (s machineState) restored() bool { return len(s.From) > 0 }

// from is the checkpoint that the machine was restored from, nil when it booted.
func (s machineState) from() *driver.Checkpoint {
	var c *driver.Checkpoint
	for i := len(s.From) - 1; i >= 0; i-- {
		b := s.From[i]
		c = &driver.Checkpoint{Driver: Name, Key: b.Key, Dir: b.Dir, Files: b.Files, Base: c}
	}
	return c
}

func decodeState(raw []byte) (machineState, error) {
	var s machineState
	if err := json.Unmarshal(raw, &s); err != nil {
		return s, err
	}
	if s.PID < 2 || s.Exe == "" || filepath.Base(s.Exe) != s.Exe || s.UID <= 0 {
		return s, fmt.Errorf("pid %d, program %q, user %d", s.PID, s.Exe, s.UID)
	}
	return s, nil
}

// hungUp is how long the end of a monitor whose sockets ended is waited for.
const hungUp = 3 * time.Second

// motion is what is known of the guest's processors. A call to the monitor whose
// answer did not come may have been carried out all the same.
type motion int

const (
	runs motion = iota
	unsure
	frozen
)

// machine is one running monitor.
type machine struct {
	d     *Driver
	id    string
	dir   string
	state machineState
	jail  jail.Jail
	api   *vmm.Client
	pidfd *os.File
	con   *console // nil after Attach

	turn   chan struct{} // holds one token: who has it may change the machine's state
	motion motion        // owned by the holder of turn

	link      link
	guestExit atomic.Pointer[channel.Exit] // what the guest said about its end
	pagerEnd  atomic.Pointer[string]       // why the pager ended before the machine
	pagerGone chan struct{}                // closed when it has ended; nil: there is none
	closing   atomic.Bool                  // Close was called: its end is no news
	done      chan struct{}                // closed by watch
	exit      driver.Exit                  // written before done is closed
}

// adopt makes a machine of a running monitor and watches it.
func (d *Driver) adopt(id, dir string, state machineState, con *console) (*machine, error) {
	pidfd, err := state.Open()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hearth.Wrap(hearth.NotFound, err, "machine %s is gone", id)
	}
	if err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "machine %s cannot be watched", id)
	}
	j := jail.Jail{Dir: dir, ID: id, Exe: state.Exe, UID: state.UID}
	m := &machine{
		d: d, id: id, dir: dir, state: state, jail: j, api: vmm.New(j.Path(apiSocket), j.UID), pidfd: pidfd, con: con,
		turn: make(chan struct{}, 1), done: make(chan struct{}), link: link{turn: make(chan struct{}, 1)},
	}
	m.turn <- struct{}{}
	m.link.turn <- struct{}{}
	go m.watch()
	return m, nil
}

// Handle identifies the monitor by number, start time and executable.
func (m *machine) Handle() driver.Handle {
	raw, err := json.Marshal(m.state)
	if err != nil {
		raw = nil // plain numbers and strings: cannot fail
	}
	return driver.Handle{Driver: Name, ID: m.id, Dir: m.dir, State: raw}
}

// watch waits for the monitor's end and says how it ended.
func (m *machine) watch() {
	if err := hostproc.Await(m.pidfd); err != nil && !m.closing.Load() {
		m.d.cfg.Log.Error("machine cannot be watched any more", "id", m.id, "error", err)
	}
	m.exit = m.howEnded()
	if !m.closing.Load() {
		m.d.cfg.Log.Info("machine ended", "id", m.id, "code", m.exit.Code, "reason", m.exit.Reason, "console", m.con.tail())
	}
	close(m.done)
	<-m.link.turn // whoever opens the channel sees the end and lets go
	if m.link.open != nil {
		_ = m.link.open.Close()
	}
	m.link.turn <- struct{}{}
	m.con.close()
	_ = m.pidfd.Close()
}

// howEnded puts together what is known: the pager's end, the host's limit, what
// the guest said, how the monitor ended.
func (m *machine) howEnded() driver.Exit {
	exit := driver.Exit{Code: -1, Reason: "the monitor ended, nobody saw how", At: time.Now()}
	status, known := hostproc.ExitStatus(m.pidfd, m.state.Process)
	killed := !known || status.Signaled() && status.Signal() == unix.SIGKILL
	guest := m.guestExit.Load()
	switch {
	case killed && m.d.cgroup(m.id).OOMKills() > 0: // the monitor, or its pager
		exit.Code, exit.OOM = 128+int(unix.SIGKILL), true
		exit.Reason = fmt.Sprintf("out of memory: the machine and its monitor used more than %d MiB", memoryLimit(m.state.Resources)>>20)
	case m.pagerEnd.Load() != nil:
		exit.Reason = "the pager of its memory ended: " + *m.pagerEnd.Load()
	case known && status.Signaled():
		exit.Code, exit.Reason = 128+int(status.Signal()), "monitor killed by "+unix.SignalName(status.Signal())
	case guest != nil:
		exit.Code, exit.OOM = guest.Code, guest.OOM
		exit.Reason = fmt.Sprintf("guest's first process ended with %d", guest.Code)
		if guest.Reason != "" {
			exit.Reason += ": " + guest.Reason
		}
	case known && status.ExitStatus() == 0:
		exit.Code, exit.Reason = 0, "the guest ended its machine without a word; a panic does that"
	case known:
		exit.Code, exit.Reason = status.ExitStatus(), fmt.Sprintf("monitor ended with %d", status.ExitStatus())
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

// control runs one change of state while no other runs, with a context that ends
// with the machine. Calls to the monitor are bounded by themselves.
func (m *machine) control(ctx context.Context, what string, change func(context.Context) error) error {
	select {
	case <-m.turn:
	case <-m.done:
		return m.ended()
	case <-ctx.Done():
		return hearth.Wrap(hearth.DeadlineExceeded, context.Cause(ctx), "machine %s: %s did not begin in time", m.id, what)
	}
	defer func() { m.turn <- struct{}{} }()
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer m.cancelAtEnd(cancel)()
	err := change(inner)
	if err == nil {
		return nil
	}
	if m.over(err) {
		return m.ended()
	}
	if ctx.Err() != nil {
		return hearth.Wrap(hearth.DeadlineExceeded, errors.Join(context.Cause(ctx), err), "machine %s: %s did not end in time", m.id, what)
	}
	if hearth.KindOf(err) != hearth.Internal {
		return err
	}
	return hearth.Wrap(hearth.Internal, err, "machine %s: %s failed", m.id, what)
}

// over says whether the machine has ended. A connection that was hung up is seen a
// moment before the process's end is.
func (m *machine) over(err error) bool {
	wait := time.Duration(0)
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EPIPE) {
		wait = hungUp
	}
	select {
	case <-m.done:
		return true
	default:
	}
	select {
	case <-m.done:
		return true
	case <-time.After(wait):
		return false
	}
}

func (m *machine) ended() error {
	return hearth.Errorf(hearth.NotFound, "machine %s has ended: %s", m.id, m.exit.Reason)
}

// Freeze stops the guest's vCPUs in place.
func (m *machine) Freeze(ctx context.Context) error {
	return m.control(ctx, "freeze", func(ctx context.Context) error {
		if m.motion == frozen {
			return nil
		}
		return m.pause(ctx)
	})
}

func (m *machine) pause(ctx context.Context) error {
	m.motion = unsure
	if err := m.api.Pause(ctx); err != nil {
		return err
	}
	m.motion = frozen
	return nil
}

// Thaw lets them go on, and tells the guest clock, entropy and identity. A guest
// that does not take them is stopped again.
func (m *machine) Thaw(ctx context.Context) error {
	return m.control(ctx, "thaw", func(ctx context.Context) error {
		if m.motion == runs {
			return nil
		}
		m.motion = unsure
		if err := m.api.Resume(ctx); err != nil {
			return err
		}
		waiting, cancel := context.WithTimeout(ctx, guestTime)
		defer cancel()
		if err := m.configure(waiting); err != nil {
			again := context.WithoutCancel(ctx)
			return errors.Join(err, m.pause(again))
		}
		m.motion = runs
		return nil
	})
}

// Usage is what the host's accounting says.
func (m *machine) Usage(context.Context) (driver.Usage, error) {
	select {
	case <-m.done:
		return driver.Usage{}, m.ended()
	default:
	}
	group := m.d.cgroup(m.id)
	anonymous, files := group.Memory()
	u := driver.Usage{CPU: group.CPUTime(), Memory: anonymous + files, MemoryMax: memoryLimit(m.state.Resources)}
	u.RxBytes, u.TxBytes = m.traffic()
	return u, nil
}

// traffic reads the counters of the tap, which receives what the guest sends.
func (m *machine) traffic() (rx, tx int64) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", m.state.PID))
	if err != nil || m.state.Net.Tap == "" {
		return 0, 0
	}
	return microvm.Traffic(string(raw), m.state.Net.Tap)
}

// Close kills the monitor and removes all there is of the machine.
func (m *machine) Close(ctx context.Context) error {
	m.closing.Store(true)
	m.kill()
	select {
	case <-m.done:
	case <-ctx.Done():
		return hearth.Wrap(hearth.DeadlineExceeded, context.Cause(ctx), "machine %s did not die in time", m.id)
	}
	m.awaitPager(ctx)
	if err := m.d.release(ctx, m.id, m.dir, hostproc.RemoveDir); err != nil {
		return hearth.Wrap(hearth.Internal, err, "machine %s is dead but not all of it could be removed", m.id)
	}
	return nil
}

func (m *machine) kill() { hostproc.Kill(m.pidfd) }

// abandon kills a machine that nobody was given, and waits for its end.
func (m *machine) abandon() {
	m.closing.Store(true)
	m.kill()
	<-m.done
}

// letGo stops watching a machine that lives on, for whoever sweeps it.
func (m *machine) letGo() {
	m.closing.Store(true)
	_ = m.pidfd.Close()
	<-m.done
}
