package wire

import (
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/leaktest"
	"hearth/internal/tcptest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// pair returns a link to a port and the server's end of it.
func pair(t *testing.T, port uint16) (*Link, net.Conn) {
	t.Helper()
	near, far := tcptest.Pair(t)
	return NewLink(port, near), far
}

// closed waits until the other end of a connection is closed.
func closed(t *testing.T, conn net.Conn) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Fatalf("read %d bytes, %v", n, err)
	}
}

// arrived waits until there is something to read, or the end.
func arrived(t *testing.T, l *Link) {
	t.Helper()
	rc, err := l.Conn.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = rc.Read(func(fd uintptr) bool {
		_, _, e := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		return e != syscall.EAGAIN
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestPool(t *testing.T) {
	p := New(Config{Idle: time.Minute, Keep: 2})
	defer p.Close()
	if p.Take(80) != nil {
		t.Fatal("a link out of nothing")
	}
	one, _ := pair(t, 80)
	two, _ := pair(t, 80)
	three, end := pair(t, 80)
	other, _ := pair(t, 81)
	for _, l := range []*Link{one, two, three, other} {
		p.Give(l)
	}
	closed(t, end) // more than are kept
	if got := p.Take(81); got != other {
		t.Error("the other port's link is gone")
	}
	if a, b, c := p.Take(80), p.Take(80), p.Take(80); a != two || b != one || c != nil {
		t.Error("links are not taken in the order of their last use")
	}
}

// TestDeadLinks are not taken: one whose server closed it, and one on which
// something came that nobody had asked for.
func TestDeadLinks(t *testing.T) {
	p := New(Config{Idle: time.Minute, Keep: 2})
	defer p.Close()
	ended, end := pair(t, 80)
	p.Give(ended)
	end.Close()
	chatty, end := pair(t, 81)
	p.Give(chatty)
	if _, err := end.Write([]byte("HTTP/1.1 200 OK\r\n")); err != nil {
		t.Fatal(err)
	}
	for port, l := range []*Link{ended, chatty} {
		arrived(t, l)
		if l := p.Take(80 + uint16(port)); l != nil {
			t.Errorf("port %d: a dead link", 80+port)
		}
	}
	closed(t, end)
}

func TestClosedPool(t *testing.T) {
	p := New(Config{Idle: time.Minute, Keep: 2})
	kept, end1 := pair(t, 80)
	used, end2 := pair(t, 80)
	p.Give(kept)
	p.Close()
	p.Give(used)
	closed(t, end1)
	closed(t, end2)
	if p.Take(80) != nil {
		t.Error("a link out of a closed pool")
	}
}

func TestIdleLinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(Config{Idle: 4 * time.Second, Keep: 2})
		defer p.Close()
		a, _ := net.Pipe()
		b, _ := net.Pipe()
		p.Give(NewLink(80, a))
		time.Sleep(3 * time.Second)
		p.Give(NewLink(81, b))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if p.Take(80) != nil {
			t.Error("a link was kept for too long")
		}
		if p.Take(81) == nil {
			t.Error("a link was not kept")
		}
	})
}
