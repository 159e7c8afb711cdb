package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/driver"
	"hearth/internal/driver/hostproc"
	"hearth/internal/driver/microvm"
	"hearth/internal/driver/microvm/channel"
	"hearth/internal/driver/qemu/jail"
	"hearth/internal/driver/qemu/qmp"
	"hearth/internal/driver/qemu/tap"
	"hearth/internal/driver/qemu/tenure"
	"hearth/internal/hearth"
)

const consoleTail = 8 << 10

// machineState is Handle.State, as JSON: what Attach needs and must check.
type machineState struct {
	hostproc.Process
	Key         string            `json:"key"`
	Accelerator Accelerator       `json:"accelerator"`
	Layers      []string          `json:"layers"`
	Guest       string            `json:"guest"`
	Resources   hearth.Resources  `json:"resources"`
	Net         driver.Attachment `json:"net"`
	Hostname    string            `json:"hostname"`
	Template    *templateRef      `json:"template,omitempty"` // whose memory it maps
}

// templateRef is the checkpoint that stands alone and that a machine is a clone of.
type templateRef struct {
	ID    string   `json:"id"` // of its manifest
	Dir   string   `json:"dir"`
	Files []string `json:"files"`
}

func decodeState(raw []byte) (machineState, error) {
	var s machineState
	if err := json.Unmarshal(raw, &s); err != nil {
		return s, err
	}
	if s.PID < 2 || len(s.Layers) == 0 {
		return s, fmt.Errorf("pid %d, %d layers", s.PID, len(s.Layers))
	}
	return s, nil
}

// motion is what is known of the guest's processors. An order to QEMU whose answer
// did not come may have been carried out all the same.
type motion int

const (
	runs motion = iota
	unsure
	frozen
)

// machine is one running QEMU.
type machine struct {
	d     *Driver
	id    string
	dir   string
	state machineState
	pidfd *os.File
	child *jail.Child // nil after Attach
	link  *link

	turn   chan struct{} // holds one token: who has it may change what the guest does
	motion motion        // owned by the holder of turn

	said    atomic.Pointer[channel.Exit] // the guest's word on its end
	closing atomic.Bool                  // Close was called: its end is no news
	done    chan struct{}                // closed by watch
	exit    driver.Exit                  // written before done is closed
}

// adopt makes a machine of a running QEMU and watches it.
func (d *Driver) adopt(id, dir string, state machineState, c *jail.Child) (*machine, error) {
	pidfd, err := state.Open()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hearth.Wrap(hearth.NotFound, err, "machine %s is gone", id)
	}
	if err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "machine %s cannot be watched", id)
	}
	m := &machine{
		d: d, id: id, dir: dir, state: state, pidfd: pidfd, child: c,
		turn: make(chan struct{}, 1), done: make(chan struct{}),
	}
	m.link = newLink(m)
	m.turn <- struct{}{}
	go m.watch()
	return m, nil
}

// Handle identifies the QEMU by number, start time and executable.
func (m *machine) Handle() driver.Handle {
	raw, err := json.Marshal(m.state)
	if err != nil {
		raw = nil // plain numbers and strings: cannot fail
	}
	return driver.Handle{Driver: Name, ID: m.id, Dir: m.dir, State: raw}
}

// watch waits for QEMU's end and says how the machine ended.
func (m *machine) watch() {
	if err := hostproc.Await(m.pidfd); err != nil {
		m.d.cfg.Log.Error("machine cannot be watched any more", "id", m.id, "error", err)
	}
	m.link.finish()
	exit := m.howEnded()
	if m.said.Load() == nil && !m.closing.Load() && exit.Code != 0 {
		exit.Reason += m.child.Said()
	}
	if !m.closing.Load() {
		m.d.cfg.Log.Info("machine ended", "id", m.id, "code", exit.Code, "reason", exit.Reason, "console", m.link.console.Tail(1000))
	}
	if m.child != nil {
		m.child.Close()
	}
	_ = m.pidfd.Close()
	m.exit = exit
	close(m.done)
}

// howEnded believes the guest first, who knows how its first program ended, then
// the host's accounting.
func (m *machine) howEnded() driver.Exit {
	exit := driver.Exit{Code: -1, At: time.Now()}
	if said := m.said.Load(); said != nil {
		exit.Code, exit.OOM = said.Code, said.OOM
		switch {
		case said.OOM:
			exit.Reason = fmt.Sprintf("out of memory: %d MiB are all it may use", m.state.Resources.MemoryMiB)
		case said.Reason != "":
			exit.Reason = fmt.Sprintf("the machine could not go on: %q", said.Reason)
		default:
			exit.Reason = fmt.Sprintf("guest's first program ended with %d", exit.Code)
		}
		return exit
	}
	status, known := m.exitStatus()
	switch {
	case known && status.Signaled():
		exit.Code = 128 + int(status.Signal())
		exit.Reason = "QEMU killed by " + unix.SignalName(status.Signal())
	case known && status.ExitStatus() == 0:
		exit.Reason = "the guest ended without a word" + panicLine(m.link.console.Tail(consoleTail))
	case known:
		exit.Code = status.ExitStatus()
		exit.Reason = fmt.Sprintf("QEMU ended with %d", exit.Code)
	default:
		exit.Reason = "ended, nobody saw how"
	}
	const killed = 128 + int(unix.SIGKILL)
	if (exit.Code == killed || !known) && m.d.cgroup(m.id).OOMKills() > 0 {
		exit.OOM = true
		exit.Reason = "out of memory: QEMU itself took more than its share of the host's"
	}
	return exit
}

// panicLine finds what the guest's kernel says of its death, for people.
func panicLine(console string) string {
	_, text, ok := strings.Cut(console, "Kernel panic")
	if !ok {
		return ""
	}
	line, _, _ := strings.Cut(text, "\n")
	return fmt.Sprintf("; its console says %q", "Kernel panic"+line)
}

// exitStatus is how QEMU ended: known for a child, and to who was quick enough.
func (m *machine) exitStatus() (unix.WaitStatus, bool) {
	if m.child == nil {
		return hostproc.ExitStatus(m.pidfd, m.state.Process)
	}
	return m.child.Status()
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

func (m *machine) ended() error {
	return hearth.Errorf(hearth.NotFound, "machine %s has ended: %s", m.id, m.exit.Reason)
}

// report keeps the guest's word.
func (m *machine) report(e channel.Exit) { m.said.CompareAndSwap(nil, &e) }

func (m *machine) kill() { hostproc.Kill(m.pidfd) }

// Dial connects by the channel, whatever the guest's network does.
func (m *machine) Dial(ctx context.Context, port uint16) (net.Conn, error) {
	select {
	case <-m.done:
		return nil, m.ended()
	default:
	}
	if port == 0 {
		return nil, hearth.Errorf(hearth.InvalidArgument, "port 0 is not within 1 to 65535")
	}
	ch, _, err := m.link.open(ctx, boots)
	if err != nil {
		return nil, err
	}
	return ch.Dial(ctx, port)
}

// history is what a guest has behind it when it is told its settings.
type history int

const (
	boots history = iota // or goes on
	restored
)

// settings are what the guest is told.
func (m *machine) settings(h history) channel.Settings {
	s := channel.Settings{Now: time.Now(), Seed: microvm.NewSeed(), Hostname: m.state.Hostname, Restored: h == restored}
	if n := m.state.Net; n.Tap != "" {
		s.Device, s.MAC, s.Address, s.Gateway = guestDevice, n.MAC.String(), n.Guest, n.Gateway
	}
	return s
}

// control runs one operation on QEMU while no other runs. QEMU may never answer:
// it is given as long as ctx has.
func (m *machine) control(ctx context.Context, what string, call func(context.Context, *qmp.Conn) error) error {
	select {
	case <-m.turn:
	case <-m.done:
		return m.ended()
	case <-ctx.Done():
		return hearth.Wrap(hearth.DeadlineExceeded, context.Cause(ctx), "machine %s: %s did not begin in time", m.id, what)
	}
	defer func() { m.turn <- struct{}{} }()
	err := m.withQMP(ctx, call)
	if err == nil {
		return nil
	}
	select {
	case <-m.done:
		return m.ended()
	default:
	}
	if ctx.Err() != nil {
		return hearth.Wrap(hearth.DeadlineExceeded, errors.Join(context.Cause(ctx), err), "machine %s: %s did not end in time", m.id, what)
	}
	if hearth.KindOf(err) != hearth.Internal {
		return err
	}
	if m.dead() {
		<-m.done
		return m.ended()
	}
	return hearth.Wrap(hearth.Internal, err, "machine %s: %s failed", m.id, what)
}

// dead says whether QEMU has ended, which watch may not have seen yet.
func (m *machine) dead() bool {
	f, err := m.state.Open()
	if err == nil {
		_ = f.Close()
	}
	return errors.Is(err, fs.ErrNotExist)
}

func (m *machine) withQMP(ctx context.Context, call func(context.Context, *qmp.Conn) error) error {
	d, path, err := tenure.At(m.dir, qmpSocket)
	if err != nil {
		return err
	}
	defer d.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	q, err := qmp.Dial(ctx, path)
	if err != nil {
		return err
	}
	defer q.Close()
	return call(ctx, q)
}

// Freeze stops the guest's processors.
func (m *machine) Freeze(ctx context.Context) error {
	return m.control(ctx, "freeze", m.stop)
}

func (m *machine) stop(ctx context.Context, q *qmp.Conn) error {
	m.motion = unsure
	if _, err := q.Call(ctx, qmp.Command{Name: "stop"}); err != nil {
		return err
	}
	m.motion = frozen
	return nil
}

// Thaw lets them go on, and tells the guest the time and gives it fresh entropy.
// A guest that cannot be told is frozen again, be it that there was no time left.
func (m *machine) Thaw(ctx context.Context) error {
	return m.control(ctx, "thaw", func(ctx context.Context, q *qmp.Conn) error {
		if m.motion == runs {
			return nil
		}
		m.motion = unsure
		if err := m.resume(ctx, q, boots); err != nil {
			return errors.Join(err, m.stopAgain(ctx, q))
		}
		m.motion = runs
		return nil
	})
}

// stopAgain stops a guest whose time to answer, which is q's as well, may be over.
func (m *machine) stopAgain(ctx context.Context, q *qmp.Conn) error {
	again, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	_ = q.Close() // it ended with ctx, and QEMU serves one at a time
	return m.withQMP(again, m.stop)
}

// resume lets the guest run and returns when it knows its settings.
func (m *machine) resume(ctx context.Context, q *qmp.Conn, h history) error {
	if _, err := q.Call(ctx, qmp.Command{Name: "cont"}); err != nil {
		return err
	}
	ch, fresh, err := m.link.open(ctx, h)
	if err != nil || fresh {
		return err
	}
	return ch.Configure(ctx, m.settings(h))
}

// Usage reads the machine's control group and its tap.
func (m *machine) Usage(context.Context) (driver.Usage, error) {
	select {
	case <-m.done:
		return driver.Usage{}, m.ended()
	default:
	}
	c := m.d.cgroup(m.id)
	own, _ := c.Memory() // files are the template's
	u := driver.Usage{CPU: c.CPUTime(), Memory: own, MemoryMax: memoryLimit(m.state.Resources, m.state.Accelerator, false)}
	u.RxBytes, u.TxBytes = tap.Traffic(m.state.Net)
	return u, nil
}

// Close kills QEMU and removes all there is of the machine.
func (m *machine) Close(ctx context.Context) error {
	m.closing.Store(true)
	m.kill()
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
