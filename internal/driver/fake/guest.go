package fake

import (
	"errors"
	"maps"
	"net"
	"net/http"
	"sync"
	"sync/atomic"

	"hearth/internal/driver"
)

// Guest is the inside of a machine, as its Program sees it. What is put with
// Put is its memory: it is in checkpoints, everything else is not.
type Guest struct {
	m        *machine
	restored bool

	mu     sync.Mutex
	memory map[string]string
	ports  map[uint16]func(net.Conn)
}

// ID is the machine's ID.
func (g *Guest) ID() string { return g.m.spec.ID }

// Spec is what the machine was started from.
func (g *Guest) Spec() driver.Spec { return g.m.spec }

// Restored reports whether the guest came from a checkpoint.
func (g *Guest) Restored() bool { return g.restored }

// Put writes one word of the guest's memory.
func (g *Guest) Put(key, value string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.memory[key] = value
}

// Load reads one; it is empty when it was never put.
func (g *Guest) Load(key string) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.memory[key]
}

// Listen opens a port: handle is called with every connection, in a goroutine
// of its own, and the connection is closed when it returns. Nil closes the port.
func (g *Guest) Listen(port uint16, handle func(net.Conn)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ports[port] = handle
}

// ServeHTTP opens a port on which h answers HTTP/1.1. A handler may hijack.
func (g *Guest) ServeHTTP(port uint16, h http.Handler) {
	g.Listen(port, func(c net.Conn) {
		l := &oneConn{Conn: c, closed: make(chan struct{})}
		_ = (&http.Server{Handler: h}).Serve(listener{l})
		<-l.closed
	})
}

// End makes the guest die of its own accord.
func (g *Guest) End(exit driver.Exit) { g.m.die(exit) }

func (g *Guest) handler(port uint16) func(net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ports[port]
}

// snapshot copies the memory; a disk-only host keeps the keys that start with "/".
func (g *Guest) snapshot(diskOnly bool) map[string]string {
	g.mu.Lock()
	defer g.mu.Unlock()
	memory := maps.Clone(g.memory)
	if diskOnly {
		maps.DeleteFunc(memory, func(k, _ string) bool { return k == "" || k[0] != '/' })
	}
	return memory
}

// oneConn is a connection that tells when it was closed, and is accepted once.
type oneConn struct {
	net.Conn
	accepted atomic.Bool
	once     sync.Once
	closed   chan struct{}
}

func (l *oneConn) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Conn.Close()
}

type listener struct{ conn *oneConn }

// Accept returns the connection, and an error from then on: the server that
// calls it goes on serving what it has.
func (l listener) Accept() (net.Conn, error) {
	if l.conn.accepted.Swap(true) {
		return nil, errors.New("no second connection")
	}
	return l.conn, nil
}

func (l listener) Close() error   { return nil }
func (l listener) Addr() net.Addr { return l.conn.LocalAddr() }
