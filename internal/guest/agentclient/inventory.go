package agentclient

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"time"

	"hearth/internal/guest"
	"hearth/internal/hearth"
)

// Inventory lists the files of a machine that was started to be looked at, and
// stops what else runs in it. It waits until the daemon answers, or ctx ends.
// FailedPrecondition when the daemon is older than this call, when there are more
// files than are listed, or when what came is no list.
func (c *Client) Inventory(ctx context.Context) ([]hearth.Entry, error) {
	if err := c.Ready(ctx); err != nil {
		return nil, err
	}
	conn, err := c.connect(ctx, lastDial)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if at, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(at)
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := conn.Write(append(head(http.MethodPost, guest.InventoryPath, c.control), "Connection: close\r\nContent-Length: 0\r\n\r\n"...)); err != nil {
		return nil, hearth.Wrap(hearth.Unavailable, err, "the guest daemon's connection broke")
	}
	res, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, guest.MaxInventory+maxAnswer+guest.MaxInventory/64)), nil)
	if err != nil {
		return nil, hearth.Wrap(hearth.Unavailable, err, "the guest daemon gave no proper answer")
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound, http.StatusServiceUnavailable: // a sealed daemon that does not know the path
		return nil, hearth.Errorf(hearth.FailedPrecondition, "its guest daemon is older than this server and cannot list its files")
	default:
		return nil, refusal(res)
	}
	list, more, err := guest.ReadInventory(res.Body)
	if err == nil && more {
		err = hearth.Errorf(hearth.FailedPrecondition, "it has more files than the %d that can be listed, or listing them takes too long", guest.MaxEntries)
	}
	return list, err
}
