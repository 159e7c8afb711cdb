package vminit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"hearth/internal/driver/microvm/channel"
)

// network is the machine's network, as it was last configured.
type network struct {
	mu  sync.Mutex
	own netip.Addr
}

// address is the machine's own; not valid before it has one.
func (n *network) address() netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.own
}

func (n *network) loopback() error {
	nl, err := openNetlink(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer nl.close()
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return err
	}
	return setLink(nl, lo.Index, nil)
}

// configure gives the interface its hardware address, exactly one address, and
// the default route. It may be called again with the same or other settings.
func (n *network) configure(s channel.Settings) error {
	dev, err := net.InterfaceByName(s.Device)
	if err != nil {
		return fmt.Errorf("%s: %w", s.Device, err)
	}
	var mac net.HardwareAddr
	if s.MAC != "" {
		if mac, err = net.ParseMAC(s.MAC); err != nil {
			return err
		}
		if mac.String() == dev.HardwareAddr.String() {
			mac = nil
		}
	}
	nl, err := openNetlink(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer nl.close()
	if err := setLink(nl, dev.Index, mac); err != nil {
		return fmt.Errorf("%s: %w", s.Device, err)
	}
	if err := setAddress(nl, dev.Index, s.Address); err != nil {
		return fmt.Errorf("address %s: %w", s.Address, err)
	}
	if s.Gateway.IsValid() {
		if err := setRoute(nl, dev.Index, s.Gateway); err != nil {
			return fmt.Errorf("gateway %s: %w", s.Gateway, err)
		}
	}
	n.mu.Lock()
	n.own = s.Address.Addr()
	n.mu.Unlock()
	return nil
}

// setLink brings an interface up, with another hardware address if mac is set.
func setLink(nl *netlink, index int, mac net.HardwareAddr) error {
	b := make([]byte, unix.SizeofIfInfomsg) // family, pad, type, index, flags, change
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	if mac != nil {
		if _, err := nl.ask(unix.RTM_NEWLINK, 0, attribute(b, unix.IFLA_ADDRESS, mac)); err != nil {
			return fmt.Errorf("hardware address: %w", err)
		}
	}
	binary.NativeEndian.PutUint32(b[8:], unix.IFF_UP)
	binary.NativeEndian.PutUint32(b[12:], unix.IFF_UP)
	_, err := nl.ask(unix.RTM_NEWLINK, 0, b)
	return err
}

// setAddress removes every other address of the interface in the family of want,
// and adds want unless it is there.
func setAddress(nl *netlink, index int, want netip.Prefix) error {
	family := byte(unix.AF_INET)
	if want.Addr().Is6() {
		family = unix.AF_INET6
	}
	head := func(bits int) []byte { // family, prefix length, flags, scope, index
		return binary.NativeEndian.AppendUint32([]byte{family, byte(bits), 0, 0}, uint32(index))
	}
	list, err := nl.ask(unix.RTM_GETADDR, unix.NLM_F_DUMP, head(0))
	if err != nil {
		return err
	}
	there := false
	for _, m := range list {
		if len(m) < unix.SizeofIfAddrmsg || m[0] != family || int(binary.NativeEndian.Uint32(m[4:])) != index || m[3] == unix.RT_SCOPE_LINK {
			continue
		}
		a := attributes(m[unix.SizeofIfAddrmsg:])
		value := a[unix.IFA_LOCAL]
		if value == nil {
			value = a[unix.IFA_ADDRESS]
		}
		if have, ok := netip.AddrFromSlice(value); ok && have == want.Addr() && int(m[1]) == want.Bits() {
			there = true
			continue
		}
		old := attribute(head(int(m[1])), unix.IFA_LOCAL, value)
		if _, err := nl.ask(unix.RTM_DELADDR, 0, old); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return err
		}
	}
	if there {
		return nil
	}
	raw := want.Addr().AsSlice()
	b := attribute(attribute(head(want.Bits()), unix.IFA_LOCAL, raw), unix.IFA_ADDRESS, raw)
	_, err = nl.ask(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, b)
	return err
}

// setRoute makes gateway the default route.
func setRoute(nl *netlink, index int, gateway netip.Addr) error {
	family := byte(unix.AF_INET)
	if gateway.Is6() {
		family = unix.AF_INET6
	}
	b := make([]byte, unix.SizeofRtMsg)
	b[0], b[4], b[5], b[7] = family, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RTN_UNICAST
	binary.NativeEndian.PutUint32(b[8:], unix.RTNH_F_ONLINK) // the gateway need not be within the prefix
	b = attribute(b, unix.RTA_GATEWAY, gateway.AsSlice())
	b = attribute(b, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(index)))
	_, err := nl.ask(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, b)
	return err
}

// The parts of the kernel's inet_diag messages.
const (
	diagRequest = 56 // bytes: family, protocol, extensions, pad, states, socket
	diagSocket  = 48 // bytes: ports, addresses, interface, cookie
	diagStates  = 4  // where states are in a request
	diagID      = 8  // where the socket is in a request
	diagAnswer  = 4  // where it is in an answer
	diagSrc     = 4  // where the own address is in the socket
	diagDst     = 20 // where the peer's address is in the socket

	tcpListen   = 10 // number of the state
	destroySock = 21 // SOCK_DESTROY
	diagFamily  = 20 // SOCK_DIAG_BY_FAMILY
)

// endOutside ends every TCP connection to or from outside of the machine. Those
// within it live on.
func endOutside() error {
	nl, err := openNetlink(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return err
	}
	defer nl.close()
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		b := make([]byte, diagRequest)
		b[0], b[1] = family, unix.IPPROTO_TCP
		binary.NativeEndian.PutUint32(b[diagStates:], ^uint32(1<<tcpListen))
		list, err := nl.ask(diagFamily, unix.NLM_F_DUMP, b)
		if errors.Is(err, unix.ENOENT) {
			continue // no such family in this kernel
		}
		if err != nil {
			return err
		}
		for _, m := range list {
			if len(m) < diagAnswer+diagSocket || m[1] == tcpListen {
				continue
			}
			socket := m[diagAnswer : diagAnswer+diagSocket]
			if src, dst := socket[diagSrc:diagDst], socket[diagDst:diagDst+16]; within(family, dst) || bytes.Equal(src, dst) {
				continue
			}
			copy(b[diagID:], socket)
			_, err := nl.ask(destroySock, 0, b)
			switch {
			case err == nil, errors.Is(err, unix.ENOENT): // it ended by itself
			case errors.Is(err, unix.EOPNOTSUPP):
				return nil // a kernel that cannot: its connections end by their own timeouts
			default:
				return err
			}
		}
	}
	return nil
}

// within tells an address of the machine's loopback.
func within(family byte, raw []byte) bool {
	if family == unix.AF_INET {
		raw = raw[:4]
	}
	a, ok := netip.AddrFromSlice(raw)
	return ok && (a.Unmap().IsLoopback() || a.Unmap().IsUnspecified())
}
