package edge

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
)

// TestEarlyAnswer: what a client still sends of a body after it was answered is
// never read as a request, so the answer says that the connection ends; one that
// has sent all keeps it.
func TestEarlyAnswer(t *testing.T) {
	town := newTown()
	town.serve(t, alpha, 3000, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		must(t, http.NewResponseController(w).EnableFullDuplex()) // do not wait for the body
		if r.URL.Path == "/read" {
			io.Copy(io.Discard, r.Body)
		}
		w.WriteHeader(http.StatusTeapot)
		must(t, http.NewResponseController(w).Flush())
	}))
	_, s := town.open(t, Config{})
	for name, c := range map[string]struct {
		path, port, head, body string
		status                 int
		closed                 bool
	}{
		"none":           {"/", "3000", "", "", 418, false},
		"whole":          {"/read", "3000", "Content-Length: 2\r\n", "ab", 418, false},
		"whole chunks":   {"/read", "3000", "Transfer-Encoding: chunked\r\n", "2\r\nab\r\n0\r\n\r\n", 418, false},
		"part":           {"/", "3000", "Content-Length: 100\r\n", "ab", 418, true},
		"part of chunks": {"/", "3000", "Transfer-Encoding: chunked\r\n", "2\r\nab\r\n", 418, true},
		"closed port":    {"/", "3001", "Content-Length: 100\r\n", "ab", 502, true},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", s.Listener.Addr().String())
			must(t, err)
			defer conn.Close()
			fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\n%s: %s\r\n%s: %s\r\n%s\r\n%s", c.path, SandboxHeader, alpha, PortHeader, c.port, c.head, c.body)
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			must(t, err)
			defer resp.Body.Close()
			if resp.StatusCode != c.status || resp.Close != c.closed {
				t.Errorf("%s, closed %v", resp.Status, resp.Close)
			}
		})
	}
}
