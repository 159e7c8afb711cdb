package vminit

import (
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/driver/microvm/channel"
)

// inNamespace runs f in a network namespace of its own, which has the two ends
// of a cable, eth0 and eth1.
func inNamespace(t *testing.T, f func(n *network)) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("namespace: %v", err)
			return
		}
		if out, err := ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth1"); err != nil {
			t.Errorf("veth: %v: %s", err, out)
			return
		}
		n := &network{}
		if err := n.loopback(); err != nil {
			t.Errorf("loopback: %v", err)
			return
		}
		f(n)
	}()
	<-done
}

func ip(args ...string) (string, error) {
	out, err := exec.Command("ip", args...).CombinedOutput()
	return string(out), err
}

func lan(address, gateway string) channel.Settings {
	s := channel.Settings{Device: "eth0", MAC: "02:00:00:00:00:07", Address: netip.MustParsePrefix(address)}
	if gateway != "" {
		s.Gateway = netip.MustParseAddr(gateway)
	}
	return s
}

func TestConfigureNetwork(t *testing.T) {
	inNamespace(t, func(n *network) {
		for _, s := range []channel.Settings{
			lan("10.1.2.3/24", "10.1.2.1"),
			lan("10.1.2.3/24", "10.1.2.1"), // again
			lan("10.1.2.4/24", "10.1.2.1"),
			lan("10.1.2.4/30", "10.9.9.9"), // a gateway beyond the prefix
			lan("192.168.7.7/32", "192.168.0.1"),
		} {
			if err := n.configure(s); err != nil {
				t.Errorf("%s: %v", s.Address, err)
				return
			}
			addresses, _ := ip("-4", "-o", "addr", "show", "dev", "eth0")
			if strings.Count(addresses, "inet ") != 1 || !strings.Contains(addresses, "inet "+s.Address.String()+" ") && !strings.Contains(addresses, "inet "+s.Address.Addr().String()+"/") {
				t.Errorf("want %s alone, got %s", s.Address, addresses)
			}
			routes, _ := ip("-4", "route", "show", "default")
			if strings.Count(routes, "default") != 1 || !strings.Contains(routes, "via "+s.Gateway.String()+" dev eth0") {
				t.Errorf("want a route by %s alone, got %s", s.Gateway, routes)
			}
			link, _ := ip("link", "show", "dev", "eth0")
			if !strings.Contains(link, s.MAC) || !strings.Contains(link, ",UP") {
				t.Errorf("link: %s", link)
			}
			if n.address() != s.Address.Addr() {
				t.Errorf("own address %s", n.address())
			}
		}
		if err := n.configure(channel.Settings{Device: "eth7", Address: netip.MustParsePrefix("10.0.0.1/8")}); err == nil || !strings.Contains(err.Error(), "eth7") {
			t.Errorf("no such device: %v", err)
		}
	})
}

// connection makes a connection from one address to another within a machine.
func connection(t *testing.T, from, to string) net.Conn {
	t.Helper()
	l, err := net.Listen("tcp", to+":0")
	if err != nil {
		t.Error(err)
		return nil
	}
	defer l.Close()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: time.Minute}
	c, err := d.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Error(err)
		return nil
	}
	peer, err := l.Accept()
	if err != nil {
		t.Error(err)
		return nil
	}
	t.Cleanup(func() {
		_ = c.Close()
		_ = peer.Close()
	})
	return c
}

func TestEndOutside(t *testing.T) {
	inNamespace(t, func(n *network) {
		if err := n.configure(lan("10.1.2.3/24", "10.1.2.1")); err != nil {
			t.Error(err)
			return
		}
		for _, args := range [][]string{{"addr", "add", "10.1.2.9/24", "dev", "eth1"}, {"link", "set", "eth1", "up"}} {
			if out, err := ip(args...); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		}
		loop, own, outside := connection(t, "127.0.0.1", "127.0.0.1"), connection(t, "10.1.2.3", "10.1.2.3"), connection(t, "10.1.2.3", "10.1.2.9")
		if t.Failed() {
			return
		}
		if err := endOutside(); err != nil {
			t.Skipf("this host's kernel does not end connections: %v", err)
		}
		for name, c := range map[string]net.Conn{"loopback": loop, "own address": own} {
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			if _, err := c.Read(make([]byte, 1)); err == nil || !os.IsTimeout(err) {
				t.Errorf("%s: %v, want silence", name, err)
			}
		}
		_ = outside.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := outside.Read(make([]byte, 1)); err == nil || err == io.EOF || os.IsTimeout(err) {
			t.Errorf("outside: %v, want a reset", err)
		}
	})
}
