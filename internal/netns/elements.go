package netns

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// register adds a slot, or changes its policy, in one transaction. It returns
// the policy before, which is the zero one for a new slot.
func (t *table) register(index int, policy Policy) (before Policy, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before, had := t.slots[index]
	if had && before.equal(policy) {
		return before, nil
	}
	t.slots[index] = policy
	var old, now elements
	if had {
		old.policy(t.cfg.slot(index), before)
		now.policy(t.cfg.slot(index), policy)
		old.without(&now)
	} else {
		now.slot(t.cfg.slot(index), policy)
	}
	if err = t.commit(old, now); err != nil {
		if delete(t.slots, index); had {
			t.slots[index] = before
		}
	}
	return before, err
}

// without takes what e and other have in common out of both.
func (e *elements) without(other *elements) {
	for _, lists := range [][2]*[]nftables.SetElement{{&e.open, &other.open}, {&e.allow, &other.allow}, {&e.deny, &other.deny}} {
		mine, theirs := *lists[0], *lists[1]
		*lists[0] = slices.DeleteFunc(slices.Clone(mine), func(x nftables.SetElement) bool { return holds(theirs, x) })
		*lists[1] = slices.DeleteFunc(slices.Clone(theirs), func(x nftables.SetElement) bool { return holds(mine, x) })
	}
}

func holds(list []nftables.SetElement, x nftables.SetElement) bool {
	return slices.ContainsFunc(list, func(y nftables.SetElement) bool {
		return bytes.Equal(x.Key, y.Key) && bytes.Equal(x.KeyEnd, y.KeyEnd)
	})
}

// unregister removes slots; without its entry a device can send nothing.
func (t *table) unregister(indexes []int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var old elements
	policies := make(map[int]Policy)
	for _, index := range indexes {
		if policy, had := t.slots[index]; had {
			policies[index] = policy
			delete(t.slots, index)
			old.slot(t.cfg.slot(index), policy)
		}
	}
	if len(policies) == 0 {
		return nil
	}
	err := t.commit(old, elements{})
	if err != nil {
		maps.Copy(t.slots, policies)
	}
	return err
}

// routed remembers that forwarding was turned on for a device.
func (t *table) routed(device string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, have := range t.uplinks {
		if have == device {
			return nil
		}
	}
	t.uplinks = append(t.uplinks, device)
	return t.commit(elements{}, elements{uplinks: []nftables.SetElement{{Key: deviceKey(device)}}})
}

// commit deletes and adds elements. When others have changed the table it is
// made anew from memory, which has the new state already.
func (t *table) commit(old, now elements) error {
	s := t.sets()
	fill := filler{conn: t.conn}
	fill.del(s.slots, old.slots)
	fill.del(s.guests, old.guests)
	fill.del(s.open, old.open)
	fill.del(s.allow, old.allow)
	fill.del(s.deny, old.deny)
	fill.add(s.slots, now.slots)
	fill.add(s.guests, now.guests)
	fill.add(s.open, now.open)
	fill.add(s.allow, now.allow)
	fill.add(s.deny, now.deny)
	fill.add(s.uplinks, now.uplinks)
	if fill.err != nil {
		return fill.err
	}
	if t.conn.Flush() == nil {
		return nil
	}
	// What the failed transaction left unread on the connection goes with it.
	_ = t.hangUp()
	if err := t.dial(); err != nil {
		return err
	}
	return t.install()
}

// elements is what some slots have in the sets.
type elements struct {
	slots, guests, open, allow, deny, uplinks []nftables.SetElement
}

// elements returns what all registered slots have in the sets.
func (t *table) elements() elements {
	var e elements
	for index, policy := range t.slots {
		e.slot(t.cfg.slot(index), policy)
	}
	return e
}

func (e *elements) slot(s *Slot, p Policy) {
	guest := s.Guest.Addr().AsSlice()
	e.slots = append(e.slots, nftables.SetElement{Key: append(deviceKey(s.HostDevice), guest...)})
	e.guests = append(e.guests, nftables.SetElement{Key: guest})
	e.policy(s, p)
}

func (e *elements) policy(s *Slot, p Policy) {
	guest := s.Guest.Addr().AsSlice()
	if p.Internet {
		e.open = append(e.open, nftables.SetElement{Key: guest})
	}
	e.allow = append(e.allow, pairs(guest, p.AllowOut)...)
	e.deny = append(e.deny, pairs(guest, p.DenyOut)...)
}

func pairs(guest []byte, to []netip.Prefix) []nftables.SetElement {
	var out []nftables.SetElement
	for _, p := range to {
		out = append(out, nftables.SetElement{
			Key:    append(append([]byte{}, guest...), p.Addr().AsSlice()...),
			KeyEnd: append(append([]byte{}, guest...), last(p).AsSlice()...),
		})
	}
	return out
}

// intervals turns sorted, disjoint prefixes into the pairs of elements that an
// interval set without concatenation wants; touching ones become one.
func intervals(in []netip.Prefix) []nftables.SetElement {
	var out []nftables.SetElement
	for i := 0; i < len(in); {
		first, end := in[i].Addr(), last(in[i])
		for i++; i < len(in) && in[i].Addr() == end.Next(); i++ {
			end = last(in[i])
		}
		out = append(out, nftables.SetElement{Key: first.AsSlice()})
		if next := end.Next(); next.IsValid() && next.Is4() { // else it reaches to the last address
			out = append(out, nftables.SetElement{Key: next.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

func addresses(in []netip.Addr) []nftables.SetElement {
	seen := make(map[netip.Addr]bool)
	var out []nftables.SetElement
	for _, a := range in {
		if !seen[a] {
			seen[a] = true
			out = append(out, nftables.SetElement{Key: a.AsSlice()})
		}
	}
	return out
}

// deviceKey is a device's name as sets hold it.
func deviceKey(name string) []byte {
	key := make([]byte, unix.IFNAMSIZ)
	copy(key, name)
	return key
}

// filler adds and deletes elements in messages of bounded size.
type filler struct {
	conn *nftables.Conn
	err  error
}

func (f *filler) add(set *nftables.Set, all []nftables.SetElement) {
	f.each(all, func(some []nftables.SetElement) error { return f.conn.SetAddElements(set, some) })
}

func (f *filler) del(set *nftables.Set, all []nftables.SetElement) {
	f.each(all, func(some []nftables.SetElement) error { return f.conn.SetDeleteElements(set, some) })
}

func (f *filler) each(all []nftables.SetElement, do func([]nftables.SetElement) error) {
	for len(all) > 0 && f.err == nil {
		n := min(len(all), elementsPerMessage)
		f.err = do(all[:n])
		all = all[n:]
	}
}

// indexes lists the registered slots.
func (t *table) indexes() []int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Collect(maps.Keys(t.slots))
}

func (t *table) has(index int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.slots[index]
	return ok
}

// routers lists the devices on which forwarding was turned on.
func (t *table) routers() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.uplinks)
}
