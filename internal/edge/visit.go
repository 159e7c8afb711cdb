package edge

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"hearth/internal/edge/wire"
)

// socket is what a client's connection can do.
type socket interface {
	net.Conn
	io.ReaderFrom
	syscall.Conn
	CloseWrite() error
}

// stage says what a connection does.
type stage uint32

const (
	idle    stage = iota // it is between two requests
	reading              // a request's head, or its body
	passing              // a request, or its answer
	served               // by the server
)

// visit is a connection to a server behind a lane. One goroutine at a time reads it.
type visit struct {
	socket
	lane  *Lane
	clock atomic.Uint64             // the stage, and below it the ticks since it began
	link  atomic.Pointer[wire.Link] // into the sandbox, while a request passes
	ctx   context.Context           // ends with it
	stop  context.CancelFunc

	in    []byte // read, and not yet served
	waits bool   // the server waits for a request
	odd   bool   // all that comes is the server's
	due   int64  // bytes of the server's request that it has not read
	req   wire.Request
	ans   wire.Answer
	port  uint16

	mu      sync.Mutex
	sent    *sent // what came of the server's request, if it was sent already
	inLane  bool  // a request passes
	closing bool
}

func (v *visit) enter(s stage) { v.clock.Store(uint64(s) << 32) }
func (v *visit) stage() stage  { return stage(v.clock.Load() >> 32) }

// answered is called when the server has answered a request.
func (v *visit) answered() {
	if !v.odd {
		v.waits = true
	}
}

// Read implements net.Conn, for the server: it passes on requests until one comes
// that is the server's.
func (v *visit) Read(p []byte) (int, error) {
	if v.waits && !v.odd {
		if err := v.next(); err != nil {
			return 0, err
		}
	}
	switch {
	case v.odd:
	case v.due == 0:
		return 0, v.watch()
	default:
		p = p[:min(int64(len(p)), v.due)]
	}
	n, err := copy(p, v.in), error(nil)
	if v.in = v.in[n:]; len(v.in) == 0 {
		v.in = nil // a body's buffer is large
	}
	if n == 0 {
		n, err = v.socket.Read(p)
	}
	v.due = max(v.due-int64(n), 0)
	return n, err
}

// watch waits until the client has gone, or until the server, which has answered,
// sets a deadline to have its Read back. What comes before that is left where it is,
// for the lane.
func (v *visit) watch() error {
	rc, err := v.SyscallConn()
	if err != nil {
		return err
	}
	if err = rc.Read(hasEnded); err == nil {
		err = io.EOF
	}
	return err
}

// next passes on requests until one is the server's. The deadline of a Read is not for
// all of them.
func (v *visit) next() error {
	v.swap(nil).drop()
	_ = v.SetReadDeadline(time.Time{}) // of a connection that is gone, Read tells
	for {
		out, size := v.request()
		switch out {
		case next:
			continue
		case over:
			_ = v.socket.Close() // the server must not answer
			v.in = nil           // nor ask again
			return io.EOF
		case odd:
			v.odd = true
			_ = v.SetReadDeadline(time.Now().Add(v.lane.times.Head))
		}
		v.due, v.waits = size, false
		v.enter(served)
		return nil
	}
}

// Close implements net.Conn. A request that passes is waited for by others.
func (v *visit) Close() error {
	v.mu.Lock()
	v.closing = true
	wait := v.inLane
	v.mu.Unlock()
	if wait {
		return nil
	}
	return v.close()
}

func (v *visit) close() error {
	v.stop()
	v.swap(nil).drop()
	err := v.socket.Close()
	v.lane.leave(v)
	return err
}

// swap replaces what came of the server's request.
func (v *visit) swap(s *sent) *sent {
	v.mu.Lock()
	defer v.mu.Unlock()
	s, v.sent = v.sent, s
	return s
}

// begin says that a request is going to pass, unless the connection is closing.
func (v *visit) begin() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.enter(passing)
	v.inLane = !v.closing && !v.lane.closed.Load() // a lane that closes now sees that it passes
	return v.inLane
}

// finish says that a request has passed, or will not.
func (v *visit) finish(out outcome) outcome {
	v.mu.Lock()
	v.inLane = false
	closing := v.closing
	v.mu.Unlock()
	if closing {
		_ = v.close()
		return over
	}
	return out
}

// breakOff ends a request from outside of its goroutine.
func (v *visit) breakOff() {
	v.stop()
	_ = v.socket.Close()
	if l := v.link.Swap(nil); l != nil {
		_ = l.Close()
	}
}

// outcome is what became of a request.
type outcome int

const (
	over   outcome = iota // its connection is of no more use
	next                  // another may follow
	theirs                // it is the server's
	odd                   // likewise, and nobody knows where it ends
)

// request serves one request, or says that it is the server's and how long it is.
func (v *visit) request() (outcome, int64) {
	if v.stage() != reading { // as at first
		v.enter(idle)
		if v.lane.closed.Load() { // it may have looked before
			return over, 0
		}
	}
	head, out := v.head()
	if out != theirs {
		return out, 0
	}
	whole := int64(head) + v.req.Length
	route, ok := v.admit()
	if !ok || !v.body(int(whole)) {
		return theirs, whole
	}
	if !v.begin() {
		return over, 0
	}
	out = v.finish(v.send(route, v.in[head:whole]))
	if out == next {
		v.forget(int(whole))
	}
	return out, whole
}

// send sends a request on a route, as ServeHTTP does.
func (v *visit) send(route Route, body []byte) outcome {
	e := v.lane.edge
	l, a := e.enter(route)
	if a != nil {
		return theirs
	}
	defer l.leave()
	defer e.passing.Add(-1)
	if n := e.passing.Add(1); e.cfg.Total > 0 && n > int64(e.cfg.Total) {
		return theirs
	}
	return v.pass(l, body)
}

// gone reports whether a client has closed its connection.
func gone(conn syscall.Conn) bool {
	rc, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	ended := false
	err = rc.Control(func(fd uintptr) { ended = hasEnded(fd) })
	return ended || err != nil
}

// hasEnded reports whether nothing more comes from a socket. It cannot be seen behind
// what has come and was not read.
func hasEnded(fd uintptr) bool {
	var b [1]byte
	n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	switch {
	case err == nil:
		return n == 0
	default:
		return !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.EINTR)
	}
}
