package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// endWait is how long connections are waited for: to be made, answered, ended.
const endWait = time.Minute

// connections are the TCP connections that the suite asked for, by name. Somebody
// is always reading from each, as a client that waits for its server does.
type connections struct {
	mu   sync.Mutex
	all  map[string]*connection
	echo net.Listener // on the loopback
}

type connection struct {
	net.Conn
	got   chan string   // what was read
	ended chan struct{} // closed when reading failed
	err   error         // how, then
}

func (c *connections) routes(mux *http.ServeMux) {
	mux.HandleFunc("/connect", c.connect)
	mux.HandleFunc("/loop", c.loop)
	mux.HandleFunc("/hold", c.hold)
	mux.HandleFunc("/say", c.say)
	mux.HandleFunc("/ended", c.ended)
	mux.HandleFunc("/trust", trust)
}

func (c *connections) add(name string, conn net.Conn) {
	n := &connection{Conn: conn, got: make(chan string, 8), ended: make(chan struct{})}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = map[string]*connection{}
	}
	c.all[name] = n
	go func() {
		defer close(n.ended)
		for b := make([]byte, 1024); ; {
			k, err := n.Read(b)
			if k > 0 {
				n.got <- string(b[:k])
			}
			if err != nil {
				n.err = err
				return
			}
		}
	}()
}

func (c *connections) named(r *http.Request) *connection {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all[r.FormValue("name")]
}

// connect dials an address outside.
func (c *connections) connect(w http.ResponseWriter, r *http.Request) {
	conn, err := net.DialTimeout("tcp", r.FormValue("address"), endWait)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	c.add(r.FormValue("name"), conn)
}

// loop connects to a server of its own that sends everything back, over loopback.
func (c *connections) loop(w http.ResponseWriter, r *http.Request) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil {
		c.echo = l
		go func() {
			if conn, err := l.Accept(); err == nil {
				_, _ = io.Copy(conn, conn)
			}
		}()
		var conn net.Conn
		if conn, err = net.Dial("tcp", l.Addr().String()); err == nil {
			c.add(r.FormValue("name"), conn)
			return
		}
	}
	http.Error(w, err.Error(), http.StatusInternalServerError)
}

// hold keeps the connection over which it is asked.
func (c *connections) hold(w http.ResponseWriter, r *http.Request) {
	name := r.FormValue("name")
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	c.add(name, conn)
	_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nheld")
}

// say writes a line to a connection and answers with what comes back.
func (c *connections) say(w http.ResponseWriter, r *http.Request) {
	n := c.named(r)
	if n == nil {
		http.Error(w, "no such connection", http.StatusNotFound)
		return
	}
	if _, err := io.WriteString(n, r.FormValue("line")); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	select {
	case got := <-n.got:
		fmt.Fprint(w, got)
	case <-n.ended:
		http.Error(w, n.err.Error(), http.StatusInternalServerError)
	case <-time.After(endWait):
		http.Error(w, "no answer", http.StatusGatewayTimeout)
	}
}

// ended waits for the one who reads from a connection to be told of its end, and
// says how: "reset", "eof", or the error.
func (c *connections) ended(w http.ResponseWriter, r *http.Request) {
	n := c.named(r)
	if n == nil {
		http.Error(w, "no such connection", http.StatusNotFound)
		return
	}
	select {
	case <-n.ended:
	case <-time.After(endWait):
		fmt.Fprint(w, "open")
		return
	}
	switch _, err := n.Write([]byte("x")); {
	case err == nil:
		fmt.Fprint(w, "writable")
	case errors.Is(n.err, unix.ECONNRESET), errors.Is(n.err, unix.ECONNABORTED):
		fmt.Fprint(w, "reset")
	case errors.Is(n.err, io.EOF):
		fmt.Fprint(w, "eof")
	default:
		fmt.Fprint(w, n.err)
	}
}

// trust makes a TLS connection to a server whose certificate it is given, which
// it believes if its clock says that it is valid.
func trust(w http.ResponseWriter, r *http.Request) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(r.FormValue("pem"))) {
		http.Error(w, "no certificate", http.StatusBadRequest)
		return
	}
	d := &net.Dialer{Timeout: endWait}
	conn, err := tls.DialWithDialer(d, "tcp", r.FormValue("address"), &tls.Config{RootCAs: pool, ServerName: "outside"})
	if err != nil {
		fmt.Fprint(w, err)
		return
	}
	_ = conn.Close()
	fmt.Fprint(w, "trusted")
}

// serveIdentity says who the machine is: its name, then its addresses, a line each.
func serveIdentity(w http.ResponseWriter, _ *http.Request) {
	name, err := os.Hostname()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	lines := []string{name}
	links, err := net.Interfaces()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	for _, l := range links {
		if l.Flags&net.FlagLoopback != 0 {
			continue
		}
		addresses, _ := l.Addrs()
		for _, a := range addresses {
			lines = append(lines, a.String())
		}
		lines = append(lines, l.HardwareAddr.String())
	}
	fmt.Fprint(w, strings.Join(lines, "\n"))
}
