package channel

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
)

const (
	window     = 256 << 10 // bytes of a stream that may be on their way or unread
	maxStreams = 1024      // open at once in a session
)

// side is the end of a session that a program has.
type side int

const (
	hostSide side = iota
	guestSide
)

// session carries streams over one connection. One goroutine reads, in run, one
// writes; neither ever waits for a user of a stream.
type session struct {
	side   side
	w      io.Writer
	accept func(*stream) // of the guest; must not block

	out    chan []byte   // encoded frames of users, taken by the writer
	kick   chan struct{} // there are changes in dirty
	done   chan struct{} // closed by fail
	flown  chan struct{} // closed when the writer has ended
	turn   chan struct{} // held by who opens a stream
	pool   sync.Pool     // of *[frameBytes]byte
	closed func()        // ends the connection under the writer; nil: the connection outlives the session

	mu      sync.Mutex
	streams map[uint32]*stream
	last    uint32               // number of the newest stream
	dirty   map[*stream]struct{} // streams with something to say beside data
	err     error                // why it ended
}

func newSession(s side, w io.Writer, accept func(*stream)) *session {
	ses := &session{
		side: s, w: w, accept: accept,
		out: make(chan []byte), kick: make(chan struct{}, 1), done: make(chan struct{}), flown: make(chan struct{}),
		turn:    make(chan struct{}, 1),
		streams: map[uint32]*stream{}, dirty: map[*stream]struct{}{},
	}
	go ses.write()
	return ses
}

// run reads frames until the connection or the protocol breaks, and returns why.
func (s *session) run(in *frameReader) error {
	for {
		f, err := in.next()
		if err == nil {
			err = s.handle(f)
		}
		if err != nil {
			s.fail(err)
			return err
		}
	}
}

// fail ends the session: every stream ends with err.
func (s *session) fail(err error) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	s.err = err
	streams := s.streams
	s.streams, s.dirty = map[uint32]*stream{}, map[*stream]struct{}{}
	close(s.done)
	s.mu.Unlock()
	if s.closed != nil {
		s.closed()
	}
	for _, st := range streams {
		st.abort(err)
	}
}

func (s *session) cause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *session) handle(f frame) error {
	if f.kind == frameOpen {
		return s.opened(f.stream)
	}
	s.mu.Lock()
	st, last, err := s.streams[f.stream], s.last, s.err
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if st == nil {
		if f.stream == 0 || f.stream > last {
			return fmt.Errorf("%w: a frame for stream %d, which was never opened", errGarbage, f.stream)
		}
		return nil // it ended here while the frame was on its way
	}
	switch f.kind {
	case frameData:
		return st.receive(f.payload)
	case frameFin:
		return st.finished(f.payload[0])
	case frameStop:
		st.stopped()
	case frameCredit:
		return st.granted(binary.BigEndian.Uint32(f.payload))
	}
	return nil
}

// opened takes a stream that the host opens.
func (s *session) opened(id uint32) error {
	if s.side == hostSide {
		return fmt.Errorf("%w: the guest opened a stream", errGarbage)
	}
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return s.err
	}
	if id <= s.last {
		s.mu.Unlock()
		return fmt.Errorf("%w: stream %d was opened after %d", errGarbage, id, s.last)
	}
	s.last = id
	st := newStream(s, id)
	s.streams[id] = st
	many := len(s.streams) > maxStreams
	s.mu.Unlock()
	if many {
		st.reset()
		return nil
	}
	s.accept(st)
	return nil
}

// open opens a stream from the host's side. Numbers reach the guest in order.
func (s *session) open(deadline <-chan struct{}) (*stream, error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-deadline:
		return nil, errDeadline
	case <-s.done:
		return nil, s.cause()
	}
	s.mu.Lock()
	switch {
	case s.err != nil:
		s.mu.Unlock()
		return nil, s.err
	case len(s.streams) >= maxStreams:
		s.mu.Unlock()
		return nil, errTooMany
	}
	s.last++
	st := newStream(s, s.last)
	s.streams[st.id] = st
	s.mu.Unlock()
	if err := s.send(appendFrame(nil, frameOpen, st.id, nil), deadline); err != nil {
		s.drop(st)
		return nil, err
	}
	return st, nil
}

// drop forgets a stream that is over in both directions.
func (s *session) drop(st *stream) {
	s.mu.Lock()
	if s.streams[st.id] == st {
		delete(s.streams, st.id)
	}
	s.mu.Unlock()
}

// send hands an encoded frame to the writer.
func (s *session) send(b []byte, deadline <-chan struct{}) error {
	select {
	case s.out <- b:
		return nil
	case <-deadline:
		return errDeadline
	case <-s.done:
		return s.cause()
	}
}

// tell makes the writer look at what st has to say beside data.
func (s *session) tell(st *stream) {
	s.mu.Lock()
	if s.err == nil {
		s.dirty[st] = struct{}{}
	}
	s.mu.Unlock()
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// write is the writer. Frames are gathered while there are more of them.
func (s *session) write() {
	defer close(s.flown)
	w := bufio.NewWriterSize(s.w, 2*frameBytes)
	for {
		var err error
		select {
		case b := <-s.out:
			err = s.put(w, b)
		case <-s.kick:
			err = s.control(w)
		case <-s.done:
			return
		default:
			if err = w.Flush(); err == nil {
				err = s.await(w)
			}
		}
		if err != nil {
			s.fail(err)
			return
		}
	}
}

// await blocks until there is something to write.
func (s *session) await(w *bufio.Writer) error {
	select {
	case b := <-s.out:
		return s.put(w, b)
	case <-s.kick:
		return s.control(w)
	case <-s.done:
		return nil
	}
}

func (s *session) put(w *bufio.Writer, b []byte) error {
	_, err := w.Write(b)
	s.recycle(b)
	return err
}

// buffer returns room for a frame with n bytes of payload.
func (s *session) buffer(n int) []byte {
	if n < frameBytes/4 {
		return make([]byte, 0, headerBytes+n+1)
	}
	if b, ok := s.pool.Get().(*[frameBytes]byte); ok {
		return b[:0]
	}
	return make([]byte, 0, frameBytes)
}

func (s *session) recycle(b []byte) {
	if cap(b) == frameBytes {
		s.pool.Put((*[frameBytes]byte)(b[:frameBytes]))
	}
}

// control writes the frames of dirty streams.
func (s *session) control(w *bufio.Writer) error {
	s.mu.Lock()
	dirty := s.dirty
	s.dirty = map[*stream]struct{}{}
	s.mu.Unlock()
	for st := range dirty {
		if _, err := w.Write(st.controls()); err != nil {
			return err
		}
	}
	return nil
}
