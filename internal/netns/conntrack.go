package netns

import (
	"context"
	"net/netip"
	"time"

	"hearth/internal/netns/hostnet"
)

// denied selects a guest's connections which its policy does not allow.
func denied(guest netip.Addr, policy Policy) hostnet.Flows {
	return func(source, destination netip.Addr) bool {
		return source == guest && !policy.Allows(destination)
	}
}

// The kernel finds a connection of an address by looking at all buckets of its
// table, 10 ms of a processor's time. What a removed slot leaves in it can hurt
// nobody before the slot's addresses are used again, and they are used again late.
// So it is forgotten for many slots at once, and until then their indexes are taken.

// A process that is killed leaves them to the next, which begins with forgetDead.

// stainTime is how long connections of removed slots are gathered, maxStainTime how
// long where the kernel keeps refusing to forget them. The kernel may not be preempted
// while it looks: whoever's create falls into that waits for it.
const (
	stainTime    = 20 * time.Second
	maxStainTime = time.Minute
)

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
	wait := stainTime
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.stain:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		err := m.rinse()
		wait = nextWait(wait, err)
		if err != nil {
			m.log.Warn("the addresses of removed network slots cannot be used again yet", "error", err, "again_in", wait)
		}
	}
}

// nextWait is how long to gather after a wait that ended with err.
func nextWait(wait time.Duration, err error) time.Duration {
	if err == nil {
		return stainTime
	}
	return min(2*wait, maxStainTime)
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
	err := hostnet.Forget(m.host, func(from, to netip.Addr) bool { return guests[from] || guests[to] })
	for _, index := range indexes {
		if err != nil {
			m.retire(index)
			continue
		}
		m.setStatus(index, 0)
	}
	return err
}

// forgetDead forgets the connections of guests that are no slot's on this host any
// more, whichever node's they were.
func (m *Manager) forgetDead() error {
	turn, err := m.claim() // nobody makes a slot meanwhile
	if err != nil {
		return err
	}
	defer turn.Close()
	near, err := hostnet.Networks(m.host)
	if err != nil {
		return err
	}
	var unsure error // the last: they are of one kind
	known := make(map[netip.Addr]bool)
	dead := func(a netip.Addr) bool {
		if _, ok := m.cfg.indexOf(a); !ok {
			return false
		}
		gone, ok := known[a]
		if !ok {
			occupied, err := m.occupied(a, near)
			if err != nil {
				unsure = err
			}
			gone = err == nil && !occupied
			known[a] = gone
		}
		return gone
	}
	err = hostnet.Forget(m.host, func(from, to netip.Addr) bool { return dead(from) || dead(to) })
	if unsure != nil {
		m.log.Warn("connections of removed network slots are left to expire: whose their addresses are now is not known", "error", unsure)
	}
	return err
}

// occupied reports whether a guest's address may be in use: it lies in one of the
// networks near, of devices that are up or not, or a route leads to it directly. That
// is so for every slot, and for what another device of the host has: a bridge with a
// part of the prefix, or a network around it. There the connections of a slot that is
// gone cannot be told from a neighbour's, and are left to expire.
func (m *Manager) occupied(guest netip.Addr, near []netip.Prefix) (bool, error) {
	for _, p := range near {
		if p.Contains(guest) {
			return true, nil
		}
	}
	bits, err := hostnet.Direct(m.host, guest)
	return bits > 0, err
}
