package gvisor

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"hearth/internal/hearth"
)

// The first packet to a guest that has just been restored may be lost, and TCP
// would repeat it after a second only; so a connection is tried anew instead.
const (
	firstAttempt = 150 * time.Millisecond
	lastAttempt  = 3 * time.Second
)

// Dial connects from the host to the guest's address.
func (m *machine) Dial(ctx context.Context, port uint16) (net.Conn, error) {
	if !m.state.Net.Guest.IsValid() {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "machine %s has no network", m.id)
	}
	if port == 0 {
		return nil, hearth.Errorf(hearth.InvalidArgument, "port 0 is not within 1 to 65535")
	}
	address := netip.AddrPortFrom(m.state.Net.Guest.Addr(), port)
	for attempt := firstAttempt; ; attempt = min(attempt*3/2, lastAttempt) {
		conn, err := (&net.Dialer{Timeout: attempt}).DialContext(ctx, "tcp", address.String())
		if err == nil {
			return m.conns.add(conn, m)
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			return nil, hearth.Wrap(hearth.Unavailable, err, "nothing listens on port %d of machine %s", port, m.id)
		}
		select {
		case <-m.done:
			return nil, m.ended()
		case <-ctx.Done():
			return nil, hearth.Wrap(hearth.DeadlineExceeded, errors.Join(context.Cause(ctx), err), "machine %s did not answer on port %d", m.id, port)
		case <-pause(err):
		}
	}
}

// pause is how long to wait after a failed attempt: not at all after a timeout,
// a little after an error that comes at once, such as an unknown neighbour.
func pause(err error) <-chan time.Time {
	if timed, ok := errors.AsType[net.Error](err); ok && timed.Timeout() {
		return time.After(0)
	}
	return time.After(20 * time.Millisecond)
}

// connections are the open ones to one machine. A guest that dies sends no
// farewell, so they are closed for it.
type connections struct {
	mu     sync.Mutex
	open   map[*guestConn]struct{}
	closed bool
}

// guestConn is a connection to a guest. It embeds the TCP connection, with its
// half-close and its splicing copies.
type guestConn struct {
	*net.TCPConn
	of *connections
}

// Close closes the connection.
func (c *guestConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
	return c.TCPConn.Close()
}

func (s *connections) add(conn net.Conn, m *machine) (net.Conn, error) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		_ = conn.Close()
		return nil, hearth.Errorf(hearth.Internal, "connection to machine %s is a %T", m.id, conn)
	}
	c := &guestConn{TCPConn: tcp, of: s}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = tcp.Close()
		return nil, hearth.Errorf(hearth.NotFound, "machine %s has ended", m.id)
	}
	if s.open == nil {
		s.open = map[*guestConn]struct{}{}
	}
	s.open[c] = struct{}{}
	return c, nil
}

func (s *connections) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.open {
		_ = c.TCPConn.Close()
	}
	s.open = nil
}
