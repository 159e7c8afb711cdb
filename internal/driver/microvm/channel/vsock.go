package channel

import (
	"context"
	"fmt"
	"net"
	"time"

	"hearth/internal/hearth"
)

const vsockRetry = 10 * time.Millisecond

// DialVsock connects to a port of the guest by the Unix socket that Firecracker
// offers for its vsock device, and waits until the guest listens.
//
// One such connection carries a whole session: Firecracker's end does not pass
// a half-closed connection on, so a connection for each stream would lose data.
func DialVsock(ctx context.Context, socket string, port uint32) (net.Conn, error) {
	retry := time.NewTicker(vsockRetry)
	defer retry.Stop()
	for {
		conn, err := dialVsock(ctx, socket, port)
		if err == nil {
			return conn, nil
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			return nil, hearth.Wrap(hearth.DeadlineExceeded, fmt.Errorf("%w, last: %w", ctx.Err(), err), "the machine's first process does not listen yet")
		}
	}
}

// dialVsock tries once: "CONNECT port" is answered with "OK" and a number, or
// with the end of the connection.
func dialVsock(ctx context.Context, socket string, port uint32) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	_, err = fmt.Fprintf(conn, "CONNECT %d\n", port)
	if err == nil {
		err = readOK(conn)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// readOK reads one short line, and not a byte more.
func readOK(conn net.Conn) error {
	var line []byte
	one := make([]byte, 1)
	for len(line) < 32 {
		if _, err := conn.Read(one); err != nil {
			return err
		}
		if one[0] == '\n' {
			break
		}
		line = append(line, one[0])
	}
	if len(line) < 3 || string(line[:3]) != "OK " {
		return fmt.Errorf("%w: %q in the place of OK", errGarbage, line)
	}
	return nil
}
