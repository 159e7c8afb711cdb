package netns

import (
	"context"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tracked counts the connections of a slot's guest that the host tracks.
func tracked(t *testing.T, m *Manager, s *Slot) (n int) {
	t.Helper()
	list, err := dumped(func() ([]*netlink.ConntrackFlow, error) {
		return m.host.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	})
	must(t, err)
	of := flows(func(from, to netip.Addr) bool { return from == s.Guest.Addr() || to == s.Guest.Addr() })
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
