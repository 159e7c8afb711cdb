package netns

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Removing a slot makes the kernel wait for all processors several times over,
// with the lock held that every other change of the network needs. So removals
// that come together are done together: it takes as long for fifty as for one.

// doomedGroup is the device group of what is about to be removed.
const doomedGroup = 0x68656172

// batch is the slots that will be removed by whoever gets to it first.
type batch struct {
	indexes []int
	done    chan struct{}
	errs    map[int]error // of the slots that could not be removed; set when done
}

// destroy removes a slot, together with others that are being removed.
func (m *Manager) destroy(index int) error {
	m.mu.Lock()
	if m.batch == nil {
		m.batch = &batch{done: make(chan struct{})}
	}
	b := m.batch
	b.indexes = append(b.indexes, index)
	m.mu.Unlock()

	m.reaping.Lock()
	m.mu.Lock()
	first := m.batch == b
	if first {
		m.batch = nil
	}
	m.mu.Unlock()
	if first {
		b.errs = m.destroyAll(b.indexes)
		close(b.done)
	}
	m.reaping.Unlock()
	<-b.done
	return b.errs[index]
}

// destroyAll cuts slots off, then removes them. The indexes of those that could
// not be removed stay reserved, so that it can be tried again.
func (m *Manager) destroyAll(indexes []int) map[int]error {
	var all []*Slot
	m.mu.Lock()
	for _, index := range indexes {
		if m.slots[index] != making { // else somebody is at it
			m.slots[index] = making
			all = append(all, m.cfg.slot(index))
		}
	}
	m.mu.Unlock()
	if len(all) == 0 {
		return nil
	}
	numbers := make([]int, 0, len(all))
	for _, s := range all {
		numbers = append(numbers, s.Index)
	}
	common := errors.Join(m.table.unregister(numbers), m.removeDevices(all))
	errs := make(map[int]error)
	for _, s := range all {
		err := errors.Join(common, unmount(s.NetNS))
		if err == nil {
			m.retire(s.Index)
			continue
		}
		m.setStatus(s.Index, found)
		errs[s.Index] = fmt.Errorf("removing network slot %d: %w", s.Index, err)
	}
	return errs
}

// joined is the errors of destroyAll as one, in the order of the slots.
func joined(errs map[int]error) error {
	var indexes []int
	for index := range errs {
		indexes = append(indexes, index)
	}
	slices.Sort(indexes)
	var all []error
	for _, index := range indexes {
		all = append(all, errs[index])
	}
	return errors.Join(all...)
}

// removeDevices removes slots' devices, as many of them as there are, at once.
func (m *Manager) removeDevices(all []*Slot) error {
	if len(all) == 1 {
		return m.removeDevice(all[0].HostDevice)
	}
	var errs []error
	doomed := 0
	for _, s := range all {
		link, err := m.host.LinkByName(s.HostDevice)
		if isGone(err) {
			continue
		}
		if err == nil {
			err = m.host.LinkSetGroup(link, doomedGroup)
		}
		if err == nil {
			doomed++
		} else if !isGone(err) {
			errs = append(errs, fmt.Errorf("removing %s: %w", s.HostDevice, err))
		}
	}
	if doomed > 0 {
		request := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
		request.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		request.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(doomedGroup)))
		// Another node may have been quicker: its group is the same.
		if _, err := request.Execute(unix.NETLINK_ROUTE, 0); err != nil && !isGone(err) {
			errs = append(errs, fmt.Errorf("removing devices: %w", err))
		}
	}
	return errors.Join(errs...)
}

// removeDevice removes one device, if it is there.
func (m *Manager) removeDevice(name string) error {
	link, err := m.host.LinkByName(name)
	if err == nil {
		err = m.host.LinkDel(link)
	}
	if err != nil && !isGone(err) {
		return fmt.Errorf("removing %s: %w", name, err)
	}
	return nil
}

func isGone(err error) bool {
	_, notFound := errors.AsType[netlink.LinkNotFoundError](err)
	return notFound || errors.Is(err, unix.ENODEV)
}
