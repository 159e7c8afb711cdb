package daemon

import (
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"hearth/internal/guest/files"
	"hearth/internal/guest/splice"
)

const (
	forwardProtocol = "hearth-forward"
	forwardDial     = 5 * time.Second
)

// connections knows the open connections, so that those of another life can be cut.
type connections struct {
	mu       sync.Mutex
	open     map[net.Conn]http.ConnState
	forwards map[net.Conn]struct{} // taken over from the server
	work     sync.WaitGroup
}

func newConnections() *connections {
	return &connections{open: map[net.Conn]http.ConnState{}, forwards: map[net.Conn]struct{}{}}
}

// track is the server's ConnState hook.
func (c *connections) track(conn net.Conn, to http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if to == http.StateClosed || to == http.StateHijacked {
		delete(c.open, conn)
		return
	}
	c.open[conn] = to
}

// closeOthers cuts every connection but the one that r came on.
func (c *connections) closeOthers(r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		if conn.RemoteAddr().String() != r.RemoteAddr {
			_ = conn.Close()
		}
	}
	for conn := range c.forwards {
		_ = conn.Close()
	}
}

// closeForwards cuts what the server does not know any more and waits.
func (c *connections) closeForwards() {
	c.mu.Lock()
	for conn := range c.forwards {
		_ = conn.Close()
	}
	c.mu.Unlock()
	c.work.Wait()
}

// adopt notes a connection taken over from the server, until release is called.
func (c *connections) adopt(conn net.Conn) (release func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forwards[conn] = struct{}{}
	c.work.Add(1)
	return func() {
		c.mu.Lock()
		delete(c.forwards, conn)
		c.mu.Unlock()
		c.work.Done()
	}
}

// forward turns the request's connection into one to a port on the loopback interface.
func (d *Daemon) forward(w http.ResponseWriter, r *http.Request) {
	port, err := strconv.ParseUint(r.URL.Query().Get("port"), 10, 16)
	if err != nil || port == 0 {
		files.WriteError(w, http.StatusBadRequest, "port: a number from 1 to 65535 is needed")
		return
	}
	dialer := net.Dialer{Timeout: forwardDial}
	back, err := dialer.DialContext(r.Context(), "tcp4", net.JoinHostPort("127.0.0.1", strconv.FormatUint(port, 10)))
	if err != nil {
		back, err = dialer.DialContext(r.Context(), "tcp6", net.JoinHostPort("::1", strconv.FormatUint(port, 10)))
	}
	if err != nil {
		files.WriteError(w, http.StatusBadGateway, "port "+strconv.FormatUint(port, 10)+" is not open")
		return
	}
	defer back.Close()
	hijacker, ok := w.(http.Hijacker)
	if !ok {
		files.WriteError(w, http.StatusHTTPVersionNotSupported, "forwarding needs HTTP/1.1")
		return
	}
	front, buffered, err := hijacker.Hijack()
	if err != nil {
		files.WriteError(w, http.StatusInternalServerError, "the connection cannot be taken over")
		return
	}
	defer front.Close()
	defer d.conns.adopt(front)()
	const answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + forwardProtocol + "\r\n\r\n"
	if _, err := front.Write([]byte(answer)); err != nil {
		return
	}
	splice.Join(splice.End{Conn: front, From: buffered}, splice.End{Conn: back, From: back})
}
