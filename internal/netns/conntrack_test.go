package netns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hearth/internal/hearth"
	"hearth/internal/netns/hostnet"
)

// tracked counts the connections of a slot's guest that the host tracks.
func tracked(t *testing.T, m *Manager, s *Slot) int {
	t.Helper()
	return trackedOf(t, m, s.Guest.Addr())
}

// trackedOf counts the connections of an address that the host tracks.
func trackedOf(t *testing.T, m *Manager, a netip.Addr) (n int) {
	t.Helper()
	list, err := hostnet.Dumped(func() ([]*netlink.ConntrackFlow, error) {
		return m.host.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	})
	must(t, err)
	of := hostnet.Flows(func(from, to netip.Addr) bool { return from == a || to == a })
	for _, f := range list {
		if of.MatchConntrackFlow(f) {
			n++
		}
	}
	return n
}

func TestConnectionsAreForgottenBeforeTheirAddressIsUsedAgain(t *testing.T) {
	newWorld(t)
	m := cleaned(t, func(c *Config) { c.Prefix = netip.MustParsePrefix("10.213.0.0/29") })
	a := acquire(t, m)
	acquire(t, m)
	for range 3 {
		conn, err := dialFrom(t, a.NetNS, server, tcpPort)
		must(t, err)
		must(t, exchange(conn, "hello"))
		if tracked(t, m, a) == 0 {
			t.Fatal("no connection is tracked")
		}
		must(t, m.Release(context.Background(), a.Index))
		again := acquire(t, m)
		if again.Guest != a.Guest {
			t.Fatalf("got %s, of which there is one other, want %s", again.Guest, a.Guest)
		}
		if n := tracked(t, m, again); n != 0 {
			t.Errorf("%d connections of the last slot with these addresses are tracked", n)
		}
	}
}

func TestConnectionsThatAKilledProcessLeftAreForgotten(t *testing.T) {
	newWorld(t)
	dir := t.TempDir()
	same := func(c *Config) { c.Dir = dir }
	first := manager(t, same)
	lives, dies := acquire(t, first), acquire(t, first)
	kept, err := dialFrom(t, lives.NetNS, server, tcpPort)
	must(t, err)
	_, err = dialFrom(t, dies.NetNS, server, tcpPort)
	must(t, err)
	must(t, first.removeDevice(dies.HostDevice))
	if tracked(t, first, dies) == 0 {
		t.Fatal("no connection is tracked")
	}
	crash(first)

	second := cleaned(t, same)
	if n := tracked(t, second, dies); n != 0 {
		t.Errorf("%d connections are tracked still", n)
	}
	must(t, exchange(kept, "still there"))
}

// track makes the host track a connection, for longer than any test takes.
func track(t *testing.T, m *Manager, from, to string) {
	t.Helper()
	one := netlink.IPTuple{SrcIP: net.ParseIP(from).To4(), DstIP: net.ParseIP(to).To4(), SrcPort: 4000, DstPort: 5000, Protocol: unix.IPPROTO_UDP}
	back := netlink.IPTuple{SrcIP: one.DstIP, DstIP: one.SrcIP, SrcPort: 5000, DstPort: 4000, Protocol: unix.IPPROTO_UDP}
	must(t, m.host.ConntrackCreate(netlink.ConntrackTable, unix.AF_INET,
		&netlink.ConntrackFlow{FamilyType: unix.AF_INET, Forward: one, Reverse: back, TimeOut: 3600}))
}

// lan gives the host a device with an address and a route, either of which may be "".
func lan(t *testing.T, w *world, address, routed string) netlink.Link {
	t.Helper()
	ns, err := os.Open(w.ns)
	must(t, err)
	defer ns.Close()
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: "lan0"})
	veth.PeerName, veth.PeerNamespace = "lan", netlink.NsFd(int(ns.Fd()))
	must(t, netlink.LinkAdd(veth))
	link, err := netlink.LinkByName("lan0")
	must(t, err)
	t.Cleanup(func() { must(t, netlink.LinkDel(link)) })
	must(t, netlink.LinkSetUp(link))
	if address != "" {
		a, err := netlink.ParseAddr(address)
		must(t, err)
		must(t, netlink.AddrAdd(link, a))
	}
	if routed != "" {
		_, to, err := net.ParseCIDR(routed)
		must(t, err)
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: to, Scope: netlink.SCOPE_LINK}))
	}
	return link
}

func TestConnectionsOfTheHostsOwnNetworksSurviveOpen(t *testing.T) {
	for _, tt := range []struct {
		name            string
		address, routed string
		down            bool
		other           string // an address that has a connection
		survives        bool
	}{
		{name: "a bridge inside the prefix", address: "10.213.5.1/24", other: "10.213.5.2", survives: true},
		{name: "the host's own address", address: "10.213.5.6/24", other: "10.213.5.6", survives: true},
		{name: "outside the bridge", address: "10.213.5.1/24", other: "10.213.6.2"},
		{name: "a bridge that is down", address: "10.213.5.1/24", down: true, other: "10.213.5.2", survives: true},
		{name: "a route inside the prefix", address: "10.214.5.1/24", routed: "10.213.5.0/24", other: "10.213.5.2", survives: true},
		{name: "a network around the prefix", address: "10.9.9.9/8", other: "10.213.5.2", survives: true},
		{name: "a route around the prefix", address: "10.214.5.1/24", routed: "10.0.0.0/8", other: "10.213.5.2", survives: true},
		{name: "outside the route", address: "10.214.5.1/24", routed: "10.213.5.0/24", other: "10.213.6.2"},
		// Its source would be lo's address, so the kernel does not say which route it takes.
		{name: "a route without an address", routed: "10.213.5.0/24", other: "10.213.5.2", survives: true},
		{name: "another network", address: "10.214.5.1/24", other: "10.213.5.2"},
		{name: "never a guest's", address: "10.214.5.1/24", other: "10.213.5.3", survives: true},
		{name: "outside the prefix", address: "10.214.5.1/24", other: "10.214.5.2", survives: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			link := lan(t, newWorld(t), tt.address, tt.routed)
			if tt.down {
				must(t, netlink.LinkSetDown(link))
			}
			dir := t.TempDir()
			same := func(c *Config) { c.Dir = dir }
			first := manager(t, same)
			must(t, first.host.ConntrackTableFlush(netlink.ConntrackTable)) // what other tests left
			track(t, first, tt.other, server)
			track(t, first, server2, tt.other)
			crash(first)
			second := cleaned(t, same)
			want := 0
			if tt.survives {
				want = 2
			}
			if n := trackedOf(t, second, netip.MustParseAddr(tt.other)); n != want {
				t.Errorf("%d connections are tracked, want %d", n, want)
			}
		})
	}
}

// TestConnectionsThatCannotBeForgotten: the indexes of their slots stay taken, and
// whoever wants one hears why.
func TestConnectionsThatCannotBeForgotten(t *testing.T) {
	newWorld(t)
	m := cleaned(t, func(c *Config) { c.Prefix = netip.MustParsePrefix("10.213.0.0/30") })
	working := m.host
	closed, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	must(t, err)
	broken := *closed // which keeps the closed socket
	closed.Close()
	s := acquire(t, m)
	m.host = &broken
	must(t, m.Release(context.Background(), s.Index))
	for range 2 {
		_, err = m.Acquire(context.Background())
		if hearth.KindOf(err) != hearth.ResourceExhausted || !strings.Contains(err.Error(), "cutting tracked connections") {
			t.Errorf("got %v, want the reason", err)
		}
	}
	m.rinsing.Lock() // nobody uses the broken one
	m.host = working
	m.rinsing.Unlock()
	acquire(t, m)
}

func TestTheWaitGrowsWhileTheKernelRefuses(t *testing.T) {
	refused := errors.New("refused")
	wait := stainTime
	for range 100 {
		next := nextWait(wait, refused)
		if next <= wait && next != maxStainTime || next > maxStainTime {
			t.Fatalf("%s after %s", next, wait)
		}
		wait = next
	}
	if wait != maxStainTime {
		t.Errorf("it grows to %s, want %s", wait, maxStainTime)
	}
	if got := nextWait(wait, nil); got != stainTime {
		t.Errorf("%s after success, want %s", got, stainTime)
	}
}
