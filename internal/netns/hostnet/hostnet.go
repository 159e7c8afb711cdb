// Package hostnet asks the kernel which networks the host is in and which
// connections it tracks, and makes it forget some of these. IPv4 only.
package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Flows selects tracked connections.
type Flows func(source, destination netip.Addr) bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f Flows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	source, ok := netip.AddrFromSlice(flow.Forward.SrcIP)
	if !ok {
		return false
	}
	destination, ok := netip.AddrFromSlice(flow.Forward.DstIP)
	return ok && f(source.Unmap(), destination.Unmap())
}

// Forget makes the host forget tracked connections, and with them their address
// translation: what still arrives for them from outside is answered with a reset,
// what is still sent to the outside is judged as new.
func Forget(h *netlink.Handle, which Flows) error {
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

// Networks lists those in which the host has an address, on devices that are up or not.
func Networks(h *netlink.Handle) (out []netip.Prefix, err error) {
	list, err := Dumped(func() ([]netlink.Addr, error) { return h.AddrList(nil, unix.AF_INET) })
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	for _, a := range list {
		bits, _ := a.Mask.Size()
		if own, ok := netip.AddrFromSlice(a.IP); ok {
			out = append(out, netip.PrefixFrom(own.Unmap(), bits).Masked())
		}
	}
	return out, nil
}

// Direct returns the length of the prefix whose route leads to an address without a
// gateway. 0: there is no such route, but perhaps the default.
func Direct(h *netlink.Handle, to netip.Addr) (bits int, err error) {
	routes, err := h.RouteGetWithOptions(to.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
	if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("asking for the route to %s: %w", to, err)
	}
	for _, r := range routes {
		if r.Gw != nil || r.Dst == nil {
			continue
		}
		length, _ := r.Dst.Mask.Size()
		bits = max(bits, length)
	}
	return bits, nil
}

// Dumped retries a listing that was changed under its hands.
func Dumped[T any](list func() ([]T, error)) ([]T, error) {
	for try := 0; ; try++ {
		out, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || try == 10 {
			return out, err
		}
		time.Sleep(time.Millisecond)
	}
}
