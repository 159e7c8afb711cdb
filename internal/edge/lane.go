package edge

import (
	"context"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// This file and visit.go pass on the requests that are plain (package wire) without
// net/http, which takes longer to read and write two messages than the kernel to
// carry them.
//
// A Lane is the listener of an http.Server. While the server waits for a request on
// one of its connections, the lane looks at what comes, passes it on while it may, and
// lets the server read the first request that is odd, is refused, goes wrong or is not
// for a sandbox. If that one was sent to the sandbox already, ServeHTTP finds out what
// came of it and takes it from there. So there is one place that refuses and answers,
// and the lane only passes on what that place would have passed on, too.
//
// A request that is plain but the server's is given to it to its last byte and no
// further, so that the next one can be looked at again. What is odd may end anywhere:
// from there on the connection is the server's.

// LaneTimes bounds the time that a client takes, as the http.Server behind does.
type LaneTimes struct {
	Head time.Duration // from the first byte of a request's head to its last
	Idle time.Duration // between two requests
}

// Lane is the listener. Its methods are safe for concurrent use.
type Lane struct {
	net.Listener
	edge  *Edge
	times LaneTimes

	mu     sync.Mutex
	visits map[*visit]struct{}
	closed atomic.Bool
	empty  chan struct{} // closed when the last visit of a closed lane has ended
	clock  *time.Timer   // set while there are visits
}

// NewLane returns the lane of a listener.
func (e *Edge) NewLane(l net.Listener, times LaneTimes) *Lane {
	return &Lane{Listener: l, edge: e, times: times, visits: make(map[*visit]struct{}), empty: make(chan struct{})}
}

// Attach makes a server the lane's, before it serves it.
func (ln *Lane) Attach(srv *http.Server) {
	srv.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		if v, ok := conn.(*visit); ok {
			return context.WithValue(ctx, visitKey{}, v)
		}
		return ctx
	}
	next := srv.ConnState
	srv.ConnState = func(conn net.Conn, state http.ConnState) {
		switch v, ok := conn.(*visit); {
		case !ok:
		case state == http.StateIdle:
			v.answered()
		case state == http.StateHijacked:
			ln.leave(v) // whoever has it now looks after it
		}
		if next != nil {
			next(conn, state)
		}
	}
}

// Accept implements net.Listener.
func (ln *Lane) Accept() (net.Conn, error) {
	conn, err := ln.Listener.Accept()
	s, ok := conn.(socket)
	if err != nil || !ok {
		return conn, err
	}
	v := &visit{socket: s, lane: ln, in: make([]byte, 0, firstRead), waits: true}
	v.ctx, v.stop = context.WithCancel(context.Background())
	v.enter(reading)
	ln.mu.Lock()
	defer ln.mu.Unlock()
	if ln.closed.Load() {
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	ln.visits[v] = struct{}{}
	if ln.clock == nil {
		ln.clock = time.AfterFunc(tick, ln.look)
	}
	return v, nil
}

// Close implements net.Listener. Requests under way go on.
func (ln *Lane) Close() error {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	if ln.closed.Load() {
		return nil
	}
	ln.closed.Store(true)
	for v := range ln.visits {
		if s := v.stage(); s == idle || s == reading {
			_ = v.socket.Close() // who waits for it in Read closes the rest
		}
	}
	if len(ln.visits) == 0 {
		close(ln.empty)
	}
	return ln.Listener.Close()
}

// Drain waits until the requests that pass a closed lane have ended, and breaks them
// off when ctx ends. The server's own must have ended before.
func (ln *Lane) Drain(ctx context.Context) {
	select {
	case <-ln.empty:
		return
	case <-ctx.Done():
	}
	ln.mu.Lock()
	visits := slices.Collect(maps.Keys(ln.visits))
	ln.mu.Unlock()
	for _, v := range visits {
		v.breakOff()
		if v.stage() == served {
			ln.leave(v)
		}
	}
	<-ln.empty
}

func (ln *Lane) leave(v *visit) {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	if _, here := ln.visits[v]; !here {
		return
	}
	delete(ln.visits, v)
	if ln.closed.Load() && len(ln.visits) == 0 {
		close(ln.empty)
	}
}

// tick is how often clients are looked after. There is one timer for all, which is
// not touched while requests come and go: setting one may wake a thread.
const tick = 500 * time.Millisecond

// look closes connections whose clients take too long, and those of clients that
// have gone while their request passes. The server looks after its own.
func (ln *Lane) look() {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	if ln.clock = nil; len(ln.visits) > 0 {
		ln.clock = time.AfterFunc(tick, ln.look)
	}
	for v := range ln.visits {
		c := v.clock.Load()
		v.clock.CompareAndSwap(c, c+1) // unless it has just gone on
		took := time.Duration(uint32(c)) * tick
		switch at := stage(c >> 32); {
		case at == idle && took > ln.times.Idle, at == reading && took > ln.times.Head:
			_ = v.socket.Close()
		case at == passing && took > 0 && gone(v.socket):
			v.breakOff()
		}
	}
}
