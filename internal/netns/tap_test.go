package netns

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"hearth/internal/hearth"
)

// vm stands for a virtual machine on a slot: its network stack is that of a
// further namespace, whose own tap's frames are carried to the slot's tap and
// back as a VMM carries them, virtio headers included.
type vm struct {
	*Slot          // NetNS is the guest's
	slot  *Slot    // as the manager made it
	inner *os.File // the guest's side of its network card
	outer *os.File // the slot's tap
}

const offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6

func newVM(t testing.TB, m *Manager) *vm {
	t.Helper()
	s, err := m.AcquireTap(context.Background())
	must(t, err)
	setPolicy(t, m, s, Policy{Internet: true})
	guest := t.TempDir() + "/guest"
	must(t, newNamespace(guest))
	t.Cleanup(func() { must(t, unmount(guest)) })
	seen := *s
	seen.NetNS = guest
	v := &vm{Slot: &seen, slot: s, inner: tapIn(t, guest, tapFlags, offloads), outer: tapIn(t, s.NetNS, tapFlags, offloads)}
	inside, err := netlink.NewHandleAt(handle(t, guest))
	must(t, err)
	defer inside.Close()
	card, err := inside.LinkByName(tapDevice)
	must(t, err)
	must(t, inside.LinkSetHardwareAddr(card, s.MAC()))
	must(t, inside.LinkSetMTU(card, m.cfg.MTU))
	within(t, guest, func() {
		address(t, "lo", "127.0.0.1/8")
		address(t, tapDevice, s.Guest.String())
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: card.Attrs().Index, Gw: s.Gateway.AsSlice()}))
	})
	outside, err := netlink.NewHandleAt(handle(t, s.NetNS))
	must(t, err)
	defer outside.Close()
	must(t, awaitCarrier(handle(t, s.NetNS), outside, tapDevice)) // it was up before it was opened
	go carry(v.outer, v.inner)
	go carry(v.inner, v.outer)
	return v
}

func handle(t testing.TB, path string) vnetns.NsHandle {
	t.Helper()
	ns, err := vnetns.GetFromPath(path)
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	return ns
}

// tapIn opens a namespace's tap.
func tapIn(t testing.TB, ns string, flags uint16, offload int) *os.File {
	t.Helper()
	var f *os.File
	within(t, ns, func() {
		fd, err := openTap(flags)
		must(t, err)
		must(t, unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offload))
		f = os.NewFile(uintptr(fd), "tap")
	})
	t.Cleanup(func() { f.Close() })
	return f
}

// carry moves frames from one tap to another, until one is closed.
func carry(to, from *os.File) {
	buf := make([]byte, 10+14+65536)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if _, err := to.Write(buf[:n]); errors.Is(err, os.ErrClosed) {
			return
		}
	}
}

// inject sends one frame as the guest's kernel could, without a virtio request.
func (v *vm) inject(t testing.TB, frame []byte) {
	t.Helper()
	_, err := v.outer.Write(append(make([]byte, 10), frame...))
	must(t, err)
}

func TestTap(t *testing.T) {
	w := newWorld(t)
	m := cleaned(t, nil)
	v, other := newVM(t, m), newVM(t, m)
	if v.Tap != tapDevice {
		t.Errorf("the slot's tap is %q", v.Tap)
	}
	if !reaches(t, v.Slot, server, tcpPort) {
		t.Error("the internet is not reached")
	}
	must(t, sendUDP(t, v.NetNS, v.Guest.Addr(), server, udpPort, "hello"))
	if p := w.next(); p.from.Addr().String() != uplinkHost || p.data != "hello" {
		t.Errorf("the world saw %v, want a packet from the host's own address", p)
	}
	listenIn(t, other.Slot, 7000)
	if reaches(t, v.Slot, other.Guest.Addr().String(), 7000) {
		t.Error("one machine reaches another")
	}
	conn, err := net.Dial("tcp4", other.Guest.Addr().String()+":7000")
	must(t, err)
	defer conn.Close()
	must(t, exchange(conn, "from the host"))
	for _, a := range append(forbidden(), v.Gateway.String(), uplinkHost) {
		if reaches(t, v.Slot, a, tcpPort) {
			t.Errorf("%s is reached", a)
		}
	}
	setPolicy(t, m, v.slot, Policy{})
	if reaches(t, v.Slot, server, tcpPort) {
		t.Error("the policy is not in force")
	}
}

// A tap that was just made can be opened, whatever other processes are started meanwhile.
func TestTapIsFree(t *testing.T) {
	newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	var busy sync.WaitGroup
	for range 4 {
		busy.Go(func() {
			for ctx.Err() == nil {
				_ = exec.Command("true").Run()
			}
		})
	}
	defer busy.Wait()
	defer cancel()
	for range 50 {
		ns := t.TempDir() + "/guest"
		must(t, newNamespace(ns))
		t.Cleanup(func() { must(t, unmount(ns)) })
		must(t, makeTap(handle(t, ns)))
		within(t, ns, func() {
			fd, err := openTap(tapFlags)
			if err != nil {
				t.Error(err)
				return
			}
			_ = unix.Close(fd)
		})
	}
}

// TestTapTransfer sends what a guest leaves to the host: unfinished checksums
// and segments larger than the uplink takes.
func TestTapTransfer(t *testing.T) {
	newWorld(t)
	m := cleaned(t, nil)
	v := newVM(t, m)
	conn, err := dialFrom(t, v.NetNS, server, tcpPort)
	must(t, err)
	conn.SetDeadline(time.Now().Add(5 * time.Minute))
	const size = 32 << 20
	go func() {
		io.Copy(conn, io.LimitReader(zeros{}, size))
		conn.(*net.TCPConn).CloseWrite()
	}()
	if n, err := io.Copy(io.Discard, conn); n != size || err != nil {
		t.Errorf("%d bytes came back, %v; want %d", n, err, size)
	}
}

func TestTapSpoofing(t *testing.T) {
	w := newWorld(t)
	m := cleaned(t, nil)
	v, other := newVM(t, m), newVM(t, m)
	for _, source := range []netip.Addr{other.Guest.Addr(), v.Gateway, netip.MustParseAddr(uplinkHost), netip.MustParseAddr("8.8.8.8")} {
		within(t, v.NetNS, func() { address(t, "lo", source.String()+"/32") })
		must(t, sendUDP(t, v.NetNS, source, server, udpPort, "spoofed "+source.String()))
	}
	host, err := net.InterfaceByName(v.HostDevice)
	must(t, err)
	heard := sniff(t, host)
	stranger := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	almost := v.MAC()
	almost[5] ^= 1
	ip := ipv4(v.Guest.Addr(), netip.MustParseAddr(server), "spoofed address")
	vlan := append([]byte{0, 0, 0x08, 0}, ip...)
	for _, f := range [][]byte{
		ethernet(host.HardwareAddr, stranger, unix.ETH_P_IP, ip),
		ethernet(host.HardwareAddr, almost, unix.ETH_P_IP, ip),
		ethernet(host.HardwareAddr, other.MAC(), unix.ETH_P_ARP, make([]byte, 46)),
		ethernet(host.HardwareAddr, v.MAC(), unix.ETH_P_IPV6, make([]byte, 60)),
		ethernet(host.HardwareAddr, v.MAC(), unix.ETH_P_8021Q, vlan),
		ethernet(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0}, v.MAC(), 0x88cc, make([]byte, 46)), // LLDP
		ethernet(host.HardwareAddr, v.MAC(), unix.ETH_P_IP, nil),
		{0}, // not even a header: the tap itself refuses it
	} {
		if len(f) < 14 {
			if _, err := v.outer.Write(f); err == nil {
				t.Error("the tap took a frame without a header")
			}
			continue
		}
		v.inject(t, f)
	}
	v.inject(t, ethernet(host.HardwareAddr, v.MAC(), unix.ETH_P_IP, ipv4(v.Guest.Addr(), netip.MustParseAddr(server), "honest")))
	if p := w.next(); p.data != "honest" {
		t.Errorf("the world got %q", p.data)
	}
	for { // every frame that got as far as the host
		f := heard()
		if string(f[6:12]) == string(v.MAC()) && f[12] == 8 && f[13] == 6 {
			continue // its kernel asks for the gateway of what was spoofed, now and then
		}
		if string(f[6:12]) != string(v.MAC()) || f[12] != 8 || f[13] != 0 {
			t.Errorf("the host heard % x", f[:14])
		}
		if string(f[len(f)-6:]) == "honest" {
			return
		}
	}
}

// sniff returns what arrives at a device from now on, frame by frame.
func sniff(t testing.TB, device *net.Interface) func() []byte {
	t.Helper()
	all := uint16(unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xff00)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: device.Index}))
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 60}))
	return func() []byte {
		buf := make([]byte, 65536)
		for {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			must(t, err)
			if from.(*unix.SockaddrLinklayer).Pkttype != unix.PACKET_OUTGOING {
				return buf[:n]
			}
		}
	}
}

func ethernet(to, from net.HardwareAddr, kind uint16, payload []byte) []byte {
	return append(append(append([]byte{}, to...), from...), append([]byte{byte(kind >> 8), byte(kind)}, payload...)...)
}

// ipv4 is a UDP packet to udpPort.
func ipv4(from, to netip.Addr, data string) []byte {
	p := append([]byte{0x45, 0, 0, byte(28 + len(data)), 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}, from.AsSlice()...)
	p = append(p, to.AsSlice()...)
	sum := uint32(0)
	for i := 0; i < len(p); i += 2 {
		sum += uint32(p[i])<<8 | uint32(p[i+1])
	}
	sum = ^(sum&0xffff + sum>>16)
	p[10], p[11] = byte(sum>>8), byte(sum)
	p = append(p, 0x80, 0, udpPort>>8, udpPort&0xff, 0, byte(8+len(data)), 0, 0)
	return append(p, data...)
}

// TestTapIsClosedToItsNamespace: the namespace's own stack neither sends nor
// answers in the guest's name.
func TestTapIsClosedToItsNamespace(t *testing.T) {
	w := newWorld(t)
	m := cleaned(t, nil)
	v := newVM(t, m)
	if err := sendUDP(t, v.slot.NetNS, v.Guest.Addr(), server, udpPort, "from the namespace"); err == nil {
		t.Error("the namespace itself sends")
	}
	within(t, v.slot.NetNS, func() {
		l, err := net.Listen("tcp4", "0.0.0.0:7000")
		must(t, err)
		t.Cleanup(func() { l.Close() })
	})
	if conn, err := net.DialTimeout("tcp4", v.Guest.Addr().String()+":7000", time.Minute); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("the namespace answers for the guest: %v, %v", conn, err)
	}
	within(t, v.slot.NetNS, func() {
		for _, d := range []string{guestDevice, tapDevice} {
			if _, err := os.Stat("/proc/sys/net/ipv6"); err == nil && sysctl(t, "ipv6/conf/"+d+"/disable_ipv6") != "1" {
				t.Errorf("IPv6 is on at %s", d)
			}
			link, err := netlink.LinkByName(d)
			must(t, err)
			if got := link.Attrs().MTU; got != m.cfg.MTU {
				t.Errorf("the MTU of %s is %d, want %d", d, got, m.cfg.MTU)
			}
		}
		if _, err := openTap(tapFlags | unix.IFF_MULTI_QUEUE); err == nil {
			t.Error("the tap has many queues")
		}
		if _, err := openTap(tapFlags); !errors.Is(err, unix.EBUSY) {
			t.Errorf("opening the tap a second time: %v", err)
		}
	})
	must(t, sendUDP(t, v.NetNS, v.Guest.Addr(), server, udpPort, "from the guest"))
	if p := w.next(); p.data != "from the guest" {
		t.Errorf("the world got %q", p.data)
	}
}

func TestTapKillAndRecover(t *testing.T) {
	newWorld(t)
	dir := t.TempDir()
	same := func(c *Config) { c.Dir, c.ReadyMax = dir, 3 }
	first := manager(t, same)
	v := newVM(t, first)
	lost, err := first.AcquireTap(context.Background())
	must(t, err)
	plain := acquire(t, first)
	conn, err := dialFrom(t, v.NetNS, server, tcpPort)
	must(t, err)
	crash(first)

	second := cleaned(t, same)
	must(t, exchange(conn, "still there"))
	for _, s := range []*Slot{v.slot, plain} {
		got, err := second.Attach(context.Background(), s.Index)
		must(t, err)
		if *got != *s {
			t.Errorf("attached %+v, was %+v", got, s)
		}
	}
	must(t, second.Sweep(context.Background(), nil))
	if _, err := second.Attach(context.Background(), lost.Index); hearth.KindOf(err) != hearth.NotFound {
		t.Errorf("attaching a swept slot: %v", err)
	}
	must(t, exchange(conn, "and still"))
	for range 2 {
		must(t, second.Release(context.Background(), v.Index)) // though the machine still has the tap open
	}
	if _, err := net.InterfaceByName(v.HostDevice); err == nil {
		t.Error("an open tap keeps its slot's devices")
	}
}

// TestTapFailureLeavesNothing takes away what AcquireTap needs.
func TestTapFailureLeavesNothing(t *testing.T) {
	newWorld(t)
	m := cleaned(t, nil)
	must(t, unix.Mount("/dev/null", tunDevice, "", unix.MS_BIND, ""))
	_, err := m.AcquireTap(context.Background())
	must(t, unix.Unmount(tunDevice, 0))
	if err == nil {
		t.Error("a tap was made from nothing")
	}
	if left, err := m.leftovers(); len(left) != 0 || err != nil {
		t.Errorf("left: %v, %v", left, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := m.AcquireTap(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func BenchmarkTap(b *testing.B) {
	newWorld(b)
	m := manager(b, nil)
	defer m.Remove(context.Background())
	var took time.Duration
	for b.Loop() {
		s, err := m.Acquire(context.Background())
		must(b, err)
		start := time.Now()
		must(b, addTap(s))
		took += time.Since(start)
		must(b, m.Release(context.Background(), s.Index))
	}
	b.ReportMetric(float64(took.Microseconds())/1000/float64(b.N), "tap-ms")
}
