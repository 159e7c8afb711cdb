package netns

import (
	"context"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"hearth/internal/hearth"
)

func TestKillAndRecover(t *testing.T) {
	newWorld(t)
	dir := t.TempDir()
	same := func(c *Config) { c.Dir, c.ReadyMax = dir, 3 }
	first := manager(t, same)
	a, b, lost := acquire(t, first), acquire(t, first), acquire(t, first)
	setPolicy(t, first, a, Policy{Internet: true, DenyOut: prefixes(server + "/32"), AllowOut: prefixes("203.0.113.0/30", "9.9.9.0/24")})
	setPolicy(t, first, b, Policy{AllowOut: prefixes(server + "/32")})
	conn, err := dialFrom(t, b.NetNS, server, tcpPort)
	must(t, err)
	crash(first)

	second := cleaned(t, same)
	must(t, exchange(conn, "still there"))
	for _, s := range []*Slot{a, b} {
		got, err := second.Attach(context.Background(), s.Index)
		must(t, err)
		if *got != *s {
			t.Errorf("attached %+v, was %+v", got, s)
		}
	}
	must(t, second.Sweep(context.Background(), []int{a.Index, b.Index}))
	if _, err := second.Attach(context.Background(), lost.Index); hearth.KindOf(err) != hearth.NotFound {
		t.Errorf("attaching a swept slot: %v", err)
	}
	if _, err := os.Stat(lost.NetNS); err == nil {
		t.Error("a swept namespace is still there")
	}
	must(t, exchange(conn, "and still"))
	if reaches(t, b, server2, tcpPort) || !reaches(t, b, server, tcpPort) {
		t.Error("a policy was lost")
	}
	if !reaches(t, a, server, tcpPort) { // allow beats deny
		t.Error("a policy was lost")
	}
	setPolicy(t, second, b, Policy{Internet: true})
	if !reaches(t, b, server2, tcpPort) {
		t.Error("the policy of an attached slot cannot be changed")
	}
	if _, err := second.Attach(context.Background(), 12345); hearth.KindOf(err) != hearth.NotFound {
		t.Errorf("attaching what never was: %v", err)
	}
	if c := acquire(t, second); c.Index == a.Index || c.Index == b.Index {
		t.Error("an index was given out twice")
	}
}

// crash ends a Manager as a kill would: nothing is cleaned up.
func crash(m *Manager) {
	m.cancel()
	m.done.Wait()
	m.hangUp()
}

func TestHalfMadeSlotsAreSwept(t *testing.T) {
	newWorld(t)
	m := cleaned(t, nil)
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: m.cfg.slot(7).HostDevice})
	veth.PeerName = "hstpeer"
	must(t, netlink.LinkAdd(veth))
	must(t, os.WriteFile(m.cfg.slot(8).NetNS, nil, 0))
	_, err := m.table.register(9, Policy{Internet: true})
	must(t, err)
	must(t, m.Sweep(context.Background(), nil))
	if left, err := m.leftovers(); len(left) != 0 || err != nil {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestFilterComesBack(t *testing.T) {
	newWorld(t)
	m := cleaned(t, nil)
	s := acquire(t, m)
	setPolicy(t, m, s, Policy{Internet: true, DenyOut: prefixes(server + "/32")})
	flush := func() {
		conn, err := connect()
		must(t, err)
		defer conn.CloseLasting()
		conn.FlushRuleset()
		must(t, conn.Flush())
	}
	flush()
	deadline := time.Now().Add(time.Minute)
	for there := false; !there; {
		m.table.mu.Lock()
		var err error
		there, err = m.table.present()
		m.table.mu.Unlock()
		must(t, err)
		if time.Now().After(deadline) {
			t.Fatal("the filter did not come back")
		}
	}
	if reaches(t, s, server, tcpPort) || !reaches(t, s, server2, tcpPort) {
		t.Error("the filter came back with another policy")
	}
	flush()
	other := acquire(t, m) // which needs the table
	if !reaches(t, other, server, tcpPort) || reaches(t, s, server, tcpPort) {
		t.Error("the filter is wrong")
	}
}

func TestNodesShareAPrefix(t *testing.T) {
	newWorld(t)
	a := manager(t, nil)
	b := manager(t, func(c *Config) { c.Name = "u"; c.Dir = a.cfg.Dir })
	one, two := acquire(t, a), acquire(t, b)
	if one.Guest == two.Guest {
		t.Errorf("both nodes use %s", one.Guest)
	}
	listenIn(t, two, 7000)
	if reaches(t, one, two.Guest.Addr().String(), 7000) {
		t.Error("a sandbox reaches one of another node")
	}
	if !reaches(t, one, server, tcpPort) || !reaches(t, two, server, tcpPort) {
		t.Error("the internet is not reached")
	}
	must(t, a.Remove(context.Background()))
	if b.intact(two) != true {
		t.Error("removing one node touched the other")
	}
	if !reaches(t, two, server, tcpPort) {
		t.Error("the internet is not reached any more: the node that went took the uplink's forwarding along")
	}
	must(t, b.Remove(context.Background()))
	noTrace(t, b.cfg)
	if got := sysctl(t, "ipv4/conf/up0/forwarding"); got != "0" {
		t.Errorf("after the last node forwarding is %s", got)
	}
}

func TestRunsOut(t *testing.T) {
	newWorld(t)
	m := cleaned(t, func(c *Config) { c.Prefix = netip.MustParsePrefix("10.213.0.0/29") })
	a := acquire(t, m)
	acquire(t, m)
	if _, err := m.Acquire(context.Background()); hearth.KindOf(err) != hearth.ResourceExhausted {
		t.Errorf("got %v", err)
	}
	must(t, m.Release(context.Background(), a.Index))
	must(t, m.Release(context.Background(), a.Index))
	acquire(t, m)
}

func TestPoolFillsAndEmpties(t *testing.T) {
	newWorld(t)
	m := cleaned(t, func(c *Config) { c.ReadyMin, c.ReadyMax = 2, 4 })
	deadline := time.Now().Add(time.Minute)
	full := func() {
		t.Helper()
		for m.short() {
			if time.Now().After(deadline) {
				t.Fatal("the pool does not fill")
			}
		}
	}
	full()
	for range 3 {
		acquire(t, m)
	}
	full()
	must(t, m.stop())
	if left, err := m.leftovers(); len(left) != 3 || err != nil {
		t.Errorf("after Close: %v, %v; want the three slots in use", left, err)
	}
}

func TestManyAtOnce(t *testing.T) {
	newWorld(t)
	m := cleaned(t, nil)
	const n = 50
	start := time.Now()
	all := make([]*Slot, n)
	var g sync.WaitGroup
	for i := range all {
		g.Go(func() {
			s, err := m.Acquire(context.Background())
			if err != nil {
				t.Error(err)
			}
			all[i] = s
			if err := m.SetPolicy(context.Background(), s.Index, Policy{Internet: true}); err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
	made := time.Since(start)
	seen := make(map[netip.Prefix]bool)
	for _, s := range all {
		if seen[s.Guest] {
			t.Errorf("%s twice", s.Guest)
		}
		seen[s.Guest] = true
	}
	if !reaches(t, all[0], server, tcpPort) || !reaches(t, all[n-1], server, tcpPort) {
		t.Error("a slot does not work")
	}
	start = time.Now()
	for _, s := range all {
		g.Go(func() {
			if err := m.Release(context.Background(), s.Index); err != nil {
				t.Error(err)
			}
		})
	}
	g.Wait()
	t.Logf("%d slots: made in %s, removed in %s", n, made, time.Since(start))
	if left, err := m.leftovers(); len(left) != 0 || err != nil {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestRemovePutsForwardingBack(t *testing.T) {
	newWorld(t)
	m := manager(t, nil)
	must(t, m.Remove(context.Background()))
	if got := sysctl(t, "ipv4/conf/up0/forwarding"); got != "0" {
		t.Errorf("forwarding is %s", got)
	}
	must(t, setting("ipv4/conf/up0/forwarding", "1"))
	m = manager(t, nil)
	must(t, m.Remove(context.Background()))
	if got := sysctl(t, "ipv4/conf/up0/forwarding"); got != "1" {
		t.Errorf("forwarding that was on before is %s", got)
	}
}

func BenchmarkSlot(b *testing.B) {
	newWorld(b)
	m := manager(b, nil)
	defer m.Remove(context.Background())
	var create, release time.Duration
	for b.Loop() {
		start := time.Now()
		s, err := m.Acquire(context.Background())
		must(b, err)
		create += time.Since(start)
		start = time.Now()
		must(b, m.Release(context.Background(), s.Index))
		release += time.Since(start)
	}
	b.ReportMetric(float64(create.Microseconds())/1000/float64(b.N), "create-ms")
	b.ReportMetric(float64(release.Microseconds())/1000/float64(b.N), "release-ms")
}

func BenchmarkSetPolicy(b *testing.B) {
	newWorld(b)
	m := manager(b, nil)
	defer m.Remove(context.Background())
	s := acquire(b, m)
	var open, shut time.Duration
	for b.Loop() {
		start := time.Now()
		setPolicy(b, m, s, Policy{})
		shut += time.Since(start)
		start = time.Now()
		setPolicy(b, m, s, Policy{Internet: true})
		open += time.Since(start)
	}
	b.ReportMetric(float64(open.Microseconds())/1000/float64(b.N), "open-ms")
	b.ReportMetric(float64(shut.Microseconds())/1000/float64(b.N), "shut-ms")
}
