package netns

import (
	"errors"
	"fmt"
	"net/netip"

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
