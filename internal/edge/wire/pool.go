package wire

import (
	"bytes"
	"errors"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Config says how a Pool behaves. All fields are needed.
type Config struct {
	Idle time.Duration // how long a connection is kept that nobody uses
	Keep int           // connections kept per port
}

// Pool keeps the connections to one sandbox for one request after the other. It is safe for
// concurrent use.
type Pool struct {
	cfg Config

	mu      sync.Mutex
	idle    map[uint16][]*Link // by port, the one used last at the end
	closed  bool
	sweeper *time.Timer // set while there are idle connections
}

// New returns a Pool.
func New(cfg Config) *Pool { return &Pool{cfg: cfg, idle: make(map[uint16][]*Link)} }

// Close closes the connections that nobody uses. Those in use are closed when
// they are given back, or by their own dialer.
func (p *Pool) Close() {
	p.mu.Lock()
	idle := p.idle
	p.idle, p.closed = nil, true
	if p.sweeper != nil {
		p.sweeper.Stop()
	}
	p.mu.Unlock()
	for _, links := range idle {
		for _, l := range links {
			_ = l.Close()
		}
	}
}

// Take returns an idle connection to a port, nil if there is none that lives.
func (p *Pool) Take(port uint16) *Link {
	for {
		p.mu.Lock()
		links := p.idle[port]
		if len(links) == 0 {
			p.mu.Unlock()
			return nil
		}
		l := links[len(links)-1]
		p.idle[port] = slices.Delete(links, len(links)-1, len(links))
		p.mu.Unlock()
		if quiet(l.Conn) {
			return l
		}
		_ = l.Close()
	}
}

// Give keeps a connection for the next request.
func (p *Pool) Give(l *Link) {
	p.mu.Lock()
	if cap(l.in) > head {
		l.in = make([]byte, 0, head)
	}
	keep := !p.closed && len(p.idle[l.port]) < p.cfg.Keep
	if keep {
		l.since = time.Now()
		p.idle[l.port] = append(p.idle[l.port], l)
		if p.sweeper == nil {
			p.sweeper = time.AfterFunc(p.cfg.Idle, p.sweep)
		}
	}
	p.mu.Unlock()
	if !keep {
		_ = l.Close()
	}
}

// sweep closes what was idle for too long. There is one timer for all, which is
// not touched while requests come and go: setting one may wake a thread.
func (p *Pool) sweep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	now := time.Now()
	next := time.Duration(-1)
	for port, links := range p.idle {
		links = slices.DeleteFunc(links, func(l *Link) bool {
			left := p.cfg.Idle - now.Sub(l.since)
			if left <= 0 {
				_ = l.Close()
				return true
			}
			if next < 0 || left < next {
				next = left
			}
			return false
		})
		if p.idle[port] = links; len(links) == 0 {
			delete(p.idle, port)
		}
	}
	if p.sweeper = nil; next >= 0 {
		p.sweeper = time.AfterFunc(next, p.sweep)
	}
}

// quiet reports whether nothing came from a connection that is idle: no end, and
// no answer to what nobody asked. Of a connection that cannot be looked at it is
// not known; there a request that finds it dead is sent again.
func quiet(conn net.Conn) bool {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return true
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return errors.Is(err, errors.ErrUnsupported)
	}
	idle := false
	err = rc.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, e := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		idle = errors.Is(e, syscall.EAGAIN)
		return true
	})
	return err == nil && idle
}

// head is how many bytes of an answer are read at once while its head is looked for.
const head = 4 << 10

// Link is a connection to a server. It belongs to a Pool or to one request.
type Link struct {
	net.Conn
	Heard bool // something came since the last request was sent
	port  uint16
	since time.Time // idle since
	in    []byte    // read, and not yet taken
}

// NewLink returns the link of a connection to a port.
func NewLink(port uint16, conn net.Conn) *Link {
	return &Link{Conn: conn, port: port, in: make([]byte, 0, head)}
}

// Send sends a request.
func (l *Link) Send(request []byte) error {
	l.Heard, l.in = false, l.in[:0]
	_, err := l.Write(request)
	return err
}

// Receive reads the head of the answer to a request, of at most so many bytes, and
// returns what was read behind it. All that stands in the answer is good until the
// next request is sent. An odd answer is left unread.
func (l *Link) Receive(a *Answer, to *Request, most int) (behind []byte, err error) {
	for {
		if len(l.in) == cap(l.in) {
			if len(l.in) >= most {
				return nil, ErrOdd
			}
			l.in = slices.Grow(l.in, len(l.in))
		}
		n, err := l.Conn.Read(l.in[len(l.in):cap(l.in)])
		lines := bytes.IndexByte(l.in[len(l.in):len(l.in)+n], '\n') >= 0
		l.in = l.in[:len(l.in)+n]
		l.Heard = l.Heard || n > 0
		if lines { // else the head cannot have ended
			if size, err := a.Parse(l.in, to); size > 0 || err != nil {
				return l.in[size:], err
			}
		}
		if err != nil {
			return nil, err
		}
	}
}

// Unread returns what was read and belongs to an odd answer.
func (l *Link) Unread() []byte { return l.in }
