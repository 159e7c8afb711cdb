package nodetest

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
	"time"

	"hearth/internal/driver/fake"
	"hearth/internal/guest"
	"hearth/internal/hearth"
)

// Ports of the fake daemon's guest, next to guest.Port.
const (
	WordPort     = 8000 // HTTP: GET reads the word, POST writes it; the token in X-Token
	LoopbackPort = 8001 // only through the daemon's forward
	ClosedPort   = 8002
)

// Daemon is the program of a fake guest that behaves as the real daemon does
// towards the host: sealed until Init, control secret on first use, forward.
func Daemon(g *fake.Guest) {
	if !g.Restored() {
		g.Put("sealed", "yes")
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("POST "+guest.InitPath, func(w http.ResponseWriter, r *http.Request) { initGuest(g, w, r) })
	mux.HandleFunc("POST "+guest.QuiescePath, func(w http.ResponseWriter, r *http.Request) { quiesce(g, w, r) })
	mux.HandleFunc("POST "+guest.RehearsePath, func(w http.ResponseWriter, _ *http.Request) { rehearse(g, w) })
	mux.HandleFunc("GET "+guest.ForwardPath, func(w http.ResponseWriter, r *http.Request) { forward(w, r) })
	mux.HandleFunc("POST "+guest.InventoryPath, func(w http.ResponseWriter, r *http.Request) { inventory(g, w, r) })
	g.ServeHTTP(guest.Port, mux)
	g.ServeHTTP(WordPort, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { word(g, w, r) }))
}

func allowed(g *fake.Guest, r *http.Request) bool {
	c := g.Load("control")
	return c == "" || c == r.Header.Get(guest.ControlHeader)
}

func initGuest(g *fake.Guest, w http.ResponseWriter, r *http.Request) {
	var req guest.InitRequest
	switch {
	case !allowed(g, r):
		w.WriteHeader(http.StatusUnauthorized)
	case json.NewDecoder(r.Body).Decode(&req) != nil || len(req.Seed) < 32 || req.Control == "" || req.Now.IsZero():
		w.WriteHeader(http.StatusBadRequest)
	default:
		g.Put("control", req.Control)
		g.Put("token", req.Token)
		g.Put("id", req.SandboxID)
		g.Put("sealed", "")
		w.WriteHeader(http.StatusNoContent)
	}
}

func quiesce(g *fake.Guest, w http.ResponseWriter, r *http.Request) {
	var req guest.QuiesceRequest
	switch {
	case !allowed(g, r):
		w.WriteHeader(http.StatusUnauthorized)
	case json.NewDecoder(r.Body).Decode(&req) != nil:
		w.WriteHeader(http.StatusBadRequest)
	default:
		g.Put("sealed", "yes")
		if req.Forget {
			for _, k := range []string{"control", "token", "id"} {
				g.Put(k, "")
			}
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

// rehearse is refused once the guest is somebody's.
func rehearse(g *fake.Guest, w http.ResponseWriter) {
	if g.Load("sealed") == "" || g.Load("control") != "" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// inventory lists one file, which has the word in it.
func inventory(g *fake.Guest, w http.ResponseWriter, r *http.Request) {
	switch {
	case !allowed(g, r):
		w.WriteHeader(http.StatusUnauthorized)
	case g.Load("sealed") == "":
		w.WriteHeader(http.StatusConflict)
	default:
		out := guest.NewInventoryWriter(w)
		out.Add(hearth.Entry{Path: "/word", Kind: hearth.RegularFile, Size: int64(len(g.Load("word")))})
		_ = out.End() // whoever asked has gone if this fails
	}
}

func forward(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("port") != fmt.Sprint(LoopbackPort) {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\n")
	_ = c.Close()
}

func word(g *fake.Guest, w http.ResponseWriter, r *http.Request) {
	switch {
	case g.Load("sealed") != "":
		w.WriteHeader(http.StatusServiceUnavailable)
	case r.Header.Get("X-Token") != g.Load("token"):
		w.WriteHeader(http.StatusUnauthorized)
	case r.Method == http.MethodPost:
		raw, _ := io.ReadAll(r.Body)
		g.Put("word", string(raw))
	default:
		_, _ = io.WriteString(w, g.Load("word"))
	}
}

// Client is the host's side of Daemon.
type Client struct {
	Dial    Dial
	Control string
}

// Ready asks for the daemon's health until it answers.
func (c *Client) Ready(ctx context.Context) error {
	for {
		err := c.call(ctx, http.MethodGet, "/health", nil)
		if err == nil {
			return nil
		}
		t := time.NewTimer(time.Millisecond)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

// Rehearse asks for a rehearsal.
func (c *Client) Rehearse(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, guest.RehearsePath, nil)
}

// Init waits until the daemon answers and unseals it.
func (c *Client) Init(ctx context.Context, req guest.InitRequest) error {
	if err := c.Ready(ctx); err != nil {
		return err
	}
	return c.call(ctx, http.MethodPost, guest.InitPath, req)
}

// Quiesce seals the daemon.
func (c *Client) Quiesce(ctx context.Context, req guest.QuiesceRequest) error {
	return c.call(ctx, http.MethodPost, guest.QuiescePath, req)
}

// Inventory lists the daemon's files.
func (c *Client) Inventory(ctx context.Context) ([]hearth.Entry, error) {
	if err := c.Ready(ctx); err != nil {
		return nil, err
	}
	conn, resp, err := c.do(ctx, http.MethodPost, guest.InventoryPath, nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, hearth.Errorf(hearth.Unavailable, "the daemon answered %d", resp.StatusCode)
	}
	list, _, err := guest.ReadInventory(resp.Body)
	return list, err
}

// Forward connects to a port of the guest's loopback.
func (c *Client) Forward(ctx context.Context, port uint16) (net.Conn, error) {
	conn, resp, err := c.do(ctx, http.MethodGet, fmt.Sprintf("%s?port=%d", guest.ForwardPath, port), nil)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		_ = conn.Close()
		return nil, hearth.Errorf(hearth.Unavailable, "nothing listens on port %d", port)
	}
	return conn, nil
}

func (c *Client) call(ctx context.Context, method, path string, body any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	conn, resp, err := c.do(ctx, method, path, raw)
	if err != nil {
		return err
	}
	defer conn.Close()
	if resp.StatusCode != http.StatusNoContent {
		return hearth.Errorf(hearth.Unavailable, "the guest answered %s to %s", resp.Status, path)
	}
	return nil
}

func (c *Client) do(ctx context.Context, method, path string, body []byte) (net.Conn, *http.Response, error) {
	conn, err := c.Dial(ctx, guest.Port)
	if err != nil {
		return nil, nil, err
	}
	resp, err := roundTrip(ctx, conn, question{method, path, body, http.Header{guest.ControlHeader: {c.Control}}})
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return conn, resp, nil
}

type question struct {
	method, path string
	body         []byte
	header       http.Header
}

// roundTrip sends one request over conn, which is closed when ctx ends first.
func roundTrip(ctx context.Context, conn net.Conn, ask question) (*http.Response, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	req, err := http.NewRequestWithContext(ctx, ask.method, "http://guest"+ask.path, bytes.NewReader(ask.body))
	if err != nil {
		return nil, err
	}
	for k, v := range ask.header {
		req.Header[http.CanonicalHeaderKey(k)] = v
	}
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	return http.ReadResponse(bufio.NewReader(conn), req)
}

// Poke writes the word of a guest that runs Daemon.
func Poke(ctx context.Context, dial Dial, token, word string) error {
	_, err := speak(ctx, dial, token, http.MethodPost, word)
	return err
}

// Peek reads it.
func Peek(ctx context.Context, dial Dial, token string) (string, error) {
	return speak(ctx, dial, token, http.MethodGet, "")
}

func speak(ctx context.Context, dial Dial, token, method, word string) (string, error) {
	conn, err := dial(ctx, WordPort)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	resp, err := roundTrip(ctx, conn, question{method, "/", []byte(word), http.Header{"X-Token": {token}}})
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", hearth.Errorf(hearth.Unavailable, "the guest answered %s", resp.Status)
	}
	raw, err := io.ReadAll(resp.Body)
	return string(raw), err
}
