package gvisor

import (
	"context"
	"errors"
	"net"
	"net/netip"
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
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() {})
	defer stop()
	for attempt := firstAttempt; ; attempt = min(attempt*3/2, lastAttempt) {
		conn, err := (&net.Dialer{Timeout: attempt}).DialContext(ctx, "tcp", address.String())
		if err == nil {
			return conn, nil
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
	var netErr net.Error
	if errors.As(err, &netErr) && netErr.Timeout() {
		return time.After(0)
	}
	return time.After(20 * time.Millisecond)
}
