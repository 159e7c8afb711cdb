package httpserve

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	maxDrain = 256 << 10              // bytes of a body nobody read, to keep its connection
	farewell = 500 * time.Millisecond // for a client to read the answer before the connection is reset
)

// conn is one connection. Its goroutine serves one request after the other; while a handler runs and
// the request's body has been read, another one, the watch, waits for the client to go away.
type conn struct {
	server *Server
	net    net.Conn
	ctx    context.Context // ends with the connection
	end    context.CancelFunc
	in     source
	r      *bufio.Reader // of in
	w      *bufio.Writer
	taken  bool // hijacked
}

// source is the connection behind the part of it that has been read for a head, or by the watch.
type source struct {
	net   net.Conn
	ahead []byte

	mu     sync.Mutex
	done   chan struct{} // closed when the running watch has ended; nil: none runs
	ending bool          // the watch's end is wanted
}

// Read implements io.Reader. No watch may run.
func (s *source) Read(p []byte) (int, error) {
	if len(s.ahead) > 0 {
		n := copy(p, s.ahead)
		s.ahead = s.ahead[n:]
		return n, nil
	}
	s.ahead = nil
	return s.net.Read(p)
}

// watch reads the connection until unwatch, and calls gone if it ends before that. Of a
// client that sends its next request already it reads one byte and learns nothing more.
func (s *source) watch(gone func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done != nil || s.ending || len(s.ahead) > 0 {
		return
	}
	s.done = make(chan struct{})
	go func(done chan struct{}) {
		defer close(done)
		var one [1]byte
		n, err := s.net.Read(one[:])
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ahead = append(s.ahead, one[:n]...)
		if err != nil && !s.ending {
			gone()
		}
	}(s.done)
}

// unwatch ends the watch and lets none begin until rewatch.
func (s *source) unwatch() {
	s.mu.Lock()
	done := s.done
	s.ending = true
	s.mu.Unlock()
	if done == nil {
		return
	}
	_ = s.net.SetReadDeadline(time.Unix(1, 0))
	<-done
	_ = s.net.SetReadDeadline(time.Time{})
	s.mu.Lock()
	s.done = nil
	s.mu.Unlock()
}

// rewatch allows a watch again.
func (s *source) rewatch() {
	s.mu.Lock()
	s.ending = false
	s.mu.Unlock()
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{server: s, net: nc, in: source{net: nc}}
	c.ctx, c.end = life()
	c.r, c.w = s.buffers(&c.in, nc)
	return c
}

// serve runs the connection to its end.
func (c *conn) serve() {
	defer func() {
		c.end()
		if !c.taken {
			_ = c.net.Close()
			c.server.forget(c, http.StateClosed)
			c.server.reuse(c.r, c.w)
		}
	}()
	for first := true; ; first = false {
		r, err := c.next(first)
		if refused, ok := errors.AsType[*refusal](err); ok {
			c.refuse(refused)
			return
		}
		if err != nil || !c.answer(r) {
			return
		}
	}
}

// next reads a request, its body not.
func (c *conn) next(first bool) (*http.Request, error) {
	if err := c.head(first); err != nil {
		return nil, err
	}
	r, err := http.ReadRequest(c.r)
	if err != nil {
		return nil, bad("the request is malformed")
	}
	if r.Header.Get("Expect") != "" && !expectsContinue(r) {
		return nil, &refusal{http.StatusExpectationFailed, "of expectations there is 100-continue alone"}
	}
	r.RemoteAddr = c.net.RemoteAddr().String()
	return r, nil
}

func expectsContinue(r *http.Request) bool {
	return strings.EqualFold(r.Header.Get("Expect"), "100-continue")
}

// head waits for a whole head and checks it. It is the next that r reads then.
func (c *conn) head(first bool) error {
	patience, begun := c.server.HeadTimeout, first || c.r.Buffered() > 0 || len(c.in.ahead) > 0
	if !begun {
		patience = c.server.IdleTimeout
	}
	_ = c.net.SetReadDeadline(time.Now().Add(patience))
	for c.r.Buffered() < c.r.Size() {
		got, _ := c.r.Peek(c.r.Buffered())
		if n := endOfHead(got); n > 0 {
			_ = c.net.SetReadDeadline(time.Time{})
			return check(got[:n])
		}
		if len(got) > 0 && !begun {
			begun = true
			_ = c.net.SetReadDeadline(time.Now().Add(c.server.HeadTimeout))
		}
		if _, err := c.r.Peek(len(got) + 1); err != nil {
			return err
		}
	}
	return c.largeHead()
}

// largeHead does the same for a head that is larger than what r holds. All that is read stands in front of in then.
func (c *conn) largeHead() error {
	got, _ := c.r.Peek(c.r.Buffered())
	all := append(make([]byte, 0, 4*len(got)), got...)
	c.r.Reset(&c.in)
	for {
		if n := endOfHead(all[:min(len(all), c.server.MaxHead)]); n > 0 {
			c.in.ahead = append(all, c.in.ahead...)
			_ = c.net.SetReadDeadline(time.Time{})
			return check(all[:n])
		}
		if len(all) >= c.server.MaxHead {
			return &refusal{http.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("the head is larger than %d bytes", c.server.MaxHead)}
		}
		all = slices.Grow(all, len(got))
		n, err := c.in.Read(all[len(all):cap(all)])
		all = all[:len(all)+n]
		if err != nil {
			return err
		}
	}
}

// answer has a request served and says whether another may follow.
func (c *conn) answer(r *http.Request) (goOn bool) {
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	w := &response{conn: c, header: http.Header{}, length: -1, cancel: cancel, head: r.Method == http.MethodHead,
		old: !r.ProtoAtLeast(1, 1), last: r.Close || !r.ProtoAtLeast(1, 1)}
	b := &body{from: r.Body, w: w, waits: expectsContinue(r) && r.ProtoAtLeast(1, 1) && r.Body != http.NoBody}
	w.request = b
	c.in.rewatch()
	if r.Body == http.NoBody {
		b.ended = true
		c.in.watch(cancel)
	} else {
		r.Body = b
	}
	defer c.in.unwatch()
	defer func() {
		if p := recover(); p != nil {
			if p != http.ErrAbortHandler { //nolint:errorlint // the very value, as net/http has it
				c.server.Log.Error("a handler panicked", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			}
			goOn = false
		}
	}()
	c.server.Handler.ServeHTTP(w, r.WithContext(ctx))
	if c.taken {
		return false
	}
	err := w.finish()
	if !b.close() && err == nil {
		c.in.unwatch()
		c.linger()
		return false
	}
	return err == nil && !w.last
}

// refuse answers a request that was not understood.
func (c *conn) refuse(r *refusal) {
	text := fmt.Sprintf("%d %s: %s", r.status, http.StatusText(r.status), r.why)
	_ = c.net.SetDeadline(c.lastMoment())
	fmt.Fprintf(c.w, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		r.status, http.StatusText(r.status), len(text), text)
	if c.w.Flush() == nil {
		c.linger()
	}
}

func (c *conn) lastMoment() time.Time {
	return time.Now().Add(max(c.server.farewell, farewell))
}

// linger gives the client time to read an answer: closing a connection that has unread bytes
// resets it, and the answer is lost.
func (c *conn) linger() {
	if half, ok := c.net.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		return
	}
	_ = c.net.SetReadDeadline(c.lastMoment())
	_, _ = io.Copy(io.Discard, io.LimitReader(c.net, maxDrain))
}

// take gives the connection away.
func (c *conn) take() (net.Conn, *bufio.ReadWriter) {
	c.in.unwatch()
	c.taken = true
	c.server.forget(c, http.StateHijacked)
	return c.net, bufio.NewReadWriter(c.r, c.w)
}
