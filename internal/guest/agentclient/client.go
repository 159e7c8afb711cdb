// Package agentclient is the host's side of the guest daemon: it implements
// guest.Agent, opens connections to ports inside a sandbox and, for template
// builds, runs commands and writes files there.
//
// A guest may be hostile in every byte it sends. Answers are bounded in size,
// every call in time by its context, and text from the guest is quoted where it gets into
// an error.
package agentclient

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"hearth/internal/gen/guestv1/guestv1connect"
	"hearth/internal/guest"
	"hearth/internal/hearth"
)

const (
	maxAnswer = 16 << 10 // bytes of an answer to a host call, head and body
	maxShown  = 300      // bytes of a guest's text in an error

	firstPause = time.Millisecond // between attempts of Init; grows
	lastPause  = 100 * time.Millisecond

	// A connection attempt to a machine that has just been restored may be lost
	// without a trace: give up early, then be more patient.
	firstDial = 100 * time.Millisecond
	lastDial  = 2 * time.Second
	exchange  = 10 * time.Second // one request and its answer
)

// Dial opens a connection to a TCP port of the guest.
type Dial func(ctx context.Context, port uint16) (net.Conn, error)

// Client talks to the daemon of one machine. It keeps no connection between calls.
type Client struct {
	dial    Dial
	control string
	token   string // a user's; stands in for control in what users may call
	http    *http.Client
	process guestv1connect.ProcessClient
}

var _ guest.Agent = (*Client)(nil)

// New returns a client that reaches the guest through dial and presents control
// as the host's secret. It does not connect.
func New(dial func(ctx context.Context, port uint16) (net.Conn, error), control string) *Client {
	c := &Client{dial: dial, control: control}
	c.http = &http.Client{
		Transport: &http.Transport{
			DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, guest.Port) },
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: maxAnswer,
			WriteBufferSize:        256 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	c.process = newProcessClient(c.http)
	return c
}

// NewUser returns a client that comes as a user with an access token: it runs
// commands and writes files, but the host's own calls are refused.
func NewUser(dial func(ctx context.Context, port uint16) (net.Conn, error), token string) *Client {
	c := New(dial, "")
	c.token = token
	return c
}

// Init implements guest.Agent. The daemon's refusal ends it at once; a
// connection that fails, breaks or finds nobody is tried again until ctx ends. An empty
// Control in req stands for the client's own.
func (c *Client) Init(ctx context.Context, req guest.InitRequest) error {
	if req.Control == "" {
		req.Control = c.control
	}
	body, err := json.Marshal(req)
	if err != nil {
		return hearth.Wrap(hearth.Internal, err, "the init request cannot be encoded")
	}
	control := c.control
	p := newPatience()
	for {
		err := c.post(ctx, guest.InitPath, control, body, p.dial)
		switch kind := hearth.KindOf(err); {
		case err == nil:
			return nil
		case kind == hearth.Unauthenticated && control != req.Control:
			control = req.Control // an attempt whose answer was lost has set it
			continue
		case kind != hearth.Unavailable:
			return err
		}
		if err := p.wait(ctx, err); err != nil {
			return err
		}
	}
}

// Quiesce implements guest.Agent.
func (c *Client) Quiesce(ctx context.Context, req guest.QuiesceRequest) error {
	body, err := json.Marshal(req)
	if err != nil {
		return hearth.Wrap(hearth.Internal, err, "the quiesce request cannot be encoded")
	}
	return c.post(ctx, guest.QuiescePath, c.control, body, lastDial)
}

// post makes one host call on a connection of its own and wants 204. What may
// be tried again is Unavailable.
func (c *Client) post(ctx context.Context, path, control string, body []byte, patience time.Duration) error {
	conn, err := c.connect(ctx, patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := bound(ctx, conn)
	defer stop()
	req := head(http.MethodPost, path, control)
	req = append(req, "Connection: close\r\nContent-Type: application/json\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n\r\n"...)
	if _, err := conn.Write(append(req, body...)); err != nil {
		return hearth.Wrap(hearth.Unavailable, err, "the guest daemon's connection broke")
	}
	res, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, maxAnswer)), nil)
	if err != nil {
		return hearth.Wrap(hearth.Unavailable, err, "the guest daemon gave no proper answer")
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusNoContent {
		return nil
	}
	return refusal(res)
}

// head is the beginning of a request, written by hand: one small write is all
// that a call on the way of every create should cost.
func head(method, target, control string) []byte {
	return fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: guest\r\n%s: %s\r\n", method, target, guest.ControlHeader, control)
}

func (c *Client) connect(ctx context.Context, patience time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := c.dial(ctx, guest.Port)
	if err != nil {
		return nil, hearth.Wrap(hearth.Unavailable, err, "the guest daemon cannot be reached")
	}
	return conn, nil
}

// bound makes conn fail when ctx ends or one exchange takes too long.
func bound(ctx context.Context, conn net.Conn) (stop func()) {
	deadline := time.Now().Add(exchange)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	_ = conn.SetDeadline(deadline)
	cancel := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return func() { cancel() }
}

// refusal is the error that an answer other than the wanted one stands for.
func refusal(res *http.Response) error {
	kind := hearth.Internal
	switch res.StatusCode {
	case http.StatusBadRequest:
		kind = hearth.InvalidArgument
	case http.StatusUnauthorized:
		kind = hearth.Unauthenticated
	case http.StatusNotFound:
		kind = hearth.NotFound
	case http.StatusBadGateway, http.StatusServiceUnavailable:
		kind = hearth.Unavailable
	case http.StatusInsufficientStorage:
		kind = hearth.ResourceExhausted
	}
	raw, _ := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	var body struct{ Message string }
	text := string(raw)
	if json.Unmarshal(raw, &body) == nil && body.Message != "" {
		text = body.Message
	}
	return hearth.Errorf(kind, "the guest daemon answered %d: %s", res.StatusCode, quote(text))
}

// quote makes a guest's text safe to show and to log.
func quote(s string) string {
	if len(s) > maxShown {
		s = s[:maxShown]
	}
	return strconv.QuoteToGraphic(s)
}

// Forward opens a connection to a port on the guest's loopback interface, where
// servers listen that were not told to listen elsewhere. A closed port is Unavailable.
func (c *Client) Forward(ctx context.Context, port uint16) (net.Conn, error) {
	conn, err := c.connect(ctx, lastDial)
	if err != nil {
		return nil, err
	}
	early, err := c.upgrade(ctx, conn, port)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return &forwarded{Conn: conn, early: early}, nil
}

// upgrade asks for the port and returns what came after the answer's head.
func (c *Client) upgrade(ctx context.Context, conn net.Conn, port uint16) (*bytes.Reader, error) {
	stop := bound(ctx, conn)
	defer stop()
	req := head(http.MethodGet, guest.ForwardPath+"?port="+strconv.Itoa(int(port)), c.control)
	req = append(req, "Connection: Upgrade\r\nUpgrade: hearth-forward\r\n\r\n"...)
	if _, err := conn.Write(req); err != nil {
		return nil, hearth.Wrap(hearth.Unavailable, err, "the guest daemon's connection broke")
	}
	r := bufio.NewReader(io.LimitReader(conn, maxAnswer))
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		return nil, hearth.Wrap(hearth.Unavailable, err, "the guest daemon gave no proper answer")
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		defer res.Body.Close()
		return nil, refusal(res)
	}
	early, err := r.Peek(r.Buffered())
	if err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, hearth.Wrap(hearth.Canceled, err, "the connection to port %d was given up", port)
	}
	stop()
	return bytes.NewReader(early), conn.SetDeadline(time.Time{})
}

// forwarded is a connection of which some bytes have been read already.
type forwarded struct {
	net.Conn
	early *bytes.Reader
}

// Read implements net.Conn.
func (f *forwarded) Read(p []byte) (int, error) {
	if f.early.Len() > 0 {
		return f.early.Read(p)
	}
	return f.Conn.Read(p)
}

// CloseWrite ends the one direction, where the connection below can do that.
func (f *forwarded) CloseWrite() error {
	if half, ok := f.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}
