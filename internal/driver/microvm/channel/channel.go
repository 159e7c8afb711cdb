// Package channel is how a host and the first process of a machine talk without
// the guest's network: streams, multiplexed over one connection that may be cut
// anywhere and taken up again by another life of the host.
//
// The connection is a virtio-serial port, or one connection of a vsock device.
// Either may hold, when a host connects, the rest of what an earlier host sent,
// or of what the guest said before it was checkpointed: see frame.go for how a
// session begins in spite of it. Streams have credit each, so that one whose
// reader is slow holds up no other, and neither side keeps more than 256 KiB of
// unread bytes for a stream.
package channel

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"hearth/internal/hearth"
)

// The time is told up to clockTries times, as long as the answer takes clockLag:
// by no more than that may a guest's clock be behind.
const (
	clockTries = 3
	clockLag   = 500 * time.Millisecond
)

// Settings are what a machine is told at every start, restore and thaw.
type Settings struct {
	Now      time.Time    `json:"now"`
	Seed     []byte       `json:"seed"` // entropy, 16 to 64 bytes
	Hostname string       `json:"hostname,omitempty"`
	Device   string       `json:"device,omitempty"`   // the guest's interface, "eth0"; empty: no network
	MAC      string       `json:"mac,omitempty"`      // empty: as it is
	Address  netip.Prefix `json:"address,omitzero"`   // replaces every other address of Device
	Gateway  netip.Addr   `json:"gateway,omitzero"`   // default route; zero: none
	Restored bool         `json:"restored,omitempty"` // TCP connections to the outside are of another life: end them
}

// Exit says how the first program of a machine ended.
type Exit struct {
	Code   int    `json:"code"`             // exit status; 128 + signal for one that was killed
	Signal int    `json:"signal,omitempty"` // which killed it
	OOM    bool   `json:"oom,omitempty"`    // the guest's kernel killed it for want of memory
	Reason string `json:"reason,omitempty"` // why the machine could not go on, where it did not end by itself
}

// Channel is the host's end. Methods may be called at once from many
// goroutines; none blocks beyond its context, whatever the guest does.
type Channel struct {
	conn net.Conn
	s    *session
	read chan struct{} // closed when the reader has ended
}

// Open takes over a connection to the guest: whatever an earlier host, or the
// guest before it was restored, had left half done on it is discarded, and
// streams of before are closed in the guest. It waits for a guest that does not
// answer yet. conn is closed with the Channel, and when Open fails.
func Open(ctx context.Context, conn net.Conn) (*Channel, error) {
	in := newFrameReader(conn)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err := greet(conn, in)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			return nil, hearth.Wrap(hearth.DeadlineExceeded, errors.Join(ctx.Err(), err), "the machine's first process did not answer in time")
		}
		return nil, hearth.Wrap(hearth.Unavailable, err, "the connection to the machine's first process ended")
	}
	c := &Channel{conn: conn, s: newSession(hostSide, conn, nil), read: make(chan struct{})}
	c.s.closed = func() { _ = conn.Close() }
	go func() {
		defer close(c.read)
		_ = c.s.run(in)
	}()
	return c, nil
}

// greet begins a session. It reads while it writes: the guest may be held up by
// what it still has to say to an earlier host. After an error conn is closed.
func greet(conn net.Conn, in *frameReader) error {
	hello := make([]byte, resync, resync+len(magic)+nonceBytes)
	hello = append(hello, magic...)
	hello = hello[:cap(hello)]
	rand.Read(hello[resync+len(magic):])
	wrote := make(chan error, 1)
	go func() {
		_, err := conn.Write(hello)
		wrote <- err
	}()
	err := in.hunt(hello[resync:])
	if err != nil {
		_ = conn.Close()
	}
	return errors.Join(err, <-wrote)
}

// Configure must be called once on every Channel before Dial, and again after a
// thaw. It returns when the settings hold in the guest. A guest, or a host, that is
// so slow that the time was told too late is told it again.
func (c *Channel) Configure(ctx context.Context, s Settings) error {
	if err := s.Check(); err != nil {
		return err
	}
	for range clockTries {
		began := time.Now()
		if err := c.configure(ctx, s); err != nil {
			return err
		}
		took := time.Since(began)
		if took < clockLag {
			break
		}
		s.Now = s.Now.Add(took)
	}
	return nil
}

func (c *Channel) configure(ctx context.Context, s Settings) error {
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	st, _, err := c.ask(ctx, wantConfigure, raw)
	if err != nil {
		return fmt.Errorf("configure the machine: %w", err)
	}
	return st.Close()
}

// Settle returns when all that was written in the machine is on its disk, which
// then stands still: who writes to it waits, until the next Configure, or for
// half a minute at most.
func (c *Channel) Settle(ctx context.Context) error {
	st, _, err := c.ask(ctx, wantSettle, nil)
	if err != nil {
		return fmt.Errorf("settle the machine's disk: %w", err)
	}
	return st.Close()
}

// Dial connects to a TCP port inside the guest. The connection has CloseWrite,
// beside what net.Conn has. A port where nothing listens gives an error that
// wraps syscall.ECONNREFUSED.
func (c *Channel) Dial(ctx context.Context, port uint16) (net.Conn, error) {
	st, _, err := c.ask(ctx, wantDial, binary.BigEndian.AppendUint16(nil, port))
	if err != nil {
		return nil, fmt.Errorf("dial port %d of the machine: %w", port, err)
	}
	st.name = address(fmt.Sprintf("guest:%d", port))
	return st, nil
}

// Wait returns when the machine's first program has ended. The guest then
// powers off, at the latest after a few seconds.
func (c *Channel) Wait(ctx context.Context) (Exit, error) {
	var e Exit
	st, raw, err := c.ask(ctx, wantExit, nil)
	if err != nil {
		return e, err
	}
	defer st.Close()
	if err := json.Unmarshal(raw, &e); err != nil {
		return e, fmt.Errorf("%w: the report of its end: %w", errGarbage, err)
	}
	e.Reason = clean(e.Reason)
	return e, nil
}

// ask opens a stream, sends a request and reads the answer's head.
func (c *Channel) ask(ctx context.Context, what byte, payload []byte) (*stream, []byte, error) {
	st, err := c.s.open(ctx.Done())
	if err != nil {
		return nil, nil, c.explain(ctx, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = st.SetDeadline(time.Unix(1, 0)) })
	answer, err := exchange(st, what, payload)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		st.reset()
		return nil, nil, c.explain(ctx, err)
	}
	return st, answer, nil
}

func exchange(st *stream, what byte, payload []byte) ([]byte, error) {
	if err := writeMessage(st, what, payload); err != nil {
		return nil, err
	}
	status, answer, err := readMessage(st)
	if err != nil {
		return nil, err
	}
	return answered(status, answer)
}

// explain says what kind of failure err is.
func (c *Channel) explain(ctx context.Context, err error) error {
	var known *hearth.Error
	switch {
	case errors.As(err, &known):
		return err
	case ctx.Err() != nil:
		return hearth.Wrap(hearth.DeadlineExceeded, ctx.Err(), "the machine did not answer in time")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return hearth.Wrap(hearth.DeadlineExceeded, err, "the machine did not answer in time")
	default:
		return hearth.Wrap(hearth.Unavailable, err, "the channel to the machine broke")
	}
}

// Done is closed when the channel is no longer usable: closed, the connection
// ended, or the guest broke the protocol. Err then says why.
func (c *Channel) Done() <-chan struct{} { return c.s.done }

// Err is nil until Done is closed.
func (c *Channel) Err() error { return c.s.cause() }

// Close closes the connection and every stream. Idempotent.
func (c *Channel) Close() error {
	c.s.fail(net.ErrClosed)
	<-c.read
	<-c.s.flown
	return nil
}

// clean makes a text of the guest fit for a log.
func clean(s string) string {
	out := []rune{}
	for _, r := range s {
		if len(out) == maxText {
			break
		}
		if r < ' ' || r == 0x7f || r == '\ufffd' {
			r = '?'
		}
		out = append(out, r)
	}
	return string(out)
}
