package channel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/hearth"
	"hearth/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// testGuest is a guest whose ports are functions.
type testGuest struct {
	ports map[uint16]func(net.Conn)
	ended chan struct{}
	told  chan struct{}
	exit  Exit
	slow  time.Duration // for which the first settings take effect

	mu       sync.Mutex
	settings []Settings
	settled  int
	conns    sync.WaitGroup
}

func newTestGuest() *testGuest {
	return &testGuest{ports: map[uint16]func(net.Conn){}, ended: make(chan struct{}), told: make(chan struct{}, 8)}
}

func (g *testGuest) Dial(_ context.Context, port uint16) (net.Conn, error) {
	serve := g.ports[port]
	if serve == nil {
		return nil, syscall.ECONNREFUSED
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, err
	}
	in, err := l.Accept()
	if err != nil {
		return nil, err
	}
	g.conns.Go(func() {
		defer in.Close()
		serve(in)
	})
	return c, nil
}

func (g *testGuest) Configure(s Settings) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s.Hostname == "bad" {
		return errors.New("no such name\x00")
	}
	if len(g.settings) == 0 {
		time.Sleep(g.slow)
	}
	g.settings = append(g.settings, s)
	return nil
}

func (g *testGuest) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-g.ended:
		return g.exit, nil
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
}

func (g *testGuest) Settle(context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.settled++
	if g.settled > 1 {
		return errors.New("the disk is gone")
	}
	return nil
}

func (g *testGuest) Told() { g.told <- struct{}{} }

// pair returns two ends of a Unix socket.
func pair(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

// serve runs the guest's end on conn.
func serve(t *testing.T, conn net.Conn, g Guest) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = Serve(conn, g)
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
}

func settings() Settings {
	return Settings{Now: time.Now(), Seed: bytes.Repeat([]byte{7}, 32), Hostname: "h"}
}

func open(t *testing.T, conn net.Conn) *Channel {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := Open(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// connect returns a configured channel to g.
func connect(t *testing.T, g *testGuest) *Channel {
	t.Helper()
	a, b := pair(t)
	serve(t, b, g)
	c := open(t, a)
	if err := c.Configure(t.Context(), settings()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.conns.Wait)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func echo(c net.Conn) {
	_, _ = io.Copy(c, c)
	_ = c.(*net.TCPConn).CloseWrite()
}

func dial(t *testing.T, c *Channel, port uint16) *stream {
	t.Helper()
	conn, err := c.Dial(t.Context(), port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn.(*stream)
}

// Settle comes back when the guest has settled, with its word when it could not;
// not before the guest was configured.
func TestSettle(t *testing.T) {
	g := newTestGuest()
	c := connect(t, g)
	if err := c.Settle(t.Context()); err != nil || g.settled != 1 {
		t.Errorf("%v, settled %d times", err, g.settled)
	}
	if err := c.Settle(t.Context()); hearth.KindOf(err) != hearth.Unavailable || !strings.Contains(err.Error(), "the disk is gone") {
		t.Errorf("the guest could not: %v", err)
	}
	a, b := pair(t)
	serve(t, b, g)
	if err := open(t, a).Settle(t.Context()); hearth.KindOf(err) != hearth.FailedPrecondition {
		t.Errorf("before it was configured: %v", err)
	}
}

func TestEchoWithHalfClose(t *testing.T) {
	g := newTestGuest()
	g.ports[1] = echo
	c := connect(t, g)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			conn := dial(t, c, 1)
			defer conn.Close()
			sent := make([]byte, 3<<20+rand.IntN(1000))
			for i := range sent {
				sent[i] = byte(rand.Uint32())
			}
			go func() {
				_, _ = conn.Write(sent)
				_ = conn.CloseWrite()
			}()
			got, err := io.ReadAll(conn)
			if err != nil || sha256.Sum256(got) != sha256.Sum256(sent) {
				t.Errorf("got %d bytes of %d, %v", len(got), len(sent), err)
			}
		})
	}
	all.Wait()
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if n := len(c.s.streams); n != 0 {
		t.Errorf("%d streams are left", n)
	}
}

func TestDialErrors(t *testing.T) {
	g := newTestGuest()
	a, b := pair(t)
	serve(t, b, g)
	c := open(t, a)
	if _, err := c.Dial(t.Context(), 1); hearth.KindOf(err) != hearth.FailedPrecondition {
		t.Errorf("before Configure: %v", err)
	}
	bad := settings()
	bad.Hostname = "bad"
	if err := c.Configure(t.Context(), bad); err == nil || bytes.ContainsRune([]byte(err.Error()), 0) {
		t.Errorf("Configure refused by the guest: %q", err)
	}
	if _, err := c.Dial(t.Context(), 1); hearth.KindOf(err) != hearth.FailedPrecondition {
		t.Errorf("after a failed Configure: %v", err)
	}
	if err := c.Configure(t.Context(), Settings{}); hearth.KindOf(err) != hearth.InvalidArgument {
		t.Errorf("empty settings: %v", err)
	}
	if err := c.Configure(t.Context(), settings()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Dial(t.Context(), 1); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nothing listens: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Dial(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	_ = c.Close()
	<-c.Done()
	if _, err := c.Dial(t.Context(), 1); hearth.KindOf(err) != hearth.Unavailable {
		t.Errorf("after Close: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// TestClosedConnectionIsDelivered: what was written before Close arrives, and
// the guest's program sees the end.
func TestClosedConnectionIsDelivered(t *testing.T) {
	g := newTestGuest()
	got := make(chan []byte, 1)
	g.ports[1] = func(c net.Conn) {
		all, _ := io.ReadAll(c)
		got <- all
	}
	c := connect(t, g)
	conn := dial(t, c, 1)
	if _, err := conn.Write([]byte("last words")); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if s := string(<-got); s != "last words" {
		t.Errorf("the guest got %q", s)
	}
}

// TestResetIsSeen: a program that dies with unread data resets its connection.
func TestResetIsSeen(t *testing.T) {
	g := newTestGuest()
	g.ports[1] = func(c net.Conn) {
		_, _ = io.ReadFull(c, make([]byte, 1))
		_ = c.(*net.TCPConn).SetLinger(0)
	}
	c := connect(t, g)
	conn := dial(t, c, 1)
	_, _ = conn.Write([]byte("xyz"))
	if _, err := io.ReadAll(conn); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v", err)
	}
	for range 100 { // the reset reaches the sending side a little later
		if _, err := conn.Write(make([]byte, 64<<10)); err != nil {
			if !errors.Is(err, syscall.EPIPE) {
				t.Errorf("write: %v", err)
			}
			return
		}
	}
	t.Error("writes go on after the reset")
}

// TestBackPressure: a program that does not read stops its writer and no other.
func TestBackPressure(t *testing.T) {
	g := newTestGuest()
	release := make(chan struct{})
	g.ports[1] = func(c net.Conn) {
		<-release
		_, _ = io.Copy(io.Discard, c)
	}
	g.ports[2] = echo
	c := connect(t, g)
	stuck, much := dial(t, c, 1), make([]byte, 64<<20)
	var n int
	for wait := 300 * time.Millisecond; n == 0 && wait < time.Minute; wait *= 2 { // which may be over before it begins
		var err error
		_ = stuck.SetWriteDeadline(time.Now().Add(wait))
		if n, err = stuck.Write(much); !errors.Is(err, errDeadline) {
			t.Fatalf("wrote %d, %v", n, err)
		}
	}
	if n == 0 || n > 32<<20 {
		t.Errorf("wrote %d", n)
	}
	lively := dial(t, c, 2)
	if _, err := lively.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(lively, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	close(release)
	_ = stuck.SetWriteDeadline(time.Time{})
	if _, err := stuck.Write(make([]byte, 8<<20)); err != nil {
		t.Errorf("after the reader woke up: %v", err)
	}
}

func TestReadDeadline(t *testing.T) {
	g := newTestGuest()
	g.ports[1] = echo
	c := connect(t, g)
	conn := dial(t, c, 1)
	_ = conn.SetReadDeadline(time.Now().Add(-time.Second))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, errDeadline) {
		t.Errorf("read: %v", err)
	}
	_ = conn.SetReadDeadline(time.Time{})
	_, _ = conn.Write([]byte("x"))
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Errorf("read after the deadline was taken away: %v", err)
	}
}

func TestWait(t *testing.T) {
	g := newTestGuest()
	g.exit = Exit{Code: 137, Signal: 9, OOM: true, Reason: "bad\x1b[2Jtext"}
	c := connect(t, g)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Wait(ctx); hearth.KindOf(err) != hearth.DeadlineExceeded {
		t.Errorf("while it runs: %v", err)
	}
	close(g.ended)
	got, err := c.Wait(t.Context())
	want := g.exit
	want.Reason = "bad?[2Jtext"
	if err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	<-g.told
}

// TestTheTimeIsToldAgain: a guest that took its time is not left with a clock that
// is behind by it.
func TestTheTimeIsToldAgain(t *testing.T) {
	for slow, times := range map[time.Duration]int{0: 1, clockLag - time.Millisecond: 1, clockLag: 2} {
		synctest.Test(t, func(t *testing.T) {
			host, guest := net.Pipe()
			g := newTestGuest()
			g.slow = slow
			serve(t, guest, g)
			c := open(t, host)
			began := time.Now()
			if err := c.Configure(t.Context(), settings()); err != nil {
				t.Fatal(err)
			}
			if len(g.settings) != times {
				t.Fatalf("after %s: told %d times, want %d", slow, len(g.settings), times)
			}
			if last := g.settings[times-1].Now; times > 1 && last.Sub(began) < slow {
				t.Errorf("it was told %s, %s later", last.Sub(began), slow)
			}
		})
	}
}

// TestManyStreams: a session has a limit, and it is the limit of those open.
func TestManyStreams(t *testing.T) {
	g := newTestGuest()
	g.ports[1] = func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }
	c := connect(t, g)
	var conns []net.Conn
	for range maxStreams {
		conns = append(conns, dial(t, c, 1))
	}
	if _, err := c.Dial(t.Context(), 1); hearth.KindOf(err) != hearth.ResourceExhausted {
		t.Errorf("one more: %v", err)
	}
	for _, conn := range conns {
		_ = conn.Close()
	}
	dial(t, c, 1)
}
