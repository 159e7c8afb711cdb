package edge

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"syscall"
	"time"

	"hearth/internal/edge/wire"
	"hearth/internal/hearth"
)

// life is what the edge holds of one machine of a sandbox.
type life struct {
	id        hearth.SandboxID
	number    int64
	dialer    Dialer
	timeout   time.Duration
	transport *http.Transport
	links     *wire.Pool // for what needs no transport
	buffers   *buffers
	ctx       context.Context // ends with the life
	end       context.CancelFunc

	mu     sync.Mutex
	over   bool
	active int
	left   time.Time // when the last request left
	conns  map[*conn]struct{}
}

const (
	// Some servers in sandboxes close a connection that was idle for five
	// seconds; a request that is sent at that moment is lost.
	idleTimeout = 4 * time.Second

	maxIdle           = 64        // connections kept per port
	maxResponseHeader = 256 << 10 // bytes; what comes from a guest is hostile
)

var errOver = hearth.Errorf(hearth.NotFound, "the sandbox is gone") // cause of all that fails when a life ends

// enter counts a request in, on the life that its route names.
func (e *Edge) enter(route Route) (*life, *answer) {
	t := target{id: route.Sandbox}
	e.mu.Lock()
	l := e.lives[route.Sandbox]
	if l != nil && l.number > route.Life {
		e.mu.Unlock()
		return nil, notFound(t) // the route is of a machine that is gone
	}
	var old *life
	if l == nil || l.number < route.Life {
		old, l = l, e.newLife(route)
		e.lives[route.Sandbox] = l
	}
	e.mu.Unlock()
	if old != nil {
		old.finish()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.over:
		return nil, notFound(t)
	case l.active >= e.cfg.Connections:
		return nil, tooMany(t, e.cfg.Connections)
	}
	l.active++
	return l, nil
}

func (l *life) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.active--
	l.left = time.Now()
}

// Unused says since when no request to a sandbox's present machine has been under
// way, the zero time if none ever was; false while one is.
func (e *Edge) Unused(id hearth.SandboxID) (since time.Time, unused bool) {
	e.mu.Lock()
	l := e.lives[id]
	e.mu.Unlock()
	if l == nil {
		return time.Time{}, true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.left, l.active == 0
}

func (e *Edge) newLife(route Route) *life {
	l := &life{id: route.Sandbox, number: route.Life, dialer: e.deps.Dialer, timeout: e.cfg.DialTimeout, buffers: e.bulk, conns: make(map[*conn]struct{})}
	l.ctx, l.end = context.WithCancel(context.Background())
	l.transport = &http.Transport{
		DialContext:            l.dial,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    maxIdle,
		IdleConnTimeout:        idleTimeout,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxResponseHeader,
	}
	l.links = wire.New(wire.Config{Idle: idleTimeout, Keep: maxIdle})
	return l
}

// Drop ends the life of a sandbox's machine: its connections are closed, and the
// streams through them break. To be called when the machine dies or is paused.
func (e *Edge) Drop(id hearth.SandboxID) {
	e.mu.Lock()
	l := e.lives[id]
	delete(e.lives, id)
	e.mu.Unlock()
	if l != nil {
		l.finish()
	}
}

// Close ends all lives.
func (e *Edge) Close() {
	e.mu.Lock()
	lives := e.lives
	e.lives = make(map[hearth.SandboxID]*life)
	e.mu.Unlock()
	for _, l := range lives {
		l.finish()
	}
}

func (l *life) finish() {
	l.mu.Lock()
	l.over = true
	conns := l.conns
	l.conns = nil
	l.mu.Unlock()
	l.end()
	for c := range conns {
		_ = c.Conn.Close()
	}
	l.transport.CloseIdleConnections()
	l.links.Close()
}

func (l *life) ended() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.over
}

// dial connects to a port, as http.Transport asks for it.
func (l *life) dial(ctx context.Context, _, address string) (net.Conn, error) {
	_, text, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return nil, err
	}
	return l.connect(ctx, uint16(port))
}

// connect connects to a port. A server that is just starting may not listen yet:
// a refused connection is tried again, for a third of a second in all, so that
// a port which is really closed is reported soon.
func (l *life) connect(ctx context.Context, port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	for _, pause := range [...]time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 0} {
		c, err := l.dialer.DialSandbox(ctx, l.id, port)
		if err == nil {
			return l.track(c)
		}
		if !errors.Is(err, syscall.ECONNREFUSED) || pause == 0 {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
	return nil, errOver // not reached: the last attempt returns
}

// track makes a connection part of the life.
func (l *life) track(c net.Conn) (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		_ = c.Close()
		return nil, errOver
	}
	tracked := &conn{Conn: c, life: l}
	l.conns[tracked] = struct{}{}
	return tracked, nil
}

// conn is a connection of a life.
type conn struct {
	net.Conn
	life *life
}

// ReadFrom writes what it reads, in pieces as large as those of the other
// direction; without it they would be half that or less.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	buf := c.life.buffers.Get()
	defer c.life.buffers.Put(buf)
	return io.CopyBuffer(struct{ io.Writer }{c.Conn}, r, buf)
}

// SyscallConn implements syscall.Conn where the connection is a socket.
func (c *conn) SyscallConn() (syscall.RawConn, error) {
	if socket, ok := c.Conn.(syscall.Conn); ok {
		return socket.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// Close closes the connection and forgets it.
func (c *conn) Close() error {
	c.life.mu.Lock()
	delete(c.life.conns, c)
	c.life.mu.Unlock()
	return c.Conn.Close()
}

// CloseWrite ends one direction, where the connection can do that.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Conn.Close()
}
