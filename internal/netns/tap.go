package netns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"runtime"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"hearth/internal/hearth"
)

// A virtual machine sends Ethernet frames through a tap. It is wired to the
// guest's end of the veth by the kernel's traffic control: what comes in at one
// leaves by the other, before the namespace's own network stack sees it, and
// that stack has no address anyway. To the host nothing changes: the guest has
// the address, the hardware address and the filter that every slot has.
//
// From the guest only IPv4 and ARP under its own hardware address are passed
// on; everything else ends in the namespace.

const (
	tapDevice = "tap0"
	tunDevice = "/dev/net/tun"

	// tapFlags ask for whole frames behind a virtio header, which lets a guest
	// leave checksums and segmentation to the host. A tap has one queue: who
	// opens it with IFF_MULTI_QUEUE is refused.
	tapFlags = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
)

// AcquireTap is Acquire for a virtual machine: the slot has a tap, persistent
// and root's, for one process that opens it inside the namespace.
func (m *Manager) AcquireTap(ctx context.Context) (*Slot, error) {
	s, err := m.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	if err := addTap(s); err != nil {
		return nil, errors.Join(fmt.Errorf("network slot %d: %w", s.Index, err), m.Release(ctx, s.Index))
	}
	s.Tap = tapDevice
	return s, nil
}

// addTap makes a slot's tap and wires it to the veth.
func addTap(s *Slot) error {
	ns, err := vnetns.GetFromPath(s.NetNS)
	if err != nil {
		return fmt.Errorf("opening the namespace: %w", err)
	}
	defer ns.Close()
	if err := makeTap(ns); err != nil {
		return err
	}
	inside, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("entering the namespace: %w", err)
	}
	defer inside.Close()
	veth, err := inside.LinkByName(s.Device)
	if err != nil {
		return fmt.Errorf("finding %s: %w", s.Device, err)
	}
	tap, err := inside.LinkByName(tapDevice)
	if err != nil {
		return fmt.Errorf("finding %s: %w", tapDevice, err)
	}
	ip := &net.IPNet{IP: s.Guest.Addr().AsSlice(), Mask: net.CIDRMask(s.Guest.Bits(), 32)}
	if err := inside.AddrDel(veth, &netlink.Addr{IPNet: ip}); err != nil {
		return fmt.Errorf("taking %s off %s: %w", s.Guest, s.Device, err)
	}
	if err := inside.LinkSetMTU(tap, veth.Attrs().MTU); err != nil {
		return fmt.Errorf("setting the MTU of %s: %w", tapDevice, err)
	}
	if err := wire(inside, veth, tap, s.MAC()); err != nil {
		return err
	}
	if err := inside.LinkSetUp(tap); err != nil {
		return fmt.Errorf("setting %s up: %w", tapDevice, err)
	}
	return nil
}

// makeTap makes the tap in a namespace. The device belongs to the namespace in
// which the file was opened.
func makeTap(ns vnetns.NsHandle) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread has left the host's namespace, and ends
		done <- func() error {
			if err := vnetns.Set(ns); err != nil {
				return fmt.Errorf("entering the namespace: %w", err)
			}
			// A process that is forked meanwhile has the tap until its exec, long enough
			// for the machine to find it busy.
			syscall.ForkLock.RLock()
			defer syscall.ForkLock.RUnlock()
			tap, err := openTap(tapFlags)
			if err != nil {
				return err
			}
			defer unix.Close(tap)
			if err := unix.IoctlSetInt(tap, unix.TUNSETPERSIST, 1); err != nil {
				return fmt.Errorf("keeping %s: %w", tapDevice, err)
			}
			return nil
		}()
	}()
	return <-done
}

// openTap opens the calling thread's namespace's tap, made when it is not there.
func openTap(flags uint16) (int, error) {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return -1, hearth.Wrap(hearth.FailedPrecondition, err, "virtual machines need %s: load the kernel module tun", tunDevice)
	}
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: tunDevice, Err: err}
	}
	request, err := unix.NewIfreq(tapDevice)
	if err == nil {
		request.SetUint16(flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("making %s: %w", tapDevice, err)
	}
	return fd, nil
}

// wire joins veth and tap both ways.
func wire(h *netlink.Handle, veth, tap netlink.Link, guest net.HardwareAddr) error {
	for _, l := range []netlink.Link{veth, tap} {
		ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index,
			Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}
		if err := h.QdiscAdd(ingress); err != nil {
			return fmt.Errorf("wiring %s: the kernel needs sch_ingress: %w", l.Attrs().Name, err)
		}
	}
	for _, f := range []*netlink.U32{
		redirect(veth, tap, unix.ETH_P_ALL, nil),
		redirect(tap, veth, unix.ETH_P_IP, fromAddr(guest)),
		redirect(tap, veth, unix.ETH_P_ARP, fromAddr(guest)),
	} {
		if err := h.FilterAdd(f); err != nil {
			return fmt.Errorf("wiring %s to %s: the kernel needs cls_u32 and act_mirred: %w", tap.Attrs().Name, veth.Attrs().Name, err)
		}
	}
	return nil
}

// redirect sends frames of a protocol that match from one device out by another.
// A filter of another protocol needs another priority.
func redirect(from, to netlink.Link, protocol uint16, match *nl.TcU32Sel) *netlink.U32 {
	return &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: from.Attrs().Index, Parent: netlink.MakeHandle(0xffff, 0),
			Priority: protocol, Protocol: protocol},
		Sel:     match,
		Actions: []netlink.Action{netlink.NewMirredAction(to.Attrs().Index)},
	}
}

// fromAddr matches frames with a source address. Offsets count from the network
// header: the source address is in the 8 bytes before it, then comes the type.
func fromAddr(a net.HardwareAddr) *nl.TcU32Sel {
	return &nl.TcU32Sel{Flags: nl.TC_U32_TERMINAL, Nkeys: 2, Keys: []nl.TcU32Key{
		{Mask: 0xffffffff, Val: binary.BigEndian.Uint32(a[:4]), Off: -8},
		{Mask: 0xffff0000, Val: uint32(binary.BigEndian.Uint16(a[4:])) << 16, Off: -4},
	}}
}

// hasTap reports whether a slot that an earlier process made has a tap.
func hasTap(s *Slot) (bool, error) {
	ns, err := vnetns.GetFromPath(s.NetNS)
	if err != nil {
		return false, err
	}
	defer ns.Close()
	inside, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return false, err
	}
	defer inside.Close()
	_, err = inside.LinkByName(tapDevice)
	if isGone(err) {
		return false, nil
	}
	return err == nil, err
}
