package wire

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// server answers each request on a connection with what reply says; it closes the
// connection when that is empty or ends with a NUL, which is not sent.
func server(t *testing.T, reply func(conn, request int, r *http.Request) string) (cfg Config, dials *atomic.Int32) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for n := 1; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				in := bufio.NewReader(c)
				for i := 1; ; i++ {
					r, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					text, last := strings.CutSuffix(reply(n, i, r), "\x00")
					if _, err := io.WriteString(c, text); err != nil || text == "" || last {
						return
					}
				}
			}()
		}
	}()
	dials = new(atomic.Int32)
	return Config{Idle: time.Minute, Keep: 2, Header: 4 << 10, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		dials.Add(1)
		return (&net.Dialer{}).DialContext(ctx, network, l.Addr().String())
	}}, dials
}

// open returns a pool that is closed with the test.
func open(t *testing.T, cfg Config) *Pool {
	p := New(cfg)
	t.Cleanup(p.Close)
	return p
}

func ask(ctx context.Context, p *Pool, method string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://sandbox:80/x?y=z", nil)
	if err != nil {
		return "", err
	}
	resp, err := p.RoundTrip(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	return fmt.Sprintf("%d %s", resp.StatusCode, all), err
}

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// TestReuse says after which answers a connection takes another request.
func TestReuse(t *testing.T) {
	for name, c := range map[string]struct {
		method, reply, want string
		kept                bool
	}{
		"length":              {"GET", ok, "200 ok", true},
		"chunks":              {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-T: 1\r\n\r\n", "200 ok", true},
		"nothing":             {"GET", "HTTP/1.1 204 No Content\r\n\r\n", "204 ", true},
		"no body for HEAD":    {"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", "200 ", true},
		"options":             {"OPTIONS", ok, "200 ok", true},
		"information first":   {"GET", "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + ok, "200 ok", true},
		"end says length":     {"GET", "HTTP/1.1 200 OK\r\n\r\nok\x00", "200 ok", false},
		"it will be closed":   {"GET", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", "200 ok", false},
		"old protocol":        {"GET", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", "200 ok", false},
		"more than was asked": {"GET", ok + ok, "200 ok", false},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, dials := server(t, func(_, _ int, _ *http.Request) string { return c.reply })
			p := open(t, cfg)
			for range 3 {
				if got, err := ask(t.Context(), p, c.method); got != c.want || err != nil {
					t.Errorf("%q, %v", got, err)
				}
			}
			if got := dials.Load(); (got == 1) != c.kept || !c.kept && got != 3 {
				t.Errorf("%d connections", got)
			}
		})
	}
}

// TestStale: a connection that the server closed meanwhile, or closes without an
// answer, costs a second attempt and no error; a new one that does is an error.
func TestStale(t *testing.T) {
	cfg, dials := server(t, func(conn, request int, _ *http.Request) string {
		if conn == 1 && request == 2 || conn == 3 {
			return ""
		}
		if conn == 2 {
			return ok + "\x00"
		}
		return ok
	})
	p := open(t, cfg)
	for i := range 2 {
		if got, err := ask(t.Context(), p, "GET"); got != "200 ok" || err != nil {
			t.Errorf("request %d: %q, %v", i, got, err)
		}
	}
	if _, err := ask(t.Context(), p, "GET"); err == nil || dials.Load() != 3 {
		t.Errorf("%v after %d connections", err, dials.Load())
	}
}

// TestHalfAnAnswer is not asked for twice.
func TestHalfAnAnswer(t *testing.T) {
	cfg, dials := server(t, func(_, request int, _ *http.Request) string {
		if request == 2 {
			return "HTTP/1.1 200 OK\r\nContent-\x00"
		}
		return ok
	})
	p := open(t, cfg)
	if _, err := ask(t.Context(), p, "GET"); err != nil {
		t.Fatal(err)
	}
	if got, err := ask(t.Context(), p, "GET"); err == nil || dials.Load() != 1 {
		t.Errorf("%q, %v after %d connections", got, err, dials.Load())
	}
}

func TestHostileAnswers(t *testing.T) {
	for name, reply := range map[string]string{
		"long head":          "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 5<<10) + "\r\n\r\n",
		"endless heads":      strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", 200) + ok,
		"protocol changed":   "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
		"no HTTP":            "hello\r\n\r\n",
		"two lengths":        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
		"cut off":            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab\x00",
		"chunk of no length": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			cfg, _ := server(t, func(_, _ int, _ *http.Request) string { return reply })
			p := open(t, cfg)
			if got, err := ask(t.Context(), p, "GET"); err == nil {
				t.Errorf("%q", got)
			}
			if n := len(p.idle["sandbox:80"]); n != 0 {
				t.Errorf("%d connections are kept", n)
			}
		})
	}
}

// TestInformation: answers on the way are handed on, and whoever does not want
// them ends the request.
func TestInformation(t *testing.T) {
	cfg, _ := server(t, func(_, _ int, _ *http.Request) string { return "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + ok })
	p := open(t, cfg)
	var seen []string
	refuse := errors.New("no")
	for _, answer := range []error{nil, refuse} {
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			seen = append(seen, fmt.Sprint(code, h["Link"]))
			return answer
		}})
		if _, err := ask(ctx, p, "GET"); !errors.Is(err, answer) {
			t.Error(err)
		}
	}
	if got := fmt.Sprint(seen); got != "[103 [a] 103 [a]]" {
		t.Error(got)
	}
}

// TestCancel: whoever waits for a head or a body stops when the request does.
func TestCancel(t *testing.T) {
	for name, begin := range map[string]string{"head": "HTTP/1.1 200 OK\r\n", "body": "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab"} {
		t.Run(name, func(t *testing.T) {
			came := make(chan struct{})
			cfg, _ := server(t, func(_, _ int, _ *http.Request) string {
				close(came)
				return begin
			})
			p := open(t, cfg)
			why := errors.New("the client has gone")
			ctx, cancel := context.WithCancelCause(t.Context())
			go func() {
				<-came
				cancel(why)
			}()
			if _, err := ask(ctx, p, "GET"); err == nil || name == "head" && !errors.Is(err, why) {
				t.Error(err)
			}
		})
	}
}

// TestClosedBody: what was not read to its end ends the connection.
func TestClosedBody(t *testing.T) {
	cfg, dials := server(t, func(_, _ int, _ *http.Request) string { return ok })
	p := open(t, cfg)
	for range 2 {
		r, _ := http.NewRequestWithContext(t.Context(), "GET", "http://sandbox:80/", nil)
		resp, err := p.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if _, err := resp.Body.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Error(err)
		}
	}
	if dials.Load() != 2 {
		t.Errorf("%d connections", dials.Load())
	}
}

// TestIdle: connections are kept for their time and no longer, and at most as many
// as there may be.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open atomic.Int32
		cfg := Config{Idle: 4 * time.Second, Keep: 2, Header: 1 << 10, Dial: func(context.Context, string, string) (net.Conn, error) {
			c, s := net.Pipe()
			open.Add(1)
			go func() {
				for in := bufio.NewReader(s); ; {
					if _, err := http.ReadRequest(in); err != nil {
						s.Close()
						open.Add(-1)
						return
					}
					io.WriteString(s, ok)
				}
			}()
			return c, nil
		}}
		p := New(cfg)
		var bodies []io.ReadCloser
		for range 3 {
			r, _ := http.NewRequestWithContext(t.Context(), "GET", "http://sandbox:80/", nil)
			resp, err := p.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			bodies = append(bodies, resp.Body)
		}
		for _, b := range bodies {
			io.Copy(io.Discard, b)
		}
		for _, step := range []struct {
			wait time.Duration
			use  bool
			want int
		}{{0, false, 2}, {3 * time.Second, true, 2}, {2 * time.Second, false, 1}, {3 * time.Second, false, 0}, {0, true, 1}} {
			time.Sleep(step.wait)
			if step.use {
				if _, err := ask(t.Context(), p, "GET"); err != nil {
					t.Fatal(err)
				}
			}
			if synctest.Wait(); int(open.Load()) != step.want {
				t.Errorf("%+v: %d are open", step, open.Load())
			}
		}
		p.Close()
		if synctest.Wait(); open.Load() != 0 {
			t.Errorf("%d are open in the end", open.Load())
		}
		if _, err := ask(t.Context(), p, "GET"); err != nil { // the life is over, but it is its dialer that says so
			t.Error(err)
		}
		if synctest.Wait(); open.Load() != 0 {
			t.Errorf("%d are open after one more", open.Load())
		}
	})
}

func TestCarries(t *testing.T) {
	for want, list := range map[bool][]*http.Request{
		true:  {{Method: "GET"}, {Method: "HEAD", Body: http.NoBody}, {Method: "OPTIONS"}},
		false: {{Method: "POST"}, {Method: "DELETE"}, {Method: "GET", Body: io.NopCloser(strings.NewReader("x"))}, {Method: "GET", Header: http.Header{"Upgrade": {"websocket"}}}, {Method: "GET", Header: http.Header{"Expect": {"100-continue"}}}},
	} {
		for _, r := range list {
			if Carries(r) != want {
				t.Errorf("%s %v: %v", r.Method, r.Header, !want)
			}
		}
	}
}
