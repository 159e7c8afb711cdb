package pass

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// rig is a server on a unix socket and one that passes on to it.
func rig(t *testing.T, back http.Handler) *httptest.Server {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(back)
	_ = server.Listener.Close()
	server.Listener = l
	server.Start()
	t.Cleanup(server.Close)
	return front(t, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	})
}

func front(t *testing.T, dial func(context.Context) (net.Conn, error)) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(&Handler{Dial: dial, Fail: func(w http.ResponseWriter, err error) { http.Error(w, err.Error(), http.StatusBadGateway) }})
	t.Cleanup(s.Close)
	return s
}

func TestPass(t *testing.T) {
	s := rig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Seen", fmt.Sprint(r.Method, r.Host, r.URL, r.ContentLength, r.Header["X-Forwarded-For"], r.Header["X-Hop"], r.Header["User-Agent"], r.Header["X-End"], r.Close))
		w.Header().Add("Set-Cookie", "a=b")
		w.Header().Add("Set-Cookie", "c=d")
		w.WriteHeader(http.StatusAccepted)
		_, _ = w.Write(b)
	}))
	for name, c := range map[string]struct {
		method string
		body   io.Reader
		seen   string
		answer string
	}{
		"none":    {"GET", nil, "0", ""},
		"head":    {"HEAD", nil, "0", ""},
		"length":  {"POST", strings.NewReader("abc"), "3", "abc"},
		"chunked": {"PUT", io.MultiReader(strings.NewReader("abc")), "-1", "abc"},
		"large":   {"POST", strings.NewReader(strings.Repeat("x", 1<<20)), "1048576", strings.Repeat("x", 1<<20)},
	} {
		r, _ := http.NewRequestWithContext(t.Context(), c.method, s.URL+"/a%2Fb?c=d", c.body)
		r.Host = "the.host"
		r.Header = http.Header{"X-Forwarded-For": {"forged"}, "Connection": {"X-Hop"}, "X-Hop": {"1"}, "X-End": {"2"}, "User-Agent": {""}}
		res, err := s.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		want := fmt.Sprint(c.method, "the.host", "/a%2Fb?c=d", " ", c.seen, " [] [] [] [2] true")
		if got := res.Header.Get("X-Seen"); strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(want, " ", "") {
			t.Errorf("%s: seen %s, want %s", name, got, want)
		}
		if res.StatusCode != http.StatusAccepted || string(b) != c.answer || len(res.Header["Set-Cookie"]) != 2 {
			t.Errorf("%s: %s %.100q %v", name, res.Status, b, res.Header)
		}
	}
}

// TestStreams: parts of an answer come as they are sent, and the server learns that the client is gone.
func TestStreams(t *testing.T) {
	next, gone := make(chan struct{}), make(chan struct{})
	s := rig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for i := range 3 {
			fmt.Fprintln(w, i)
			w.(http.Flusher).Flush()
			<-next
		}
		<-r.Context().Done()
		close(gone)
	}))
	ctx, cancel := context.WithCancel(t.Context())
	r, _ := http.NewRequestWithContext(ctx, http.MethodGet, s.URL, nil)
	res, err := s.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for i := range 3 {
		if !lines.Scan() || lines.Text() != fmt.Sprint(i) {
			t.Errorf("line %d: %q", i, lines.Text())
		}
		next <- struct{}{}
	}
	cancel()
	<-gone
}

// TestUpgrade: after a switch of protocols both directions are passed on, what was sent early too.
func TestUpgrade(t *testing.T) {
	s := rig(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		nc, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer nc.Close()
		fmt.Fprintf(nc, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\nX-Key: %s\r\n\r\nfirst\n", r.Header.Get("Upgrade"), r.Header.Get("X-Key"))
		line, _ := rw.ReadString('\n')
		fmt.Fprintf(nc, "got %s", line)
	}))
	nc, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_, _ = io.WriteString(nc, "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nX-Key: k\r\n\r\nearly\n")
	from := bufio.NewReader(nc)
	res, err := http.ReadResponse(from, nil)
	if err != nil || res.StatusCode != 101 || res.Header.Get("X-Key") != "k" || res.Header.Get("Upgrade") != "websocket" {
		t.Fatalf("%v %v", res, err)
	}
	if b, _ := io.ReadAll(from); string(b) != "first\ngot early\n" {
		t.Errorf("%q", b)
	}
}

// TestHostile: a server that answers nonsense costs an answer, nothing else.
func TestHostile(t *testing.T) {
	for name, c := range map[string]struct {
		sent   string
		status int // 0: the answer breaks off
	}{
		"nothing":           {"", 502},
		"no HTTP":           {"hello\r\n\r\n", 502},
		"endless head":      {"HTTP/1.1 200 OK\r\nA: " + strings.Repeat("a", maxHead), 502},
		"only 1xx":          {strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 10), 502},
		"unasked upgrade":   {"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", 502},
		"after 1xx":         {"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200},
		"breaks off":        {"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nok", 0},
		"bad chunk":         {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n", 0},
		"until end of file": {"HTTP/1.1 200 OK\r\n\r\nok", 200},
	} {
		s := front(t, func(context.Context) (net.Conn, error) {
			mine, its := net.Pipe()
			go func() {
				_, _ = http.ReadRequest(bufio.NewReader(its))
				_, _ = io.WriteString(its, c.sent)
				_ = its.Close()
			}()
			return mine, nil
		})
		res, err := s.Client().Get(s.URL)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		_, err = io.ReadAll(res.Body)
		_ = res.Body.Close()
		if c.status == 0 && err == nil || c.status != 0 && (res.StatusCode != c.status || err != nil) {
			t.Errorf("%s: %s, %v", name, res.Status, err)
		}
	}
}

// TestBrokenRequest: of a request that breaks off, server and client learn.
func TestBrokenRequest(t *testing.T) {
	broken := make(chan error, 1)
	s := rig(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		broken <- err
	}))
	nc, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_, _ = io.WriteString(nc, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
	_ = nc.(*net.TCPConn).CloseWrite()
	res, err := http.ReadResponse(bufio.NewReader(nc), nil)
	if err != nil || res.StatusCode != http.StatusBadGateway {
		t.Errorf("%v, %v", res, err)
	}
	if err := <-broken; err == nil {
		t.Error("the server took the beginning of a body for all of it")
	}
}

func TestUnreachable(t *testing.T) {
	s := front(t, func(context.Context) (net.Conn, error) { return nil, io.ErrClosedPipe })
	res, err := s.Client().Get(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusBadGateway {
		t.Error(res.Status)
	}
}
