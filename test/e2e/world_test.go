package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	worldRouter = "198.51.100.2" // the world's end of the link
	worldHost   = "198.51.100.1" // the host's
	worldPublic = "203.0.113.77" // somebody on the internet
	worldTCP    = 8099
	worldUDP    = 8098
)

// world plays everything outside of the host, so that no test needs a packet to
// leave it: a network namespace that has the addresses a sandbox may and may not
// reach, answers on all of them and remembers who came.
type world struct {
	device    string // the host's end of the link
	addresses []string

	mu   sync.Mutex
	seen []string // "tcp ADDRESS" or "udp ADDRESS" that was reached
}

// newWorld makes a world with addresses. Those to which the host has a route of
// its own are left out, and told.
func newWorld(t *testing.T, addresses ...string) *world {
	t.Helper()
	w := &world{device: fmt.Sprintf("hwld%d", os.Getpid()%100000)}
	var ns vnetns.NsHandle
	inside(t, func() (err error) {
		ns, err = vnetns.New()
		return err
	})
	t.Cleanup(func() { ns.Close() })
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: w.device, TxQLen: 1000})
	veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(int(ns))
	must(t, netlink.LinkAdd(veth))
	t.Cleanup(func() { must(t, netlink.LinkDel(veth)) }) // its routes go with it
	must(t, address(w.device, worldHost+"/30"))
	must(t, os.WriteFile("/proc/sys/net/ipv4/conf/"+w.device+"/forwarding", []byte("1"), 0o644))
	for _, a := range addresses {
		err := netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(worldRouter), Dst: single(a)})
		if errors.Is(err, unix.EEXIST) {
			t.Logf("skipped %s: the host has a route to it", a)
			continue
		}
		must(t, err)
		w.addresses = append(w.addresses, a)
	}
	inside(t, func() error { return w.furnish(t, ns) })
	return w
}

// furnish gives the world its addresses and listeners; it runs inside.
func (w *world) furnish(t *testing.T, ns vnetns.NsHandle) error {
	if err := vnetns.Set(ns); err != nil {
		return err
	}
	if err := errors.Join(address("lo", "127.0.0.1/8"), address("eth0", worldRouter+"/30")); err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(worldHost)}); err != nil {
		return err
	}
	for _, a := range w.addresses {
		if err := address("lo", a+"/32"); err != nil {
			return err
		}
		l, err := net.Listen("tcp4", fmt.Sprintf("%s:%d", a, worldTCP))
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go w.accept(l, a)
		p, err := net.ListenPacket("udp4", fmt.Sprintf("%s:%d", a, worldUDP))
		if err != nil {
			return err
		}
		t.Cleanup(func() { p.Close() })
		go w.receive(p, a)
	}
	return nil
}

// accept greets whoever connects.
func (w *world) accept(l net.Listener, address string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		w.note("tcp " + address)
		_, _ = io.WriteString(conn, "hello")
		_ = conn.Close()
	}
}

// receive sends every packet back.
func (w *world) receive(p net.PacketConn, address string) {
	buf := make([]byte, 2048)
	for {
		n, from, err := p.ReadFrom(buf)
		if err != nil {
			return
		}
		w.note("udp " + address)
		_, _ = p.WriteTo(buf[:n], from)
	}
}

func (w *world) note(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = append(w.seen, what)
}

// reached returns what was reached since the last call.
func (w *world) reached() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := w.seen
	w.seen = nil
	return seen
}

// inside runs f on a thread of its own, which ends with it.
func inside(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked, so that nothing else runs in its namespace
		done <- f()
	}()
	must(t, <-done)
}

func address(device, cidr string) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	if err := netlink.AddrReplace(link, a); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func single(address string) *net.IPNet {
	return &net.IPNet{IP: net.ParseIP(address).To4(), Mask: net.CIDRMask(32, 32)}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
