package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hearth/internal/hearth"
	"hearth/internal/netns/hostnet"
)

// Manager makes, keeps and removes the network slots of one node. Its methods
// are safe for concurrent use between Open and Close.
type Manager struct {
	cfg   Config
	log   *slog.Logger
	table *table
	host  *netlink.Handle

	mu    sync.Mutex
	slots map[int]status // every index that is not free
	ready []*Slot        // unused slots, oldest first
	next  int            // where to look for a free index: addresses are reused late
	batch *batch         // slots to be removed next; nil: none

	stained []int // indexes of removed slots whose connections are not forgotten yet

	reaping sync.Mutex // held while a batch is removed
	rinsing sync.Mutex // held while connections are forgotten

	kick   chan struct{} // wakes the pool's filler
	stain  chan struct{} // wakes what forgets connections
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// status says what an index is used for.
type status int

const (
	found  status = iota + 1 // left by an earlier process; nobody has claimed it
	making                   // being made or removed, or removed and not forgotten yet
	idle                     // in the pool
	held                     // somebody has it
)

// Open takes over what an earlier process left, puts the filter in force and
// starts to fill the pool. It needs root. It does not remove anything: claim
// slots with Attach, then call Sweep.
func (m *Manager) Open(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return hearth.Errorf(hearth.FailedPrecondition, "network slots need root")
	}
	if err := os.MkdirAll(m.dir(), 0o700); err != nil {
		return fmt.Errorf("making the directory of network namespaces: %w", err)
	}
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("opening netlink: %w", err)
	}
	m.host = host
	if err := m.table.dial(); err != nil {
		host.Close()
		return hearth.Wrap(hearth.FailedPrecondition, err, "nftables cannot be reached: the kernel needs nf_tables")
	}
	if err := m.takeOver(); err != nil {
		return errors.Join(err, m.hangUp())
	}
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	m.cancel = cancel
	m.done.Go(func() { m.fill(background) })
	m.done.Go(func() { m.guard(background) })
	m.done.Go(func() { m.launder(background) })
	return nil
}

func (m *Manager) takeOver() error {
	if err := m.table.load(); err != nil {
		m.log.Warn("the packet filter of an earlier run cannot be read; its sandboxes reach nothing until their policies are set again", "error", err)
	}
	left, err := m.leftovers()
	if err != nil {
		return err
	}
	for _, index := range left {
		m.slots[index] = found
		m.next = max(m.next, index+1)
	}
	if err := m.table.replace(); err != nil {
		return hearth.Wrap(hearth.FailedPrecondition, err,
			"the packet filter cannot be set up: the kernel needs nf_tables with sets, ct, fib, limit, connlimit, masq and reject")
	}
	return errors.Join(m.forgetDead(), m.route())
}

func (m *Manager) dir() string { return filepath.Join(m.cfg.Dir, m.cfg.Name) }

// leftovers lists the indexes of which a namespace, a device or an entry in the
// table exists.
func (m *Manager) leftovers() ([]int, error) {
	seen := make(map[int]bool)
	note := func(name string) {
		digits, mine := strings.CutPrefix(name, m.cfg.devicePrefix())
		index, err := strconv.Atoi(digits)
		if mine && err == nil && index >= 0 && index < m.cfg.capacity() {
			seen[index] = true
		}
	}
	entries, err := os.ReadDir(m.dir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		note(e.Name())
	}
	links, err := hostnet.Dumped(m.host.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing devices: %w", err)
	}
	for _, l := range links {
		note(l.Attrs().Name)
	}
	for _, index := range m.table.indexes() {
		seen[index] = true
	}
	var out []int
	for index := range seen {
		out = append(out, index)
	}
	return out, nil
}

// Acquire returns a slot, from the pool if one is ready. Nothing passes through
// it until SetPolicy. It fails with ResourceExhausted when the prefix has no free subnet.
func (m *Manager) Acquire(ctx context.Context) (*Slot, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s := m.take(); s != nil {
		return s, nil
	}
	return m.create(held)
}

// take returns a slot of the pool, or nil.
func (m *Manager) take() *Slot {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.ready) == 0 {
		return nil
	}
	s := m.ready[0]
	m.ready = m.ready[1:]
	m.slots[s.Index] = held
	if len(m.ready) < m.cfg.ReadyMin {
		m.wake()
	}
	return s
}

func (m *Manager) wake() {
	select {
	case m.kick <- struct{}{}:
	default: // it is awake
	}
}

// create makes a slot and gives it a status. Nodes that share a prefix take
// turns, so that each sees the subnets of the others.
func (m *Manager) create(as status) (*Slot, error) {
	turn, err := m.claim()
	if err != nil {
		return nil, err
	}
	defer turn.Close()
	s, err := m.reserve()
	if err != nil {
		return nil, err
	}
	if err := m.make(s); err != nil {
		m.setStatus(s.Index, 0)
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.slots[s.Index] = as
	if as == idle {
		m.ready = append(m.ready, s)
	}
	return s, nil
}

func (m *Manager) make(s *Slot) error {
	if err := m.build(s); err != nil {
		return err
	}
	if _, err := m.table.register(s.Index, Policy{}); err != nil {
		return errors.Join(fmt.Errorf("registering network slot %d: %w", s.Index, err), m.demolish(s))
	}
	return nil
}

func (m *Manager) status(index int) status {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.slots[index]
}

func (m *Manager) setStatus(index int, to status) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if to == 0 {
		delete(m.slots, index)
		return
	}
	m.slots[index] = to
}

// Release removes a slot by its index. The machine that used it must be gone. A
// slot that is not there is not an error. A slot is never used by two machines in
// turn: the next one gets a fresh namespace, and its addresses only when the host
// has forgotten the last one's connections.
func (m *Manager) Release(_ context.Context, index int) error {
	if status := m.status(index); status != held && status != found {
		return nil
	}
	return m.destroy(index)
}

// Attach returns the slot with an index that an earlier process had, with the
// policy it had. It fails with NotFound when the slot, or a part of it, is gone.
func (m *Manager) Attach(ctx context.Context, index int) (*Slot, error) {
	if index < 0 || index >= m.cfg.capacity() {
		return nil, hearth.Errorf(hearth.NotFound, "network slot %d: there are %d", index, m.cfg.capacity())
	}
	s := m.cfg.slot(index)
	if status := m.status(index); status != found && status != held || !m.intact(s) {
		return nil, hearth.Errorf(hearth.NotFound, "network slot %d is gone", index)
	}
	tap, err := hasTap(s)
	if err != nil {
		return nil, fmt.Errorf("looking at network slot %d: %w", index, err)
	}
	if tap {
		s.Tap = tapDevice
	}
	if !m.table.has(index) {
		// The table was lost, and with it the policy: nothing until it is set again.
		if _, err := m.table.register(index, Policy{}); err != nil {
			return nil, err
		}
	}
	m.setStatus(index, held)
	return s, nil
}

// SetPolicy changes what a slot may reach. It is in force when SetPolicy
// returns; connections that it does not allow are cut. Setting the policy that
// is in force costs nothing, loosening it little; cutting takes some ten
// milliseconds.
func (m *Manager) SetPolicy(_ context.Context, index int, p Policy) error {
	p, err := p.normal()
	if err != nil {
		return err
	}
	if m.status(index) != held {
		return hearth.Errorf(hearth.FailedPrecondition, "network slot %d is not in use", index)
	}
	before, err := m.table.register(index, p)
	if err != nil {
		return fmt.Errorf("setting the policy of network slot %d: %w", index, err)
	}
	if p.loosens(before) {
		return nil
	}
	return hostnet.Forget(m.host, denied(m.cfg.slot(index).Guest.Addr(), p))
}

// Sweep removes every slot of the node that an earlier process left, but those
// in keep and those claimed with Attach.
func (m *Manager) Sweep(ctx context.Context, keep []int) error {
	left, err := m.leftovers()
	if err != nil {
		return err
	}
	kept := make(map[int]bool)
	for _, index := range keep {
		kept[index] = true
	}
	left = slices.DeleteFunc(left, func(index int) bool {
		status := m.status(index)
		return kept[index] || status != found && status != 0
	})
	return joined(m.destroyAll(left))
}

// Close stops the pool and removes its slots. Slots in use and the filter stay
// for the next Open.
func (m *Manager) Close() error {
	if m.host == nil {
		return nil
	}
	return errors.Join(m.stop(), m.hangUp())
}

func (m *Manager) hangUp() error {
	m.host.Close()
	return m.table.hangUp()
}

// stop ends the background work and removes the unused slots.
func (m *Manager) stop() error {
	m.cancel()
	m.done.Wait()
	m.mu.Lock()
	ready := m.ready
	m.ready = nil
	m.mu.Unlock()
	var unused []int
	for _, s := range ready {
		unused = append(unused, s.Index)
	}
	return errors.Join(joined(m.destroyAll(unused)), m.rinse())
}

// Remove closes the Manager and removes everything the node has: all slots, the
// table, and forwarding where no other node of the host needs it.
func (m *Manager) Remove(ctx context.Context) error {
	errs := []error{m.stop()}
	left, err := m.leftovers()
	errs = append(errs, err, joined(m.destroyAll(left)), m.rinse())
	errs = append(errs, m.unroute(), m.hangUp())
	if err := os.Remove(m.dir()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// fill keeps the pool between its watermarks.
func (m *Manager) fill(ctx context.Context) {
	const patience = time.Second
	m.wake()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.kick:
		}
		for ctx.Err() == nil && m.short() {
			if _, err := m.create(idle); err != nil {
				m.log.Warn("cannot fill the pool of network slots", "error", err)
				select {
				case <-ctx.Done():
				case <-time.After(patience):
				}
			}
		}
	}
}

func (m *Manager) short() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.ready) < m.cfg.ReadyMax
}

// guard puts the table back when somebody flushed the host's packet filter.
func (m *Manager) guard(ctx context.Context) {
	tick := time.NewTicker(m.cfg.Check)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		restored, err := m.table.ensure()
		if err != nil {
			m.log.Error("the packet filter of the sandboxes cannot be checked", "error", err)
		} else if restored {
			m.log.Warn("the packet filter of the sandboxes was removed by another program and has been put back")
		}
	}
}

// reserve finds a free index whose subnet nobody on the host uses. The caller
// holds the host-wide lock.
func (m *Manager) reserve() (*Slot, error) {
	for range m.cfg.capacity() {
		index, ok := m.pick()
		if !ok {
			if err := m.rinse(); err != nil {
				return nil, hearth.Wrap(hearth.ResourceExhausted, err,
					"no free network slot in %s: of %d, those not in use cannot be used again yet", m.cfg.Prefix, m.cfg.capacity())
			}
			index, ok = m.pick()
		}
		if !ok {
			break
		}
		s := m.cfg.slot(index)
		taken, err := m.taken(s)
		if err == nil && !taken {
			return s, nil
		}
		m.setStatus(index, 0)
		if err != nil {
			return nil, err
		}
	}
	return nil, hearth.Errorf(hearth.ResourceExhausted, "no free network slot in %s: all %d are in use", m.cfg.Prefix, m.cfg.capacity())
}

// pick marks the next free index as being made.
func (m *Manager) pick() (int, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.cfg.capacity() {
		index := (m.next + i) % m.cfg.capacity()
		if m.slots[index] == 0 {
			m.slots[index] = making
			m.next = index + 1
			return index, true
		}
	}
	return 0, false
}
