package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"hearth/internal/netns/hostnet"
)

// nsfsMagic is the file system type of a mounted namespace.
const nsfsMagic = 0x6e736673

// build makes a slot's namespace and devices. When it fails nothing is left.
// The slot can send nothing before it is registered in the table.
func (m *Manager) build(s *Slot) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("network slot %d: %w", s.Index, err), m.demolish(s))
		}
	}()
	if err := os.Link(m.lockFile(), s.NetNS); err != nil { // a mount point that costs the host no file
		return err
	}
	if err := mountNamespace(s.NetNS); err != nil {
		return err
	}
	ns, err := vnetns.GetFromPath(s.NetNS)
	if err != nil {
		return fmt.Errorf("opening the namespace: %w", err)
	}
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = s.HostDevice, m.cfg.MTU, hardwareAddr(s.Guest.Addr(), hostEnd)
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerMTU, veth.PeerHardwareAddr = s.Device, uint32(m.cfg.MTU), s.MAC()
	veth.PeerNamespace = netlink.NsFd(int(ns))
	if err := m.host.LinkAdd(veth); err != nil {
		return fmt.Errorf("adding veth %s: %w", s.HostDevice, err)
	}
	inside, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("entering the namespace: %w", err)
	}
	defer inside.Close()
	if err := furnish(inside, s); err != nil {
		return err
	}
	if err := m.furnishHost(s); err != nil {
		return err
	}
	return awaitCarrier(ns, inside, s.Device)
}

// Ends of a veth, as in hardwareAddr.
const (
	hostEnd  = 0
	guestEnd = 1
)

// furnish gives the guest's end its address and route.
func furnish(h *netlink.Handle, s *Slot) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding lo: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("setting lo up: %w", err)
	}
	guest, err := h.LinkByName(s.Device)
	if err != nil {
		return fmt.Errorf("finding %s: %w", s.Device, err)
	}
	if err := dress(h, guest, s.Guest, neighbour{s.Gateway, hardwareAddr(s.Guest.Addr(), hostEnd)}); err != nil {
		return err
	}
	route := &netlink.Route{LinkIndex: guest.Attrs().Index, Gw: s.Gateway.AsSlice()}
	if err := h.RouteAdd(route); err != nil {
		return fmt.Errorf("adding the default route: %w", err)
	}
	return nil
}

// furnishHost gives the host's end its settings and its address.
func (m *Manager) furnishHost(s *Slot) error {
	link, err := m.host.LinkByName(s.HostDevice)
	if err != nil {
		return fmt.Errorf("finding %s: %w", s.HostDevice, err)
	}
	for key, value := range map[string]string{
		"ipv4/conf/%s/forwarding":       "1", // of this device alone; the host's global switch stays as it is
		"ipv4/conf/%s/rp_filter":        "1", // a source must be where it is routed to
		"ipv4/conf/%s/arp_ignore":       "1", // tell of this device's address only
		"ipv4/conf/%s/arp_announce":     "2",
		"ipv4/conf/%s/accept_redirects": "0",
		"ipv4/conf/%s/send_redirects":   "0",
		"ipv6/conf/%s/disable_ipv6":     "1",
	} {
		if err := setting(fmt.Sprintf(key, s.HostDevice), value); err != nil {
			return err
		}
	}
	return dress(m.host, link, netip.PrefixFrom(s.Gateway, slotBits),
		neighbour{s.Guest.Addr(), s.MAC()})
}

// awaitCarrier waits until a device can send. The end of a veth that is set up
// first is put to work by the kernel a moment after the other; a packet sent
// before is lost, which costs a TCP connection a second.
func awaitCarrier(ns vnetns.NsHandle, h *netlink.Handle, device string) error {
	const patience = 5 * time.Second
	news, err := nl.SubscribeAt(ns, vnetns.None(), unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		return fmt.Errorf("listening for changes of %s: %w", device, err)
	}
	defer news.Close()
	for deadline := time.Now().Add(patience); ; {
		link, err := h.LinkByName(device)
		if err != nil {
			return fmt.Errorf("finding %s: %w", device, err)
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		left := unix.NsecToTimeval(time.Until(deadline).Nanoseconds())
		if left.Sec < 0 || left == (unix.Timeval{}) { // none would mean to wait for ever
			return fmt.Errorf("%s does not come up", device)
		}
		if err := news.SetReceiveTimeout(&left); err != nil {
			return fmt.Errorf("listening for changes of %s: %w", device, err)
		}
		// Whatever it says, and if some of it was lost: the device is asked again.
		if _, _, err := news.Receive(); err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("listening for changes of %s: %w", device, err)
		}
	}
}

type neighbour struct {
	addr netip.Addr
	mac  net.HardwareAddr
}

// dress gives a device an address and its one neighbour, and sets it up. What
// is there already is not an error.
func dress(h *netlink.Handle, link netlink.Link, addr netip.Prefix, other neighbour) error {
	name := link.Attrs().Name
	ip := &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), 32)}
	if err := h.AddrReplace(link, &netlink.Addr{IPNet: ip}); err != nil {
		return fmt.Errorf("adding %s to %s: %w", addr, name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("setting %s up: %w", name, err)
	}
	err := h.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT,
		IP: other.addr.AsSlice(), HardwareAddr: other.mac})
	if err != nil {
		return fmt.Errorf("adding the neighbour of %s: %w", name, err)
	}
	return nil
}

// setting writes a network setting of the calling thread's namespace; one the
// kernel does not have (IPv6 compiled out) is skipped.
func setting(key, value string) error {
	err := os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// mountNamespace mounts a new network namespace, without IPv6, over the file at path.
func mountNamespace(path string) error {
	done := make(chan error)
	go func() {
		// The thread has left the host's namespace: it ends with the goroutine,
		// as it stays locked.
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("making a network namespace: %w", err)
			}
			for _, which := range []string{"all", "default"} {
				if err := setting("ipv6/conf/"+which+"/disable_ipv6", "1"); err != nil {
					return err
				}
			}
			if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
				return fmt.Errorf("mounting the namespace at %s: %w", path, err)
			}
			return nil
		}()
	}()
	return <-done
}

// demolish removes a slot's devices and namespace, as much of them as there is.
func (m *Manager) demolish(s *Slot) error {
	return errors.Join(m.removeDevice(s.HostDevice), unmount(s.NetNS))
}

func unmount(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // not mounted, not there
		return fmt.Errorf("unmounting %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// intact reports whether a slot's namespace and host device are there.
func (m *Manager) intact(s *Slot) bool {
	var st unix.Statfs_t
	if err := unix.Statfs(s.NetNS, &st); err != nil || st.Type != nsfsMagic {
		return false
	}
	_, err := m.host.LinkByName(s.HostDevice)
	return err == nil
}

func (m *Manager) lockFile() string { return filepath.Join(m.cfg.Dir, ".lock") }

// claim locks what the nodes of a host share: the prefix that slots are cut from
// and the forwarding of uplinks. The caller closes the file.
func (m *Manager) claim() (*os.File, error) {
	file, err := os.OpenFile(m.lockFile(), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s: %w", file.Name(), err), file.Close())
	}
	return file, nil
}

// taken reports whether another device of the host has a slot's subnet: the
// route to it is direct, and not one that is wider than the whole prefix.
func (m *Manager) taken(s *Slot) (bool, error) {
	bits, err := hostnet.Direct(m.host, s.Guest.Addr())
	return bits >= m.cfg.Prefix.Bits(), err
}
