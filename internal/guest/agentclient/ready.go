package agentclient

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"hearth/internal/guest"
	"hearth/internal/hearth"
)

// healthPath answers anyone, also while the daemon is sealed.
const healthPath = "/health"

// Ready waits until the daemon answers its health check, sealed or not, or ctx
// ends. It tells the daemon nothing, so that the machine may still become anybody's.
//
// It asks again and again, because nobody tells: a guest can call nothing on its
// host, by design, and a kernel answers a connection to a port that is not open yet
// by refusing it at once. As a rule only a machine that boots is asked more than once; in one
// that was restored or thawed the daemon listens already.
func (c *Client) Ready(ctx context.Context) error {
	p := newPatience()
	for {
		err := c.health(ctx, p.dial)
		if err == nil {
			return nil
		}
		if err := p.wait(ctx, err); err != nil {
			return err
		}
	}
}

// Rehearse makes a daemon that is nobody's yet do once what users ask of it first,
// and waits for that. A daemon that cannot do it says so.
func (c *Client) Rehearse(ctx context.Context) error {
	return c.post(ctx, guest.RehearsePath, "", nil, lastDial)
}

// patience is how long to wait between attempts and for one; both grow.
type patience struct{ pause, dial time.Duration }

func newPatience() patience { return patience{firstPause, firstDial} }

// wait pauses before the next attempt; when ctx ends it fails with what the last
// attempt failed with.
func (p *patience) wait(ctx context.Context, last error) error {
	timer := time.NewTimer(p.pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return hearth.Wrap(hearth.DeadlineExceeded, errors.Join(context.Cause(ctx), last), "the guest daemon did not answer in time")
	case <-timer.C:
	}
	p.pause, p.dial = min(p.pause*3/2, lastPause), min(p.dial*2, lastDial)
	return nil
}

// health asks once, on a connection of its own.
func (c *Client) health(ctx context.Context, patience time.Duration) error {
	conn, err := c.connect(ctx, patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := bound(ctx, conn)
	defer stop()
	if _, err := io.WriteString(conn, "GET "+healthPath+" HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n"); err != nil {
		return hearth.Wrap(hearth.Unavailable, err, "the guest daemon's connection broke")
	}
	res, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, maxAnswer)), nil)
	if err != nil {
		return hearth.Wrap(hearth.Unavailable, err, "the guest daemon gave no proper answer")
	}
	defer res.Body.Close()
	if res.StatusCode/100 != 2 {
		return refusal(res)
	}
	return nil
}
