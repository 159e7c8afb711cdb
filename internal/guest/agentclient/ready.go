package agentclient

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"hearth/internal/hearth"
)

// healthPath answers anyone, also while the daemon is sealed.
const healthPath = "/health"

// Ready waits until the daemon answers its health check, sealed or not, or ctx
// ends. It tells the daemon nothing, so that the machine may still become anybody's.
func (c *Client) Ready(ctx context.Context) error {
	pause, patience := firstPause, firstDial
	for {
		err := c.health(ctx, patience)
		if err == nil {
			return nil
		}
		wait := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			wait.Stop()
			return hearth.Wrap(hearth.DeadlineExceeded, errors.Join(context.Cause(ctx), err), "the guest daemon did not answer in time")
		case <-wait.C:
		}
		pause = min(pause*3/2, lastPause)
		patience = min(patience*2, lastDial)
	}
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
