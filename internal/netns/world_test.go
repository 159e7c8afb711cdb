package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"hearth/internal/netns/hostnet"
)

// The tests run in a network and mount namespace of their own, in which this
// process plays the host. One more namespace plays everything outside: it has
// all the addresses that a sandbox may and may not reach, and it answers on all
// of them, so a refusal can only come from the filter.
const childEnv = "HEARTH_NETNS_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Println("netns: skipped: network namespaces need root")
		os.Exit(0)
	}
	if os.Getenv(childEnv) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET, Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	if err := cmd.Run(); err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			os.Exit(exit.ExitCode())
		}
		fmt.Println("netns:", err)
		os.Exit(1)
	}
}

const (
	uplinkHost = "198.51.100.1" // the host's address outside
	router     = "198.51.100.2" // the world's
	server     = "203.0.113.1"  // somebody on the internet
	server2    = "203.0.113.129"
	resolver   = "10.200.3.53"
	tcpPort    = 80
	udpPort    = 5000
)

// forbidden are addresses of the world no sandbox may reach.
func forbidden() []string {
	return []string{"10.1.2.3", resolver, "100.64.0.9", "100.100.100.200", "168.63.129.16", "169.254.169.254",
		"172.16.5.5", "172.31.255.254", "192.0.0.192", "192.168.7.7", "240.1.2.3"}
}

// world is everything outside the host.
type world struct {
	t       testing.TB
	ns      string
	tcp     net.Listener
	packets chan packet
}

type packet struct {
	from netip.AddrPort
	to   string
	data string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, ns: t.TempDir() + "/world", packets: make(chan packet, 10000)}
	must(t, newNamespace(w.ns))
	t.Cleanup(func() { must(t, unmount(w.ns)) })
	ns, err := vnetns.GetFromPath(w.ns)
	must(t, err)
	defer ns.Close()
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: "up0", TxQLen: 1000})
	veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(int(ns))
	must(t, netlink.LinkAdd(veth))
	t.Cleanup(func() { must(t, netlink.LinkDel(veth)) })
	address(t, "lo", "127.0.0.1/8")
	address(t, "up0", uplinkHost+"/24")
	up, err := netlink.LinkByName("up0")
	must(t, err)
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: up.Attrs().Index, Gw: net.ParseIP(router)}))
	within(t, w.ns, func() {
		address(t, "eth0", router+"/24")
		for _, a := range append(forbidden(), server, server2) {
			address(t, "lo", a+"/32")
		}
		eth, err := netlink.LinkByName("eth0")
		must(t, err)
		_, all, _ := net.ParseCIDR("10.213.0.0/16")
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: net.ParseIP(uplinkHost), Dst: all}))
		w.tcp, err = net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", tcpPort))
		must(t, err)
		go echo(w.tcp)
		t.Cleanup(func() { w.tcp.Close() })
		for _, a := range append(forbidden(), server, server2, router) {
			for _, port := range []int{udpPort, 53} {
				conn, err := net.ListenPacket("udp4", fmt.Sprintf("%s:%d", a, port))
				must(t, err)
				go w.receive(conn)
				t.Cleanup(func() { conn.Close() })
			}
		}
	})
	inside, err := netlink.NewHandleAt(ns)
	must(t, err)
	defer inside.Close()
	must(t, awaitCarrier(ns, inside, "eth0"))
	outside, err := netlink.NewHandle()
	must(t, err)
	defer outside.Close()
	must(t, awaitCarrier(vnetns.None(), outside, "up0"))
	return w
}

// echo serves connections by sending back what comes.
func echo(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			io.Copy(conn, conn)
			conn.Close()
		}()
	}
}

func (w *world) receive(conn net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		w.packets <- packet{from.(*net.UDPAddr).AddrPort(), conn.LocalAddr().String(), string(buf[:n])}
		conn.WriteTo(buf[:n], from)
	}
}

// next returns the next packet that reached the world.
func (w *world) next() packet {
	w.t.Helper()
	select {
	case p := <-w.packets:
		return p
	case <-time.After(time.Minute):
		w.t.Fatal("no packet reached the world")
		return packet{}
	}
}

// manager opens a Manager whose namespaces are in dir.
func manager(t testing.TB, change func(*Config)) *Manager {
	t.Helper()
	cfg := Config{Name: "t", Dir: t.TempDir(), ReadyMax: -1, Check: 20 * time.Millisecond}
	if change != nil {
		change(&cfg)
	}
	m, err := New(cfg, slog.New(slog.DiscardHandler))
	must(t, err)
	must(t, m.Open(context.Background()))
	return m
}

// cleaned is manager, removed and checked for leaks at the end.
func cleaned(t testing.TB, change func(*Config)) *Manager {
	t.Helper()
	m := manager(t, change)
	t.Cleanup(func() {
		must(t, m.Remove(context.Background()))
		noTrace(t, m.cfg)
	})
	return m
}

// noTrace fails if anything of a node is left on the host.
func noTrace(t testing.TB, cfg Config) {
	t.Helper()
	links, err := hostnet.Dumped(netlink.LinkList)
	must(t, err)
	for _, l := range links {
		if n := l.Attrs().Name; n != "lo" && n != "up0" && n != "lan0" {
			t.Errorf("device %s is left", n)
		}
	}
	if _, err := os.Stat(cfg.Dir + "/" + cfg.Name); err == nil {
		t.Errorf("the directory of namespaces is left")
	}
	conn, err := connect()
	must(t, err)
	defer conn.CloseLasting()
	tables, err := conn.ListTables()
	must(t, err)
	for _, table := range tables {
		t.Errorf("table %s is left", table.Name)
	}
}

func acquire(t testing.TB, m *Manager) *Slot {
	t.Helper()
	s, err := m.Acquire(context.Background())
	must(t, err)
	setPolicy(t, m, s, Policy{Internet: true})
	return s
}

func setPolicy(t testing.TB, m *Manager, s *Slot, p Policy) {
	t.Helper()
	must(t, m.SetPolicy(context.Background(), s.Index, p))
}

// within runs f on a thread that is in a network namespace.
func within(t testing.TB, ns string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlock: the thread ends here
		handle, err := vnetns.GetFromPath(ns)
		if err == nil {
			err = vnetns.Set(handle)
			handle.Close()
		}
		if err != nil {
			t.Errorf("entering %s: %v", ns, err)
			return
		}
		f()
	}()
	<-done
}

// dialFrom connects from inside a namespace.
func dialFrom(t testing.TB, ns, to string, port int) (conn net.Conn, err error) {
	t.Helper()
	within(t, ns, func() {
		conn, err = net.DialTimeout("tcp4", fmt.Sprintf("%s:%d", to, port), time.Minute)
	})
	if err == nil {
		t.Cleanup(func() { conn.Close() })
	}
	return conn, err
}

// reaches reports whether a slot can connect to an address and get an answer. A
// failure must be a refusal, not a timeout.
func reaches(t testing.TB, s *Slot, to string, port int) bool {
	t.Helper()
	conn, err := dialFrom(t, s.NetNS, to, port)
	if err == nil {
		defer conn.Close()
		if err = exchange(conn, "ping"); err != nil {
			t.Errorf("connected to %s but: %v", to, err)
		}
		return true
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connecting to %s: %v, want a refusal", to, err)
	}
	return false
}

// exchange sends text and reads it back.
func exchange(conn net.Conn, text string) error {
	conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(conn, text); err != nil {
		return err
	}
	buf := make([]byte, len(text))
	_, err := io.ReadFull(conn, buf)
	return err
}

// sendUDP sends one packet from inside a namespace, with a source of choice.
func sendUDP(t testing.TB, ns string, source netip.Addr, to string, port int, text string) error {
	t.Helper()
	var err error
	within(t, ns, func() {
		var conn *net.UDPConn
		conn, err = net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0)),
			&net.UDPAddr{IP: net.ParseIP(to), Port: port})
		if err == nil {
			_, err = io.WriteString(conn, text)
			conn.Close()
		}
	})
	return err
}

func address(t testing.TB, device, cidr string) {
	t.Helper()
	link, err := netlink.LinkByName(device)
	must(t, err)
	a, err := netlink.ParseAddr(cidr)
	must(t, err)
	must(t, netlink.AddrReplace(link, a))
	must(t, netlink.LinkSetUp(link))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func sysctl(t testing.TB, key string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/net/" + key)
	must(t, err)
	return strings.TrimSpace(string(b))
}

func prefixes(all ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range all {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// newNamespace mounts a network namespace at path, which does not exist yet.
func newNamespace(path string) error {
	if err := os.WriteFile(path, nil, 0); err != nil {
		return err
	}
	return mountNamespace(path)
}
