package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// flows selects tracked connections.
type flows func(source, destination netip.Addr) bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	source, ok := netip.AddrFromSlice(flow.Forward.SrcIP)
	if !ok {
		return false
	}
	destination, ok := netip.AddrFromSlice(flow.Forward.DstIP)
	return ok && f(source.Unmap(), destination.Unmap())
}

// forget makes the host forget tracked connections, and with them their address
// translation: what still arrives for them from outside is answered with a reset,
// what the sandbox sends is judged as new.
func forget(h *netlink.Handle, which flows) error {
	for try := 0; ; try++ {
		_, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, which)
		if err == nil {
			return nil
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) || try == 10 {
			return fmt.Errorf("cutting tracked connections: %w", err)
		}
	}
}

// denied selects a guest's connections which its policy does not allow.
func denied(guest netip.Addr, policy Policy) flows {
	return func(source, destination netip.Addr) bool {
		return source == guest && !policy.Allows(destination)
	}
}

// The kernel finds a connection of an address by looking at all buckets of its
// table, 10 ms of a processor's time. What a removed slot leaves in it can hurt
// nobody before the slot's addresses are used again, and they are used again late.
// So it is forgotten for many slots at once, and until then their indexes are taken.

// A process that is killed leaves them to the next, which begins with forgetDead.

// stainTime is how long connections of removed slots are gathered.
const stainTime = 2 * time.Second

// retire keeps the index of a slot that was removed until its connections are forgotten.
func (m *Manager) retire(index int) {
	m.mu.Lock()
	m.stained = append(m.stained, index)
	m.mu.Unlock()
	select {
	case m.stain <- struct{}{}:
	default: // they are gathered
	}
}

// launder forgets the connections of slots that were removed, from time to time.
func (m *Manager) launder(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.stain:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(stainTime):
		}
		if err := m.rinse(); err != nil {
			m.log.Warn("the addresses of removed network slots cannot be used again yet", "error", err)
		}
	}
}

// rinse forgets them now, and frees the indexes. After an error they are retired still.
func (m *Manager) rinse() error {
	m.rinsing.Lock()
	defer m.rinsing.Unlock()
	m.mu.Lock()
	indexes := m.stained
	m.stained = nil
	m.mu.Unlock()
	if len(indexes) == 0 {
		return nil
	}
	guests := make(map[netip.Addr]bool)
	for _, index := range indexes {
		guests[m.cfg.slot(index).Guest.Addr()] = true
	}
	err := forget(m.host, func(from, to netip.Addr) bool { return guests[from] || guests[to] })
	for _, index := range indexes {
		if err != nil {
			m.retire(index)
			continue
		}
		m.setStatus(index, 0)
	}
	return err
}

// forgetDead forgets the connections of all addresses of the prefix that no slot on this
// host has, whichever node's.
func (m *Manager) forgetDead() error {
	turn, err := m.claim() // nobody makes a slot meanwhile
	if err != nil {
		return err
	}
	defer turn.Close()
	list, err := dumped(func() ([]netlink.Addr, error) { return m.host.AddrList(nil, unix.AF_INET) })
	if err != nil {
		return fmt.Errorf("listing addresses: %w", err)
	}
	live := make(map[netip.Addr]bool)
	for _, a := range list {
		if gateway, ok := netip.AddrFromSlice(a.IP); ok {
			live[gateway.Unmap()], live[gateway.Unmap().Next()] = true, true
		}
	}
	dead := func(a netip.Addr) bool { return m.cfg.Prefix.Contains(a) && !live[a] }
	return forget(m.host, func(from, to netip.Addr) bool { return dead(from) || dead(to) })
}
