package channel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"hearth/internal/hearth"
)

var (
	errDeadline error = os.ErrDeadlineExceeded
	errTooMany        = hearth.Errorf(hearth.ResourceExhausted, "the machine has %d connections, no more are allowed", maxStreams)
)

// stream is one connection of a session. It implements net.Conn, and CloseWrite.
type stream struct {
	s     *session
	id    uint32
	name  address
	write chan struct{} // held by who writes
	over  chan struct{} // closed when the other side reads no more, or all is over

	readable, writable         chan struct{} // something changed for who waits
	readDeadline, sendDeadline *deadline

	mu      sync.Mutex
	buf     []byte // received, unread from off on
	off     int
	taken   int   // read, and not yet given back as credit
	readErr error // what Read returns once buf is empty
	sendErr error // what Write returns
	credit  int   // bytes that may be sent
	fin     int   // endEOF or endReset to be sent; noFin: not now
	stop    bool  // frameStop to be sent
	finSent bool  // no more is sent, ever
	recvEnd bool  // no more is received, or wanted
	isOver  bool
}

const noFin = -1

func newStream(s *session, id uint32) *stream {
	return &stream{
		s: s, id: id, write: make(chan struct{}, 1), over: make(chan struct{}),
		readable: make(chan struct{}, 1), writable: make(chan struct{}, 1),
		readDeadline: newDeadline(), sendDeadline: newDeadline(), credit: window, fin: noFin,
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Read implements net.Conn.
func (st *stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, err := st.take(p)
		if n > 0 || err != nil {
			return n, err
		}
		select {
		case <-st.readable:
		case <-st.readDeadline.wait():
			return 0, errDeadline
		}
	}
}

// take moves what there is into p and gives credit back in large pieces.
func (st *stream) take(p []byte) (int, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	n := copy(p, st.buf[st.off:])
	if n == 0 {
		if st.readErr != nil {
			wake(st.readable) // for another reader
		}
		return 0, st.readErr
	}
	st.off += n
	st.taken += n
	switch {
	case st.off < len(st.buf):
		wake(st.readable)
	case cap(st.buf) > 2*frameBytes:
		st.buf, st.off = nil, 0
	default:
		st.buf, st.off = st.buf[:0], 0
	}
	if st.taken >= window/4 && !st.recvEnd {
		st.s.tell(st)
	}
	return n, nil
}

// Write implements net.Conn.
func (st *stream) Write(p []byte) (int, error) {
	select {
	case st.write <- struct{}{}:
		defer func() { <-st.write }()
	case <-st.sendDeadline.wait():
		return 0, errDeadline
	}
	done := 0
	for done < len(p) {
		n, err := st.reserve(len(p) - done)
		if err != nil {
			return done, err
		}
		b := appendFrame(st.s.buffer(n), frameData, st.id, p[done:done+n])
		if err := st.s.send(b, st.sendDeadline.wait()); err != nil {
			st.restore(n)
			return done, err
		}
		done += n
	}
	return done, nil
}

// reserve waits until some of n bytes may be sent, and returns how many.
func (st *stream) reserve(n int) (int, error) {
	for {
		st.mu.Lock()
		err, now := st.sendErr, min(n, st.credit, maxPayload)
		if err == nil {
			st.credit -= now
		}
		st.mu.Unlock()
		if err != nil {
			return 0, err
		}
		select {
		case <-st.sendDeadline.wait():
			st.restore(now)
			return 0, errDeadline
		default:
		}
		if now > 0 {
			return now, nil
		}
		select {
		case <-st.writable:
		case <-st.sendDeadline.wait():
			return 0, errDeadline
		}
	}
}

func (st *stream) restore(n int) {
	st.mu.Lock()
	st.credit += n
	st.mu.Unlock()
}

// CloseWrite says that no more will be written; reading goes on.
func (st *stream) CloseWrite() error {
	st.shut(endEOF, net.ErrClosed)
	return nil
}

// Close implements net.Conn: what was written still arrives.
func (st *stream) Close() error {
	st.shut(endEOF, net.ErrClosed)
	st.refuse()
	return nil
}

// reset ends both directions; the other side's readers get ECONNRESET.
func (st *stream) reset() {
	st.shut(endReset, net.ErrClosed)
	st.refuse()
}

// shut ends the sending direction.
func (st *stream) shut(how int, err error) {
	st.mu.Lock()
	if st.sendErr == nil {
		st.sendErr = err
	}
	if !st.finSent {
		st.finSent, st.fin = true, how
		st.s.tell(st)
	}
	st.ended()
	st.mu.Unlock()
	wake(st.writable)
}

// refuse ends the receiving direction.
func (st *stream) refuse() {
	st.mu.Lock()
	if !errors.Is(st.readErr, net.ErrClosed) {
		st.buf, st.off, st.readErr = nil, 0, net.ErrClosed
	}
	if !st.recvEnd {
		st.recvEnd, st.stop = true, true
		st.s.tell(st)
	}
	st.ended()
	st.mu.Unlock()
	wake(st.readable)
}

// ended forgets the stream once it is over in both directions. st.mu is held.
func (st *stream) ended() {
	if st.finSent && st.recvEnd {
		st.finish()
		st.s.drop(st)
	}
}

// receive takes bytes from the other side.
func (st *stream) receive(p []byte) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.recvEnd && !st.stopSaid() {
		return fmt.Errorf("%w: data after the end of stream %d", errGarbage, st.id)
	}
	if st.recvEnd {
		return nil // on its way when this side stopped reading
	}
	if len(st.buf)-st.off+st.taken+len(p) > window {
		return fmt.Errorf("%w: more than %d bytes of stream %d at once", errGarbage, window, st.id)
	}
	if st.off > 0 && len(st.buf)+len(p) > cap(st.buf) {
		st.buf = st.buf[:copy(st.buf, st.buf[st.off:])]
		st.off = 0
	}
	st.buf = append(st.buf, p...)
	wake(st.readable)
	return nil
}

// stopSaid tells that reading was ended here and not by the other side's end.
func (st *stream) stopSaid() bool { return errors.Is(st.readErr, net.ErrClosed) }

// finished takes the end of what the other side sends.
func (st *stream) finished(how byte) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.recvEnd && !st.stopSaid() {
		return fmt.Errorf("%w: stream %d ended twice", errGarbage, st.id)
	}
	st.recvEnd = true
	if st.readErr == nil {
		st.readErr = io.EOF
		if how == endReset {
			st.readErr = syscall.ECONNRESET
		}
	}
	st.ended()
	wake(st.readable)
	return nil
}

// stopped learns that the other side reads no more.
func (st *stream) stopped() {
	st.mu.Lock()
	if st.sendErr == nil {
		st.sendErr = syscall.EPIPE
	}
	st.finish()
	if !st.finSent {
		st.finSent, st.fin = true, endEOF
		st.s.tell(st)
	}
	st.ended()
	st.mu.Unlock()
	wake(st.writable)
}

// finish closes over, once. st.mu is held.
func (st *stream) finish() {
	if !st.isOver {
		st.isOver = true
		close(st.over)
	}
}

// granted takes credit.
func (st *stream) granted(n uint32) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if n > window || st.credit+int(n) > window {
		return fmt.Errorf("%w: credit of %d for stream %d", errGarbage, n, st.id)
	}
	st.credit += int(n)
	wake(st.writable)
	return nil
}

// abort ends the stream with its session. What was received can still be read.
func (st *stream) abort(err error) {
	st.mu.Lock()
	if st.readErr == nil {
		st.readErr = fmt.Errorf("%w (%w)", syscall.ECONNRESET, err)
	}
	if st.sendErr == nil {
		st.sendErr = fmt.Errorf("%w (%w)", syscall.ECONNRESET, err)
	}
	st.finSent, st.recvEnd = true, true
	st.finish()
	st.mu.Unlock()
	wake(st.readable)
	wake(st.writable)
}

// controls returns the frames of what there is to say beside data.
func (st *stream) controls() []byte {
	st.mu.Lock()
	defer st.mu.Unlock()
	var b []byte
	if st.taken > 0 && !st.recvEnd {
		b = appendFrame(b, frameCredit, st.id, binary.BigEndian.AppendUint32(nil, uint32(st.taken)))
		st.taken = 0
	}
	if st.fin != noFin {
		b = appendFrame(b, frameFin, st.id, []byte{byte(st.fin)})
		st.fin = noFin
	}
	if st.stop {
		b = appendFrame(b, frameStop, st.id, nil)
		st.stop = false
	}
	return b
}

// SetDeadline implements net.Conn.
func (st *stream) SetDeadline(t time.Time) error {
	st.readDeadline.set(t)
	st.sendDeadline.set(t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (st *stream) SetReadDeadline(t time.Time) error {
	st.readDeadline.set(t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (st *stream) SetWriteDeadline(t time.Time) error {
	st.sendDeadline.set(t)
	return nil
}

// LocalAddr implements net.Conn.
func (st *stream) LocalAddr() net.Addr { return address("host") }

// RemoteAddr implements net.Conn.
func (st *stream) RemoteAddr() net.Addr { return st.name }

// address names an end of a stream.
type address string

// Network implements net.Addr.
func (address) Network() string { return "guest" }

func (a address) String() string { return string(a) }
