// Package httpserve serves an http.Handler over HTTP/1.1, for a program in which net/http's own server
// is too large: http.Server brings TLS and HTTP/2's ways into whatever uses it, a tenth
// of the guest daemon. Requests are read by http.ReadRequest, after a check of the head that
// is stricter than net/http's: what two programs could take for different messages is refused.
//
// It does what net/http's server does for HTTP/1.1 with these differences: a connection of HTTP/1.0
// ends with its answer, informational answers are not sent except 100 Continue, nothing but Flush and Hijack works in an
// http.ResponseController, and there is no waiting for handlers when it closes: their contexts end.
package httpserve

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Server serves a handler. Its fields must not change once it serves.
type Server struct {
	Handler http.Handler
	// HeadTimeout bounds the time in which a request's head must come; IdleTimeout the
	// time between two requests. Both must be positive.
	HeadTimeout, IdleTimeout time.Duration
	// MaxHead bounds the bytes of a request's head.
	MaxHead int
	// ConnState is told of each connection's StateNew and then of either StateHijacked or StateClosed. May be nil.
	ConnState func(net.Conn, http.ConnState)
	// Log takes the panics of handlers, which end a connection and nothing else.
	Log *slog.Logger

	farewell time.Duration // as the constant; longer in tests, where nothing may depend on it

	mu        sync.Mutex
	closed    bool
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}

	readers, writers sync.Pool // of *bufio.Reader and *bufio.Writer, of ended connections
}

const maxAcceptPause = time.Second

// Serve answers the connections of l until Close, which makes it return
// http.ErrServerClosed, or until l fails.
func (s *Server) Serve(l net.Listener) error {
	// What a listener fails with that does not end it: a client that has gone, or too little of something.
	passing := []error{syscall.ECONNABORTED, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM}
	defer l.Close()
	if !s.listens(l) {
		return http.ErrServerClosed
	}
	pause := 5 * time.Millisecond
	for {
		nc, err := l.Accept()
		if err == nil {
			pause = 5 * time.Millisecond
			s.start(nc)
			continue
		}
		if s.ends() {
			return http.ErrServerClosed
		}
		if !slices.ContainsFunc(passing, func(e error) bool { return errors.Is(err, e) }) {
			return err
		}
		time.Sleep(pause)
		pause = min(2*pause, maxAcceptPause)
	}
}

// Close ends all listeners and connections at once, but those that were hijacked.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	var errs []error
	for l := range s.listeners {
		errs = append(errs, l.Close())
	}
	for c := range s.conns {
		c.end()
		_ = c.net.Close()
	}
	s.listeners = nil
	return errors.Join(errs...)
}

func (s *Server) ends() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func (s *Server) listens(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if s.listeners == nil {
		s.listeners, s.conns = map[net.Listener]struct{}{}, map[*conn]struct{}{}
	}
	s.listeners[l] = struct{}{}
	return true
}

func (s *Server) start(nc net.Conn) {
	c := newConn(s, nc)
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.conns[c] = struct{}{}
	}
	s.mu.Unlock()
	if closed {
		c.end()
		_ = nc.Close()
		return
	}
	s.tell(nc, http.StateNew)
	go c.serve()
}

func (s *Server) tell(nc net.Conn, state http.ConnState) {
	if s.ConnState != nil {
		s.ConnState(nc, state)
	}
}

// forget is called once for each connection.
func (s *Server) forget(c *conn, state http.ConnState) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.tell(c.net, state)
}

// buffers returns a connection's buffers.
func (s *Server) buffers(from io.Reader, to io.Writer) (*bufio.Reader, *bufio.Writer) {
	r, ok := s.readers.Get().(*bufio.Reader)
	if ok {
		r.Reset(from)
	} else {
		r = bufio.NewReader(from)
	}
	w, ok := s.writers.Get().(*bufio.Writer)
	if ok {
		w.Reset(to)
	} else {
		w = bufio.NewWriter(to)
	}
	return r, w
}

// reuse takes the buffers of a connection that has ended.
func (s *Server) reuse(r *bufio.Reader, w *bufio.Writer) {
	r.Reset(nil)
	w.Reset(nil)
	s.readers.Put(r)
	s.writers.Put(w)
}

// life is the context under which a connection's requests are served.
func life() (context.Context, context.CancelFunc) { return context.WithCancel(context.Background()) }
