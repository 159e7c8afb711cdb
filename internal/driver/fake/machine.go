package fake

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// machine is one running guest. It has no goroutine of its own.
type machine struct {
	host    *Host
	spec    driver.Spec
	guest   *Guest
	boot    int
	started time.Time
	done    chan struct{}

	mu    sync.Mutex
	gate  chan struct{} // closed while the guest runs; replaced by an open one while frozen
	exit  driver.Exit
	dead  bool
	conns map[net.Conn]struct{} // guest side of open connections
	wait  sync.WaitGroup        // handlers of connections
}

func newMachine(host *Host, spec driver.Spec, memory map[string]string) *machine {
	m := &machine{host: host, spec: spec, done: make(chan struct{}), gate: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	close(m.gate)
	m.guest = &Guest{m: m, memory: memory, ports: map[uint16]func(net.Conn){}, restored: spec.From != nil && !spec.From.FilesOnly}
	return m
}

// Handle's state is the number of the boot, which stands for pid and start time.
func (m *machine) Handle() driver.Handle {
	return driver.Handle{Driver: m.host.cfg.Name, ID: m.spec.ID, Dir: m.spec.Dir, State: fmt.Appendf(nil, "%d", m.boot)}
}

// Dial calls the guest's handler for port with one end of a pipe. A frozen
// guest accepts and stays silent, as a real one does.
func (m *machine) Dial(ctx context.Context, port uint16) (net.Conn, error) {
	if err := m.host.before(ctx, Dial, m.spec.ID); err != nil {
		return nil, err
	}
	handle := m.guest.handler(port)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return nil, hearth.Wrap(hearth.Unavailable, syscall.EHOSTUNREACH, "machine %s has ended", m.spec.ID)
	}
	if handle == nil {
		return nil, hearth.Wrap(hearth.Unavailable, syscall.ECONNREFUSED, "nothing listens on port %d of machine %s", port, m.spec.ID)
	}
	outside, inside := net.Pipe()
	c := &guestConn{Conn: inside, m: m}
	m.conns[c] = struct{}{}
	m.wait.Go(func() {
		defer m.hangUp(c)
		handle(c)
	})
	return outside, nil
}

func (m *machine) hangUp(c net.Conn) {
	m.mu.Lock()
	delete(m.conns, c)
	m.mu.Unlock()
	_ = c.Close()
}

// Freeze stops reads and writes of the guest's side of every connection.
func (m *machine) Freeze(ctx context.Context) error {
	if err := m.host.before(ctx, Freeze, m.spec.ID); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return m.ended()
	}
	if isClosed(m.gate) {
		m.gate = make(chan struct{})
	}
	return nil
}

// Rest is Freeze: what is frozen costs nothing here.
func (m *machine) Rest(ctx context.Context) error { return m.Freeze(ctx) }

// Thaw lets them go on.
func (m *machine) Thaw(ctx context.Context) error {
	if err := m.host.before(ctx, Thaw, m.spec.ID); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return m.ended()
	}
	m.open()
	return nil
}

// Checkpoint writes the guest's memory. When it is told to fail it leaves half a file.
func (m *machine) Checkpoint(ctx context.Context, dir string) (*driver.Checkpoint, error) {
	if !m.frozen() {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "machine %s is not frozen", m.spec.ID)
	}
	c := &driver.Checkpoint{Driver: m.host.cfg.Name, Key: m.host.cfg.Key, Dir: dir, Files: []string{stateFile}}
	var state any = m.guest.snapshot(m.host.cfg.DiskOnly)
	if m.host.cfg.Layered && m.spec.From != nil && m.spec.From.Layers() < driver.MaxLayers {
		base, err := New(m.host).load(m.spec.From)
		if err != nil {
			return nil, err
		}
		c.Files, c.Base = []string{deltaFile}, m.spec.From
		state = difference(base, m.guest.snapshot(m.host.cfg.DiskOnly))
	}
	memory, err := json.Marshal(state)
	if err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "guest memory cannot be written")
	}
	file := filepath.Join(dir, c.Files[0])
	if err := m.host.before(ctx, Checkpoint, m.spec.ID); err != nil {
		_ = save(file, memory[:len(memory)/2])
		return nil, err
	}
	if err := save(file, memory); err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "checkpoint cannot be written")
	}
	return c, nil
}

// CheckpointFiles writes what of the guest's memory is a file: the words whose
// keys begin with a slash.
func (m *machine) CheckpointFiles(ctx context.Context, dir string) (*driver.Checkpoint, error) {
	if !m.frozen() {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "machine %s is not frozen", m.spec.ID)
	}
	memory, err := json.Marshal(m.guest.snapshot(true))
	if err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "guest memory cannot be written")
	}
	if err := m.host.before(ctx, Checkpoint, m.spec.ID); err != nil {
		return nil, err
	}
	if err := save(filepath.Join(dir, stateFile), memory); err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "checkpoint cannot be written")
	}
	return &driver.Checkpoint{Driver: Name, Key: m.host.cfg.Key, Dir: dir, Files: []string{stateFile}, FilesOnly: true}, nil
}

// Usage is the same for all machines: 8 MiB.
func (m *machine) Usage(ctx context.Context) (driver.Usage, error) {
	if err := m.host.before(ctx, UsageOf, m.spec.ID); err != nil {
		return driver.Usage{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return driver.Usage{}, m.ended()
	}
	return driver.Usage{Memory: 8 << 20, MemoryMax: int64(m.spec.Resources.MemoryMiB) << 20}, nil
}

func (m *machine) Done() <-chan struct{} { return m.done }

func (m *machine) Exit() driver.Exit {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.exit
}

// Close kills the guest, waits for its handlers and removes its directory.
func (m *machine) Close(ctx context.Context) error {
	if err := m.host.before(ctx, Close, m.spec.ID); err != nil {
		return err
	}
	return m.free(ctx)
}

func (m *machine) free(ctx context.Context) error {
	m.die(driver.Exit{Code: 137, Reason: "killed"})
	idle := make(chan struct{})
	go func() { m.wait.Wait(); close(idle) }()
	select {
	case <-idle:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	m.host.remove(m)
	return os.RemoveAll(m.spec.Dir)
}

// die ends the guest once; later calls change nothing.
func (m *machine) die(exit driver.Exit) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return
	}
	if exit.At.IsZero() {
		exit.At = time.Now()
	}
	m.dead, m.exit = true, exit
	m.open()
	for c := range m.conns {
		_ = c.Close()
	}
	m.host.remove(m)
	close(m.done)
}

// open lets frozen reads and writes go on. The caller holds mu.
func (m *machine) open() {
	if !isClosed(m.gate) {
		close(m.gate)
	}
}

func (m *machine) frozen() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.dead && !isClosed(m.gate)
}

func (m *machine) ended() error {
	return hearth.Errorf(hearth.NotFound, "machine %s has ended: %s", m.spec.ID, m.exit.Reason)
}

// pass waits while the guest is frozen.
func (m *machine) pass() {
	m.mu.Lock()
	gate := m.gate
	m.mu.Unlock()
	<-gate
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// guestConn is the guest's end of a connection: still while the guest is frozen.
type guestConn struct {
	net.Conn
	m *machine
}

func (c *guestConn) Read(p []byte) (int, error) {
	c.m.pass()
	n, err := c.Conn.Read(p)
	c.m.pass() // a read that began before the freeze must not be seen during it
	return n, err
}

func (c *guestConn) Write(p []byte) (int, error) {
	c.m.pass()
	return c.Conn.Write(p)
}
