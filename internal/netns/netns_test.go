package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hearth/internal/hearth"
)

func TestInternet(t *testing.T) {
	w := newWorld(t)
	m := cleaned(t, nil)
	s := acquire(t, m)
	if !reaches(t, s, server, tcpPort) {
		t.Error("the internet is not reached")
	}
	must(t, sendUDP(t, s.NetNS, s.Guest.Addr(), server, udpPort, "hello"))
	if p := w.next(); p.from.Addr().String() != uplinkHost || p.data != "hello" {
		t.Errorf("the world saw %v, want a packet from the host's own address", p)
	}
	if got := sysctl(t, "ipv4/ip_forward"); got != "0" {
		t.Errorf("the host's global forwarding is %s", got)
	}
}

func TestTransferIsClampedToTheUplink(t *testing.T) {
	newWorld(t) // its uplink takes 1500 bytes, the slot 65535
	m := cleaned(t, nil)
	conn, err := dialFrom(t, acquire(t, m).NetNS, server, tcpPort)
	must(t, err)
	conn.SetDeadline(time.Now().Add(5 * time.Minute))
	const size = 32 << 20
	go func() {
		io.Copy(conn, io.LimitReader(zeros{}, size))
		conn.(*net.TCPConn).CloseWrite()
	}()
	n, err := io.Copy(io.Discard, conn)
	if n != size || err != nil {
		t.Errorf("%d bytes came back, %v; want %d", n, err, size)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestAlwaysDenied(t *testing.T) {
	newWorld(t)
	m := cleaned(t, func(c *Config) { c.Deny = []netip.Prefix{netip.MustParsePrefix(server2 + "/32")} })
	s := acquire(t, m)
	setPolicy(t, m, s, Policy{Internet: true, AllowOut: prefixes("0.0.0.0/0", "10.0.0.0/8")})
	for _, a := range append(forbidden(), server2) {
		if reaches(t, s, a, tcpPort) {
			t.Errorf("%s is reached", a)
		}
	}
	for _, a := range append(forbidden(), "224.0.0.1", "255.255.255.255") {
		if a == "255.255.255.255" {
			continue // needs SO_BROADCAST; its range is tested with 240.1.2.3
		}
		if err := sendUDP(t, s.NetNS, s.Guest.Addr(), a, udpPort, a); err != nil {
			t.Error(err)
		}
	}
}

// TestDeniedUDPIsRefused wants the one ICMP error that gVisor's sockets report,
// so that name servers out of reach are given up at once.
func TestDeniedUDPIsRefused(t *testing.T) {
	newWorld(t)
	m := cleaned(t, nil)
	s := acquire(t, m)
	within(t, s.NetNS, func() {
		for _, to := range []string{"10.1.2.3", s.Gateway.String()} {
			var err error
			for range 60 { // the kernel sends one address a burst of ICMP errors, then one a second
				if err = query(to); errors.Is(err, unix.ECONNREFUSED) {
					break
				}
			}
			if !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("a query to %s: %v, want a refusal", to, err)
			}
		}
	})
}

// query sends a packet to port 53 and waits for an answer.
func query(to string) error {
	conn, err := net.Dial("udp4", net.JoinHostPort(to, "53"))
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := io.WriteString(conn, "query"); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

func TestDeniedUDPDoesNotArrive(t *testing.T) {
	w := newWorld(t)
	m := cleaned(t, nil)
	s := acquire(t, m)
	for _, a := range forbidden() {
		must(t, sendUDP(t, s.NetNS, s.Guest.Addr(), a, udpPort, "denied"))
		must(t, sendUDP(t, s.NetNS, s.Guest.Addr(), a, 53, "denied"))
	}
	must(t, sendUDP(t, s.NetNS, s.Guest.Addr(), server, udpPort, "last"))
	if p := w.next(); p.data != "last" {
		t.Errorf("%s got %q", p.to, p.data)
	}
}

func TestExemptAndResolvers(t *testing.T) {
	w := newWorld(t)
	m := cleaned(t, func(c *Config) {
		c.Exempt = prefixes("10.1.2.0/24", "10.1.3.0/24")
		c.Resolvers = []netip.Addr{netip.MustParseAddr(resolver)}
	})
	s := acquire(t, m)
	if !reaches(t, s, "10.1.2.3", tcpPort) {
		t.Error("an exempt address is not reached")
	}
	if reaches(t, s, resolver, tcpPort) {
		t.Error("a resolver is reached on a port that is not its own")
	}
	must(t, sendUDP(t, s.NetNS, s.Guest.Addr(), resolver, 53, "query"))
	if p := w.next(); p.to != resolver+":53" {
		t.Errorf("%s got the query", p.to)
	}
	setPolicy(t, m, s, Policy{})
	if reaches(t, s, "10.1.2.3", tcpPort) {
		t.Error("an exempt address is reached by a sandbox that may reach nothing")
	}
}

func TestHostIsClosed(t *testing.T) {
	newWorld(t)
	m := cleaned(t, func(c *Config) { c.Exempt = prefixes("10.0.0.0/8", uplinkHost+"/32") })
	a, b := acquire(t, m), acquire(t, m)
	l, err := net.Listen("tcp4", "0.0.0.0:9999")
	must(t, err)
	defer l.Close()
	go echo(l)
	conn, err := net.Dial("tcp4", uplinkHost+":9999")
	must(t, err) // it does listen
	conn.Close()
	for _, to := range []string{a.Gateway.String(), b.Gateway.String(), uplinkHost} {
		if reaches(t, a, to, 9999) {
			t.Errorf("the host is reached at %s", to)
		}
	}
}

func TestSandboxesAreApart(t *testing.T) {
	newWorld(t)
	m := cleaned(t, func(c *Config) { c.Exempt = prefixes("10.0.0.0/8") })
	a, b := acquire(t, m), acquire(t, m)
	listenIn(t, b, 7000)
	if reaches(t, a, b.Guest.Addr().String(), 7000) {
		t.Error("one sandbox reaches another")
	}
	conn, err := net.Dial("tcp4", b.Guest.Addr().String()+":7000") // from the host
	must(t, err)
	defer conn.Close()
	if err := exchange(conn, "from the host"); err != nil {
		t.Errorf("the host does not reach a sandbox: %v", err)
	}
}

// TestOtherUsersOfTheHostStayOut: a server in a sandbox may rely on the edge's
// tokens, so no other program of the host may go around the edge.
func TestOtherUsersOfTheHostStayOut(t *testing.T) {
	newWorld(t)
	m := cleaned(t, nil)
	s := acquire(t, m)
	listenIn(t, s, 7000)
	to := s.Guest.Addr().String() + ":7000"
	conn, err := dialAs(t, 65534, to)
	if err == nil {
		conn.Close()
		t.Error("another user of the host reaches a sandbox")
	} else if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("another user of the host: %v, want a refusal", err)
	}
	conn, err = dialAs(t, 0, to)
	must(t, err)
	defer conn.Close()
	must(t, exchange(conn, "root"))
}

// dialAs connects as a user of the host.
func dialAs(t *testing.T, uid uintptr, to string) (conn net.Conn, err error) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlock: the thread ends here, with its user
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
			t.Errorf("becoming user %d: %v", uid, errno)
		}
		conn, err = net.DialTimeout("tcp4", to, time.Minute)
	}()
	<-done
	return conn, err
}

func listenIn(t *testing.T, s *Slot, port int) {
	t.Helper()
	within(t, s.NetNS, func() {
		l, err := net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", port))
		must(t, err)
		go echo(l)
		t.Cleanup(func() { l.Close() })
	})
}

func TestNothingComesInFromOutside(t *testing.T) {
	w := newWorld(t)
	m := cleaned(t, nil)
	s := acquire(t, m)
	listenIn(t, s, 7000)
	if conn, err := dialFrom(t, w.ns, s.Guest.Addr().String(), 7000); err == nil {
		conn.Close()
		t.Error("a sandbox is reached from outside")
	}
}

// TestHostIsNoRouter: forwarding had to be turned on for the uplink, but it must
// not carry other people's packets between the host's networks.
func TestHostIsNoRouter(t *testing.T) {
	w := newWorld(t)
	lan := t.TempDir() + "/lan"
	must(t, newNamespace(lan))
	defer unmount(lan)
	ns, err := os.Open(lan)
	must(t, err)
	defer ns.Close()
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: "lan0"})
	veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(int(ns.Fd()))
	must(t, netlink.LinkAdd(veth))
	defer netlink.LinkDel(veth)
	address(t, "lan0", "192.0.2.1/24")
	got := make(chan string, 1)
	within(t, lan, func() {
		address(t, "eth0", "192.0.2.2/24")
		conn, err := net.ListenPacket("udp4", "192.0.2.2:5000")
		must(t, err)
		t.Cleanup(func() { conn.Close() })
		go func() {
			buf := make([]byte, 100)
			for n, _, err := conn.ReadFrom(buf); err == nil; n, _, err = conn.ReadFrom(buf) {
				got <- string(buf[:n])
			}
		}()
	})
	within(t, w.ns, func() {
		eth, err := netlink.LinkByName("eth0")
		must(t, err)
		_, dst, _ := net.ParseCIDR("192.0.2.0/24")
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: net.ParseIP(uplinkHost), Dst: dst}))
	})
	m := cleaned(t, nil)
	if sysctl(t, "ipv4/conf/up0/forwarding") != "1" {
		t.Fatal("forwarding is off")
	}
	acquire(t, m)
	must(t, sendUDP(t, w.ns, netip.MustParseAddr(router), "192.0.2.2", 5000, "through"))
	conn, err := net.Dial("udp4", "192.0.2.2:5000") // from the host itself, afterwards
	must(t, err)
	defer conn.Close()
	io.WriteString(conn, "host")
	if s := <-got; s != "host" {
		t.Errorf("the host forwarded %q", s)
	}
}

func TestSpoofedSources(t *testing.T) {
	w := newWorld(t)
	m := cleaned(t, nil)
	a, b := acquire(t, m), acquire(t, m)
	for _, source := range []netip.Addr{b.Guest.Addr(), a.Gateway, netip.MustParseAddr(uplinkHost), netip.MustParseAddr("8.8.8.8")} {
		within(t, a.NetNS, func() { address(t, "lo", source.String()+"/32") })
		must(t, sendUDP(t, a.NetNS, source, server, udpPort, "spoofed "+source.String()))
	}
	must(t, sendUDP(t, a.NetNS, a.Guest.Addr(), server, udpPort, "honest"))
	if p := w.next(); p.data != "honest" {
		t.Errorf("the world got %q", p.data)
	}
}

func TestUnregisteredDeviceSendsNothing(t *testing.T) {
	w := newWorld(t)
	m := cleaned(t, nil)
	a, b := acquire(t, m), acquire(t, m)
	must(t, m.table.unregister([]int{a.Index}))
	sendUDP(t, a.NetNS, a.Guest.Addr(), server, udpPort, "unregistered")
	must(t, sendUDP(t, b.NetNS, b.Guest.Addr(), server, udpPort, "registered"))
	if p := w.next(); p.data != "registered" {
		t.Errorf("the world got %q", p.data)
	}
}

func TestIPv6(t *testing.T) {
	newWorld(t)
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		t.Skip("the kernel has no IPv6")
	}
	m := cleaned(t, nil)
	s := acquire(t, m)
	if sysctl(t, "ipv6/conf/"+s.HostDevice+"/disable_ipv6") != "1" {
		t.Error("IPv6 is on at the host's end")
	}
	// Turn it on at both ends: the filter alone must do.
	must(t, setting("ipv6/conf/"+s.HostDevice+"/disable_ipv6", "0"))
	address(t, s.HostDevice, "fd00:1::1/64")
	l, err := net.ListenPacket("udp6", "[::]:5001")
	must(t, err)
	defer l.Close()
	within(t, s.NetNS, func() {
		must(t, setting("ipv6/conf/all/disable_ipv6", "0"))
		must(t, setting("ipv6/conf/eth0/disable_ipv6", "0"))
		must(t, setting("ipv6/conf/eth0/accept_dad", "0"))
		address(t, "eth0", "fd00:1::2/64")
		link, err := netlink.LinkByName("eth0")
		must(t, err)
		must(t, netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT,
			IP: net.ParseIP("fd00:1::1"), HardwareAddr: hardwareAddr(s.Guest.Addr(), hostEnd)}))
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM, 0)
		must(t, err)
		defer unix.Close(fd)
		must(t, unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_FREEBIND, 1))
		must(t, unix.Bind(fd, &unix.SockaddrInet6{Addr: netip.MustParseAddr("fd00:1::2").As16()}))
		must(t, unix.Sendto(fd, []byte("v6"), 0, &unix.SockaddrInet6{Port: 5001, Addr: netip.MustParseAddr("fd00:1::1").As16()}))
	})
	own, err := net.Dial("udp6", "[::1]:5001")
	must(t, err)
	defer own.Close()
	address(t, "lo", "::1/128")
	io.WriteString(own, "own")
	buf := make([]byte, 100)
	l.SetReadDeadline(time.Now().Add(time.Minute))
	n, _, err := l.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "own" {
		t.Errorf("got %q, %v", buf[:n], err)
	}
}

func TestPolicy(t *testing.T) {
	newWorld(t)
	m := cleaned(t, nil)
	s, other := acquire(t, m), acquire(t, m)
	for _, test := range []struct {
		name            string
		policy          Policy
		server, server2 bool
	}{
		{"default", Policy{Internet: true}, true, true},
		{"closed", Policy{}, false, false},
		{"closed but for one", Policy{AllowOut: prefixes(server + "/32")}, true, false},
		{"deny all but one", Policy{Internet: true, AllowOut: prefixes("203.0.113.128/25"), DenyOut: prefixes("0.0.0.0/0")}, false, true},
		{"deny one", Policy{Internet: true, DenyOut: prefixes(server + "/32")}, false, true},
		{"allow within deny", Policy{Internet: true, AllowOut: prefixes(server2 + "/32"), DenyOut: prefixes("203.0.113.0/24", "203.0.113.0/28")}, false, true},
		{"open again", Policy{Internet: true}, true, true},
	} {
		setPolicy(t, m, s, test.policy)
		if got := reaches(t, s, server, tcpPort); got != test.server {
			t.Errorf("%s: reaches %s: %v", test.name, server, got)
		}
		if got := reaches(t, s, server2, tcpPort); got != test.server2 {
			t.Errorf("%s: reaches %s: %v", test.name, server2, got)
		}
		if !reaches(t, other, server, tcpPort) {
			t.Errorf("%s: another sandbox is affected", test.name)
		}
	}
}

func TestPolicyCutsConnections(t *testing.T) {
	newWorld(t)
	m := cleaned(t, nil)
	s := acquire(t, m)
	denied, err := dialFrom(t, s.NetNS, server, tcpPort)
	must(t, err)
	allowed, err := dialFrom(t, s.NetNS, server2, tcpPort)
	must(t, err)
	must(t, exchange(denied, "before"))
	must(t, exchange(allowed, "before"))
	setPolicy(t, m, s, Policy{Internet: true, DenyOut: prefixes(server + "/32")})
	if err := exchange(denied, "after"); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("a connection to what is now denied: %v, want a reset", err)
	}
	if err := exchange(allowed, "after"); err != nil {
		t.Errorf("a connection to what is still allowed: %v", err)
	}
}

func TestPolicyErrors(t *testing.T) {
	newWorld(t)
	m := cleaned(t, nil)
	s := acquire(t, m)
	many := make([]netip.Prefix, maxCIDRs+1)
	for i := range many {
		many[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{9, 9, byte(i >> 8), byte(i)}), 32)
	}
	for _, p := range []Policy{{DenyOut: many}, {AllowOut: prefixes("fd00::/8")}, {DenyOut: make([]netip.Prefix, 1)}} {
		if err := m.SetPolicy(context.Background(), s.Index, p); hearth.KindOf(err) != hearth.InvalidArgument {
			t.Errorf("got %v", err)
		}
	}
	setPolicy(t, m, s, Policy{Internet: true, DenyOut: many[:maxCIDRs], AllowOut: many[:maxCIDRs]})
	must(t, m.Release(context.Background(), s.Index))
	if err := m.SetPolicy(context.Background(), s.Index, Policy{}); hearth.KindOf(err) != hearth.FailedPrecondition {
		t.Errorf("policy of a slot that is gone: %v", err)
	}
}

func TestConnectionLimit(t *testing.T) {
	newWorld(t)
	m := cleaned(t, func(c *Config) { c.Limits.Connections = 5 })
	s, other := acquire(t, m), acquire(t, m)
	for i := range 5 {
		if _, err := dialFrom(t, s.NetNS, server, tcpPort); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	if reaches(t, s, server, tcpPort) {
		t.Error("a connection over the limit was let through")
	}
	if !reaches(t, other, server, tcpPort) {
		t.Error("the limit of one sandbox touches another")
	}
}

func TestFloodLimits(t *testing.T) {
	w := newWorld(t)
	const udp, connections = 100, 50
	m := cleaned(t, func(c *Config) { c.Limits = Limits{UDPPerSecond: udp, NewPerSecond: connections} })
	s, other := acquire(t, m), acquire(t, m)
	began := time.Now()
	within(t, s.NetNS, func() {
		conn, err := net.Dial("udp4", net.JoinHostPort(server, strconv.Itoa(udpPort)))
		must(t, err)
		defer conn.Close()
		for range 2000 {
			io.WriteString(conn, "flood")
		}
	})
	for range 200 { // one connection each
		sendUDP(t, s.NetNS, s.Guest.Addr(), server2, udpPort, "scan")
	}
	seconds := 1 + int(time.Since(began).Seconds()) // for which there were some more, on a slow host
	must(t, sendUDP(t, other.NetNS, other.Guest.Addr(), server, udpPort, "last"))
	count := make(map[string]int)
	for p := w.next(); p.data != "last"; p = w.next() {
		count[p.data]++
	}
	if most := udp * (int(burstSeconds) + seconds); count["flood"] < 20 || count["flood"] > most {
		t.Errorf("%d of 2000 packets came through a limit of %d a second, want at most %d", count["flood"], udp, most)
	}
	if most := connections * (int(burstSeconds) + seconds); count["scan"] > most {
		t.Errorf("%d of 200 connections came through a limit of %d a second, want at most %d", count["scan"], connections, most)
	}
}
