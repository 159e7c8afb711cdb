package app

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"hearth/internal/control"
	"hearth/internal/dash"
	"hearth/internal/edge"
	"hearth/spec"
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
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
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

// TestWhoServesWhat: the dashboard is on the API's host names alone, takes no
// path that the API has, and does so only when it is on.
func TestWhoServesWhat(t *testing.T) {
	say := func(who string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, who) })
	}
	traffic := edge.New(edge.Config{Domain: "box.test"}, edge.Deps{Resolver: gateway{&App{control: control.New(control.Deps{})}}})
	defer traffic.Close()
	on, off := split(traffic, say("dash"), say("api")), split(traffic, nil, say("api"))
	for _, test := range []struct{ host, path, header, on, off string }{
		{"127.0.0.1:3000", "/dash", "", "dash", "api"},
		{"127.0.0.1:3000", "/dash/", "", "dash", "api"},
		{"api.box.test", "/dash/sandboxes/i1", "", "dash", "api"},
		{"api.box.test", "/dashboard", "", "api", "api"},
		{"api.box.test", "/sandboxes/dash/", "", "api", "api"},
		{"80-i1.box.test", "/dash/", "", "", ""},
		{"127.0.0.1:3000", "/dash/", "i1", "", ""},
	} {
		for want, h := range map[*string]http.Handler{&test.on: on, &test.off: off} {
			r := httptest.NewRequest("GET", "http://"+test.host+test.path, nil)
			if test.header != "" {
				r.Header.Set(edge.SandboxHeader, test.header)
				r.Header.Set(edge.PortHeader, "80")
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if got := w.Body.String(); got != *want && (*want != "" || got == "dash" || got == "api") {
				t.Errorf("%s%s %s: %q, want %q", test.host, test.path, test.header, got, *want)
			}
		}
	}
	if strings.Contains(string(spec.OpenAPI()), "\n  "+strings.TrimSuffix(dash.Root, "/")) {
		t.Error("the API has a path of the dashboard's")
	}
}
