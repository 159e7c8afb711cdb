// Package wire carries requests without a body to HTTP/1 servers in sandboxes and
// brings the answers back, all in the goroutine that asks. http.Transport has two
// more goroutines per connection, and each hand-over between them may wake a
// thread of its own: that is most of what it costs to pass a small request on.
//
// What it does not do goes through http.Transport: bodies, which may have to be
// sent while the answer is already coming, upgrades, and methods that may not be
// sent twice. Reading and writing HTTP is net/http's there and here.
package wire

import (
	"bufio"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Config says how a Pool behaves. All fields are needed.
type Config struct {
	Dial   func(ctx context.Context, network, address string) (net.Conn, error)
	Idle   time.Duration // how long a connection is kept that nobody uses
	Keep   int           // connections kept per address
	Header int64         // most bytes of an answer's head, informational answers included
}

// Pool keeps connections for one request after the other. It is safe for
// concurrent use.
type Pool struct {
	cfg Config

	mu      sync.Mutex
	idle    map[string][]*link // by address, the one used last at the end
	closed  bool
	sweeper *time.Timer // set while there are idle connections
}

// New returns a Pool.
func New(cfg Config) *Pool { return &Pool{cfg: cfg, idle: make(map[string][]*link)} }

// Carries reports whether a request is of the kind that a Pool takes: one without
// a body, which may be sent again if a connection turns out to be dead.
func Carries(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return (r.Body == nil || r.Body == http.NoBody) && r.Header.Get("Upgrade") == "" && r.Header.Get("Expect") == ""
	}
	return false
}

var (
	errSwitched = errors.New("wire: the server changed the protocol without being asked")
	errTooLong  = errors.New("wire: the head of the answer is too long")
	errClosed   = errors.New("wire: the body of the answer was closed")
)

// RoundTrip implements http.RoundTripper for requests that Carries. The answer's
// body has to be read to its end or closed, as ever.
func (p *Pool) RoundTrip(r *http.Request) (*http.Response, error) {
	l := p.take(r.URL.Host)
	for {
		used := l != nil
		if !used {
			conn, err := p.cfg.Dial(r.Context(), "tcp", r.URL.Host)
			if err != nil {
				return nil, err
			}
			l = p.newLink(r.URL.Host, conn)
		}
		resp, err := l.exchange(r)
		if err == nil {
			return resp, nil
		}
		l.drop()
		if cause := context.Cause(r.Context()); cause != nil {
			return nil, cause
		}
		if !used || l.heard {
			return nil, err
		}
		l = nil // the server had closed it; a new one says how it really is
	}
}

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
			_ = l.conn.Close()
		}
	}
}

// take returns an idle connection, nil if there is none that lives.
func (p *Pool) take(address string) *link {
	for {
		p.mu.Lock()
		links := p.idle[address]
		if len(links) == 0 {
			p.mu.Unlock()
			return nil
		}
		l := links[len(links)-1]
		p.idle[address] = slices.Delete(links, len(links)-1, len(links))
		p.mu.Unlock()
		if quiet(l.conn) {
			return l
		}
		_ = l.conn.Close()
	}
}

// give keeps a connection for the next request.
func (p *Pool) give(l *link) {
	p.mu.Lock()
	keep := !p.closed && len(p.idle[l.address]) < p.cfg.Keep
	if keep {
		l.since = time.Now()
		p.idle[l.address] = append(p.idle[l.address], l)
		if p.sweeper == nil {
			p.sweeper = time.AfterFunc(p.cfg.Idle, p.sweep)
		}
	}
	p.mu.Unlock()
	if !keep {
		_ = l.conn.Close()
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
	for address, links := range p.idle {
		links = slices.DeleteFunc(links, func(l *link) bool {
			left := p.cfg.Idle - now.Sub(l.since)
			if left <= 0 {
				_ = l.conn.Close()
				return true
			}
			if next < 0 || left < next {
				next = left
			}
			return false
		})
		if p.idle[address] = links; len(links) == 0 {
			delete(p.idle, address)
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

// link is a connection to a server. It belongs to the pool or to one request.
type link struct {
	pool    *Pool
	address string
	conn    net.Conn
	r       *bufio.Reader
	w       *bufio.Writer
	left    int64 // bytes that may be read before the body
	heard   bool  // something came since the request was sent
	stop    func() bool
	since   time.Time // idle since
}

func (p *Pool) newLink(address string, conn net.Conn) *link {
	l := &link{pool: p, address: address, conn: conn}
	l.r, l.w = bufio.NewReader(l), bufio.NewWriter(conn)
	return l
}

// Read implements io.Reader for the link's own buffer.
func (l *link) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, errTooLong
	}
	if int64(len(p)) > l.left {
		p = p[:l.left]
	}
	n, err := l.conn.Read(p)
	l.left -= int64(n)
	l.heard = l.heard || n > 0
	return n, err
}

// exchange sends a request and returns the answer to it. After an error the link
// is good for nothing.
func (l *link) exchange(r *http.Request) (*http.Response, error) {
	l.left, l.heard = l.pool.cfg.Header, false
	l.stop = context.AfterFunc(r.Context(), func() { _ = l.conn.Close() })
	if err := r.Write(l.w); err != nil {
		return nil, err
	}
	if err := l.w.Flush(); err != nil {
		return nil, err
	}
	resp, err := l.answer(r)
	if err != nil {
		return nil, err
	}
	l.left = math.MaxInt64
	if resp.Body == http.NoBody {
		l.release(resp)
		return resp, nil
	}
	resp.Body = &body{Reader: resp.Body, link: l, resp: resp}
	return resp, nil
}

// answer reads the head of the answer, and those of the ones before it that are
// for information only.
func (l *link) answer(r *http.Request) (*http.Response, error) {
	for {
		resp, err := http.ReadResponse(l.r, r)
		switch {
		case err != nil:
			return nil, err
		case resp.StatusCode == http.StatusSwitchingProtocols:
			return nil, errSwitched
		case resp.StatusCode >= 200:
			return resp, nil
		}
		if trace := httptrace.ContextClientTrace(r.Context()); trace != nil && trace.Got1xxResponse != nil {
			if err := trace.Got1xxResponse(resp.StatusCode, textproto.MIMEHeader(resp.Header)); err != nil {
				return nil, err
			}
		}
	}
}

// release gives a connection whose answer was read back to the pool, if another
// request may follow on it.
func (l *link) release(resp *http.Response) {
	if !l.stop() || resp.Close || l.r.Buffered() > 0 {
		_ = l.conn.Close()
		return
	}
	l.pool.give(l)
}

func (l *link) drop() {
	l.stop()
	_ = l.conn.Close()
}

// body is the body of an answer.
type body struct {
	io.Reader
	link *link
	resp *http.Response
	over error // what Read says when the link is not the body's any more
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if b.over != nil {
		return 0, b.over
	}
	n, err := b.Reader.Read(p)
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		b.over = io.EOF
		b.link.release(b.resp)
	default:
		b.over = err
		b.link.drop()
	}
	return n, err
}

// Close implements io.Closer. What was not read is not waited for.
func (b *body) Close() error {
	if b.over == nil {
		b.over = errClosed
		b.link.drop()
	}
	return nil
}
