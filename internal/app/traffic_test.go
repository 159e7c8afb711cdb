package app

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// TestUnwantedBodyIsNotWaitedFor: a stranger announces a body and never sends
// it. He is answered and disconnected; whoever sends all of it keeps his connection.
func TestUnwantedBodyIsNotWaitedFor(t *testing.T) {
	h := impatient(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
	}), 100*time.Millisecond)
	s := httptest.NewServer(h)
	defer s.Close()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	for _, body := range []string{"0123456789", ""} {
		fmt.Fprintf(conn, "POST /sandboxes HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n%s", body)
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("body %q: %v", body, err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		if res.StatusCode != http.StatusUnauthorized || res.Close != (body == "") {
			t.Errorf("body %q: %s, closes %t", body, res.Status, res.Close)
		}
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("after the last answer: %v, want the end", err)
	}
}
