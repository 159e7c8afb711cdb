package channel

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"hearth/internal/hearth"
)

const (
	requestTime = 10 * time.Second // for the host to send a request on a new stream
	minCopy     = 4 << 10
	maxCopy     = 64 << 10
)

// Guest is what the guest's end does for the host.
type Guest interface {
	// Dial connects to a TCP port of the machine.
	Dial(ctx context.Context, port uint16) (net.Conn, error)
	// Configure makes the settings hold. Calls do not overlap.
	Configure(s Settings) error
	// Settle puts all that was written on the disk, and lets nobody write to it
	// until Configure is called, or for a while. Configure does not wait for it.
	Settle(ctx context.Context) error
	// Wait returns when the first program has ended.
	Wait(ctx context.Context) (Exit, error)
	// Told is called when a host has been told of that end.
	Told()
}

// Serve is the guest's end. It serves one host after the other on conn until
// reading fails, and returns why; at most one host is served at a time. A host
// that breaks the protocol, or that another follows, loses its streams.
func Serve(conn io.ReadWriter, g Guest) error {
	in := newFrameReader(conn)
	for {
		if err := in.hunt([]byte(magic)); err != nil {
			return err
		}
		nonce, err := in.nonce()
		if err != nil {
			return err
		}
		if _, err := conn.Write(append([]byte(magic), nonce...)); err != nil {
			return err
		}
		if err := serveHost(conn, in, g); !errors.Is(err, errGarbage) {
			return err
		}
	}
}

// serveHost serves one session to its end.
func serveHost(conn io.Writer, in *frameReader, g Guest) error {
	ctx, cancel := context.WithCancel(context.Background())
	h := &host{guest: g, ctx: ctx}
	s := newSession(guestSide, conn, func(st *stream) {
		h.streams.Go(func() { h.serve(st) })
	})
	err := s.run(in)
	cancel()
	h.streams.Wait()
	// The writer may be in the middle of a frame that nobody reads any more; the
	// next host discards what is left of it.
	<-s.flown
	return err
}

// host is one session, in the guest.
type host struct {
	guest      Guest
	ctx        context.Context // of the session
	streams    sync.WaitGroup
	setting    sync.Mutex
	configured atomic.Bool
}

func (h *host) serve(st *stream) {
	_ = st.SetReadDeadline(time.Now().Add(requestTime))
	what, payload, err := readMessage(st)
	if err != nil {
		st.reset()
		return
	}
	_ = st.SetReadDeadline(time.Time{})
	switch what {
	case wantDial:
		h.dial(st, payload)
		return
	case wantConfigure:
		err = h.configure(payload)
	case wantSettle:
		if !h.configured.Load() {
			_ = writeMessage(st, statusSealed, nil)
			_ = st.Close()
			return
		}
		err = h.guest.Settle(h.ctx)
	case wantExit:
		h.exit(st)
		return
	default:
		err = hearth.Errorf(hearth.Unimplemented, "unknown request %#x", what)
	}
	if err != nil {
		status, text := refusal(err)
		_ = writeMessage(st, status, text)
	} else {
		_ = writeMessage(st, statusOK, nil)
	}
	_ = st.Close()
}

func (h *host) configure(payload []byte) error {
	s, err := decodeSettings(payload)
	if err != nil {
		return err
	}
	h.setting.Lock()
	defer h.setting.Unlock()
	if err := h.guest.Configure(s); err != nil {
		return err
	}
	h.configured.Store(true)
	return nil
}

func (h *host) exit(st *stream) {
	ctx, cancel := context.WithCancel(h.ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = st.Close() })()
	go func() {
		<-st.over
		cancel()
	}()
	e, err := h.guest.Wait(ctx)
	if err != nil {
		_ = st.Close()
		return
	}
	raw, err := json.Marshal(e)
	if err != nil {
		status, text := refusal(err)
		_ = writeMessage(st, status, text)
	} else if err = writeMessage(st, statusOK, raw); err == nil {
		<-st.over // the host closes what it has read
		h.guest.Told()
	}
	_ = st.Close()
}

func (h *host) dial(st *stream, payload []byte) {
	answer := func(status byte, text []byte) {
		_ = writeMessage(st, status, text)
		_ = st.Close()
	}
	if len(payload) != 2 {
		answer(statusFailed, []byte(fmt.Sprintf("a port of %d bytes", len(payload))))
		return
	}
	if !h.configured.Load() {
		answer(statusSealed, nil)
		return
	}
	conn, err := h.guest.Dial(h.ctx, binary.BigEndian.Uint16(payload))
	if err != nil {
		answer(refusal(err))
		return
	}
	if err := writeMessage(st, statusOK, nil); err != nil {
		_ = conn.Close()
		st.reset()
		return
	}
	defer context.AfterFunc(h.ctx, func() { abort(conn) })()
	splice(st, conn)
}

// closeWriter is a connection whose directions end one by one.
type closeWriter interface {
	net.Conn
	CloseWrite() error
}

// splice copies between a stream and a connection of the guest until both
// directions are over, or the host wants neither.
func splice(st *stream, conn net.Conn) {
	var copies sync.WaitGroup
	inbound := make(chan struct{})
	copies.Go(func() {
		defer close(inbound)
		if err := pump(conn, st); err != nil {
			abort(conn)
			st.refuse()
			return
		}
		if c, ok := conn.(closeWriter); ok {
			_ = c.CloseWrite()
		}
	})
	copies.Go(func() {
		if err := pump(st, conn); err != nil {
			st.shut(endReset, net.ErrClosed)
			return
		}
		_ = st.CloseWrite()
	})
	// A host that closed is not waited for: what it sent is delivered, the rest dropped.
	<-st.over
	<-inbound
	_ = conn.Close()
	copies.Wait()
	_ = st.Close()
}

// abort closes a connection so that its peer sees a reset.
func abort(conn net.Conn) {
	if c, ok := conn.(*net.TCPConn); ok {
		_ = c.SetLinger(0)
	}
	_ = conn.Close()
}

// pump copies until EOF, with a buffer that is as large as the traffic is.
func pump(to io.Writer, from io.Reader) error {
	buf := make([]byte, minCopy)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return err
			}
			if n == len(buf) && n < maxCopy {
				buf = make([]byte, 2*n)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
