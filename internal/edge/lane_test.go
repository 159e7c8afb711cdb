package edge

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"hearth/internal/guest"
	"hearth/internal/hearth"
)

// raws is a server in a sandbox that answers each request on a connection with what
// reply says; it closes the connection when that is empty or ends with a NUL, which
// is not sent.
func (t *town) raws(tb testing.TB, port int, reply func(conn, request int, r *http.Request) string) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(tb, err)
	tb.Cleanup(func() { l.Close() })
	t.mu.Lock()
	t.ports[fmt.Sprintf("%s:%d", alpha, port)] = l.Addr().String()
	t.mu.Unlock()
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
}

// client is a connection to an edge.
type client struct {
	net.Conn
	in *bufio.Reader
}

func dial(t *testing.T, s *httptest.Server) *client {
	t.Helper()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	must(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	return &client{conn, bufio.NewReader(conn)}
}

// line is a request to a port of alpha.
func line(method, path string, port int, fields ...string) string {
	return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: h\r\n%s: %s\r\n%s: %d\r\n%s", method, path, SandboxHeader, alpha, PortHeader, port, strings.Join(append(fields, "\r\n"), "\r\n"))
}

// ask sends a request and returns the answer.
func (c *client) ask(request, method string) (*http.Response, string, error) {
	if _, err := io.WriteString(c, request); err != nil {
		return nil, "", err
	}
	resp, err := http.ReadResponse(c.in, &http.Request{Method: method})
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

// TestLaneIsTheServer: what the lane passes on, the server without it would have
// passed on, too: the guest sees the same, and the client gets the same.
func TestLaneIsTheServer(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 2\r\n\r\nok"
	type request struct {
		method, path string
		fields       []string
		body         string
	}
	get := request{method: "GET", path: "/"}
	for name, c := range map[string]struct {
		request
		answer string
		odd    bool
	}{
		"get":                 {get, ok, false},
		"head":                {request{method: "HEAD", path: "/a%20b?c=%2F"}, "HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 2\r\n\r\n", false},
		"post":                {request{"POST", "/", []string{"Content-Length: 3", "Content-Type: c/d"}, "abc"}, ok, false},
		"delete":              {request{method: "DELETE", path: "/x"}, "HTTP/1.1 204 No Content\r\n\r\n", false},
		"fields":              {request{method: "GET", path: "/", fields: []string{"X-A: 1", "x-a: 2", "Cookie: a=b", "X-Forwarded-For: 1.2.3.4", "Forwarded: for=x", "X-Forwarded-Host: y", guest.ControlHeader + ": z", TokenHeader + ": t", "Connection: keep-alive"}}, ok, false},
		"fields of an answer": {get, "HTTP/1.1 201 Made\r\nSet-Cookie: a=b\r\nset-cookie: c=d\r\nContent-Type: a/b\r\nContent-Length: 0\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive\r\n\r\n", false},
		"chunks":              {get, "HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\n\r\n", false},
		"not modified":        {get, "HTTP/1.1 304 Not Modified\r\nEtag: x\r\n\r\n", false},
		"last answer":         {get, "HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok\x00", false},
		"more than was asked": {get, ok + ok, false},

		"until the end":         {get, "HTTP/1.1 200 OK\r\nContent-Type: a/b\r\n\r\nok\x00", true},
		"old protocol":          {get, "HTTP/1.0 200 OK\r\nContent-Type: a/b\r\nContent-Length: 2\r\n\r\nok\x00", true},
		"bare line ends":        {get, "HTTP/1.1 200 OK\nContent-Type: a/b\nContent-Length: 2\n\nok", true},
		"information first":     {get, "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + ok, true},
		"trailers":              {get, "HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n1\r\na\r\n0\r\nX-T: 1\r\n\r\n", true},
		"switched unasked":      {get, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n", true},
		"both framings":         {get, "HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", true},
		"no HTTP":               {get, "SSH-2.0-x\r\n\x00", true},
		"endless head":          {get, "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 300<<10) + "\r\nContent-Length: 0\r\n\r\n", true},
		"nothing":               {get, "", true},
		"sent twice by nobody":  {request{"POST", "/", []string{"Content-Length: 3"}, "abc"}, "", true},
		"answer to a post, odd": {request{"POST", "/", []string{"Content-Length: 3"}, "abc"}, "HTTP/1.1 200 OK\r\nContent-Type: a/b\r\n\r\nok\x00", true},
		"chunked request":       {request{"POST", "/", []string{"Transfer-Encoding: chunked"}, "3\r\nabc\r\n0\r\n\r\n"}, ok, true},
		"connection's own":      {request{method: "GET", path: "/", fields: []string{"Connection: X-A", "X-A: 1"}}, ok, true},
		"large":                 {request{"POST", "/", []string{fmt.Sprint("Content-Length: ", plainBody+1)}, strings.Repeat("x", plainBody+1)}, ok, true},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var seen [2][]map[string]any
			var got [2]map[string]any
			for way := range 2 {
				town := newTown()
				town.raws(t, 3000, func(_, _ int, r *http.Request) string {
					body, _ := io.ReadAll(r.Body)
					r.Header.Del("Content-Length")
					mu.Lock()
					defer mu.Unlock()
					seen[way] = append(seen[way], map[string]any{"method": r.Method, "uri": r.RequestURI, "host": r.Host, "header": r.Header, "body": string(body)})
					return c.answer
				})
				town.serve(t, alpha, 3001, say("next"))
				e, s := town.open(t, Config{})
				if way == 1 {
					s = httptest.NewServer(e) // without a lane
					t.Cleanup(s.Close)
				}
				conn := dial(t, s)
				resp, body, err := conn.ask(line(c.method, c.path, 3000, append(c.fields, "User-Agent: x")...)+c.body, c.method)
				must(t, err)
				for _, own := range []string{"Date", "Content-Length"} {
					resp.Header.Del(own) // the server adds them where a guest does not
				}
				got[way] = map[string]any{"status": resp.StatusCode, "header": resp.Header, "body": body, "trailer": resp.Trailer, "close": resp.Close}
				if way == 0 && (town.served.Load() > 0) != c.odd {
					t.Errorf("%d requests were the server's; odd: %v", town.served.Load(), c.odd)
				}
				if _, _, err := conn.ask(line("GET", "/next", 3001), "GET"); !resp.Close && err != nil {
					t.Errorf("the next request on the connection: %v", err)
				}
			}
			if !reflect.DeepEqual(got[0], got[1]) {
				t.Errorf("the client got\n%v, without a lane\n%v", got[0], got[1])
			}
			if !reflect.DeepEqual(seen[0], seen[1]) {
				t.Errorf("the guest saw\n%v, without a lane\n%v", seen[0], seen[1])
			}
		})
	}
}

// TestLaneRefusesNothingItself: what may not pass is the server's to refuse.
func TestLaneRefusesNothingItself(t *testing.T) {
	town := newTown()
	town.serve(t, alpha, 3000, mirror())
	town.serve(t, alpha, guest.Port, mirror())
	town.change(alpha, func(r *Route) { r.PrivateIngress, r.TrafficToken = true, "right" })
	_, s := town.open(t, Config{})
	for request, want := range map[string]int{
		line("GET", "/", 3000):                                                             403,
		line("GET", "/", 3000, TokenHeader+": wrong"):                                      403,
		line("GET", "/", 3000, TokenHeader+": ", TokenHeader+": right"):                    403,
		line("GET", "/", 3000, TokenHeader+": right"):                                      200,
		line("GET", "/", 3000, TokenHeader+": right", PortHeader+": 3000"):                 400,
		line("GET", "/", 3001, TokenHeader+": right"):                                      502,
		line("GET", guest.InitPath, guest.Port):                                            404,
		line("GET", "/x/.."+guest.InitPath, guest.Port):                                    404,
		line("GET", "/"+guest.InitPath, guest.Port):                                        404,
		line("GET", strings.ToUpper(guest.InitPath), guest.Port):                           404,
		line("GET", "/%69nit", guest.Port):                                                 404,
		line("GET", guest.InitPath+";x", guest.Port):                                       404,
		line("GET", "/health", guest.Port):                                                 200,
		strings.Replace(line("GET", "/", 3000), alpha, "i"+strings.Repeat("0", 19), 1):     502,
		strings.Replace(line("GET", "/", 3000), alpha, "../"+alpha, 1):                     400,
		strings.Replace(line("GET", "/", 3000, TokenHeader+": right"), ": 3000", ": 0", 1): 400,
	} {
		if resp, body, err := dial(t, s).ask(request, "GET"); err != nil || resp.StatusCode != want {
			t.Errorf("%q: %v, %v, %s; want %d", request, resp, err, body, want)
		}
	}
}

// TestLaneKeepsConnections: one into the sandbox serves one request after the other,
// and several that come at once over one connection are answered in their order.
func TestLaneKeepsConnections(t *testing.T) {
	town := newTown()
	town.serve(t, alpha, 3000, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s%s", r.URL.Path, body)
	}))
	_, s := town.open(t, Config{})
	c := dial(t, s)
	large := strings.Repeat("x", plainBody-1)
	send := func(requests string, wants ...string) {
		t.Helper()
		_, err := io.WriteString(c, requests)
		must(t, err)
		for _, want := range wants {
			if _, body, err := c.ask("", "GET"); err != nil || body != want {
				t.Errorf("got %.20q, %v; want %.20q", body, err, want)
			}
		}
	}
	send(line("GET", "/a", 3000)+line("POST", "/b", 3000, "Content-Length: 1")+"-"+line("GET", "/c", 3000), "/a", "/b-", "/c")
	if town.dials.Load() != 1 || town.served.Load() != 0 {
		t.Errorf("%d connections into the sandbox, %d requests outside of the lane", town.dials.Load(), town.served.Load())
	}
	// On a busy host this body may come too late for the lane.
	send(line("POST", "/d", 3000, fmt.Sprint("Content-Length: ", len(large)))+large+line("GET", "/e", 3000), "/d"+large, "/e")
}

// TestLaneAfterTheServer: a connection comes back into the lane after a request that
// was plain, but the server's, even if the next one came before its answer; not after
// one of which the lane cannot tell the end.
func TestLaneAfterTheServer(t *testing.T) {
	refused := "POST /api HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n"
	large := line("POST", "/large", 3000, fmt.Sprint("Content-Length: ", 2*plainBody))
	for name, c := range map[string]struct {
		sends  []string // each when the answers to the one before are there
		wants  []int
		served int64
	}{
		"a refusal":            {[]string{line("GET", "/", 3000), refused + "abc", line("GET", "/", 3000), line("GET", "/", 3000)}, []int{200, 400, 200, 200}, 1},
		"a large body":         {[]string{large + strings.Repeat("x", 2*plainBody), line("GET", "/", 3000)}, []int{200, 200}, 1},
		"a closed port":        {[]string{line("GET", "/", 3001), line("GET", "/", 3000)}, []int{502, 200}, 1},
		"a chunked body":       {[]string{line("POST", "/", 3000, "Transfer-Encoding: chunked") + "3\r\nabc\r\n0\r\n\r\n", line("GET", "/", 3000)}, []int{200, 200}, 2},
		"another waits behind": {[]string{refused + "abc" + line("GET", "/", 3000), line("GET", "/", 3000)}, []int{400, 200, 200}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			town := newTown()
			town.serve(t, alpha, 3000, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				n, err := io.Copy(io.Discard, r.Body)
				fmt.Fprint(w, n, err)
			}))
			_, s := town.open(t, Config{})
			conn := dial(t, s)
			for _, send := range c.sends {
				_, err := io.WriteString(conn, send)
				must(t, err)
				for range strings.Count(send, "HTTP/1.1") {
					resp, body, err := conn.ask("", "GET")
					must(t, err)
					if resp.StatusCode != c.wants[0] {
						t.Errorf("%s, %s; want %d", resp.Status, body, c.wants[0])
					}
					c.wants = c.wants[1:]
				}
			}
			if n := town.served.Load(); n != c.served {
				t.Errorf("%d requests were the server's, want %d", n, c.served)
			}
		})
	}
}

// TestLaneStale: a connection that the server closes without an answer costs a second
// attempt, unless the request may not be sent twice or an answer had begun.
func TestLaneStale(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	for name, c := range map[string]struct {
		request, broken string
		status, dials   int
	}{
		"get":                   {line("GET", "/", 3000), "", 200, 2},
		"post":                  {line("POST", "/", 3000, "Content-Length: 0"), "", 502, 1},
		"get, half an answer":   {line("GET", "/", 3000), "HTTP/1.1 200 OK\r\nContent-\x00", 502, 1},
		"delete, half a status": {line("DELETE", "/", 3000), "HTTP/1.1\x00", 502, 1},
	} {
		t.Run(name, func(t *testing.T) {
			town := newTown()
			town.raws(t, 3000, func(conn, request int, _ *http.Request) string {
				if conn == 1 && request == 2 {
					return c.broken
				}
				return ok
			})
			_, s := town.open(t, Config{})
			conn := dial(t, s)
			if resp, _, err := conn.ask(line("GET", "/", 3000), "GET"); err != nil || resp.StatusCode != 200 {
				t.Fatal(resp, err)
			}
			if resp, _, err := conn.ask(c.request, "GET"); err != nil || resp.StatusCode != c.status || town.dials.Load() != int64(c.dials) {
				t.Errorf("%v, %v after %d connections", resp, err, town.dials.Load())
			}
		})
	}
}

// TestLaneBodies: large answers arrive whole, and a broken one does not end as if it
// were.
func TestLaneBodies(t *testing.T) {
	want := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	town := newTown()
	town.serve(t, alpha, 3000, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/length" {
			w.Header().Set("Content-Length", fmt.Sprint(len(want)))
		}
		for rest := want; len(rest) > 0; rest = rest[len(rest)/3+1:] {
			w.Write(rest[:len(rest)/3+1])
			w.(http.Flusher).Flush()
		}
	}))
	cut := map[string]string{
		"/length": "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf\x00",
		"/chunks": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf\x00",
		"/wrong":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nhalf\r\n",
	}
	town.raws(t, 3001, func(_, _ int, r *http.Request) string { return cut[r.URL.Path] })
	_, s := town.open(t, Config{})
	for _, path := range []string{"/length", "/chunks"} {
		if _, body, err := dial(t, s).ask(line("GET", path, 3000), "GET"); err != nil || body != string(want) {
			t.Errorf("%s: %d bytes, %v", path, len(body), err)
		}
	}
	for path := range cut {
		if _, body, err := dial(t, s).ask(line("GET", path, 3001), "GET"); err == nil {
			t.Errorf("%s: %q ended as if it were complete", path, body)
		}
	}
}

// TestLaneClientsThatGo: a request is given up with its client.
func TestLaneClientsThatGo(t *testing.T) {
	town := newTown()
	var asked atomic.Int64
	began, ended := make(chan struct{}), make(chan struct{})
	town.serve(t, alpha, 3000, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.URL.Path == "/begin" {
			io.WriteString(w, "x")
			w.(http.Flusher).Flush()
		}
		began <- struct{}{}
		<-r.Context().Done()
		ended <- struct{}{}
	}))
	_, s := town.open(t, Config{})
	for _, path := range []string{"/wait", "/begin"} {
		c := dial(t, s)
		_, err := io.WriteString(c, line("GET", path, 3000))
		must(t, err)
		<-began
		must(t, c.Close())
		<-ended
	}
	if n := asked.Load(); n != 2 {
		t.Errorf("the guest got %d requests, not 2", n)
	}
}

// TestLaneTimes: clients that send half a head, nothing, or nothing more.
func TestLaneTimes(t *testing.T) {
	town := newTown()
	town.serve(t, alpha, 3000, say("ok"))
	e, _ := town.open(t, Config{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	ln := e.NewLane(l, LaneTimes{Head: 3 * time.Second, Idle: time.Millisecond}) // long enough for a busy host to read one
	s := &httptest.Server{Listener: ln, Config: &http.Server{Handler: e}}
	ln.Attach(s.Config)
	s.Start()
	defer s.Close()
	var all sync.WaitGroup
	for _, begin := range []string{"", "GET", "GET / HTTP/1.1\r\nHost: h\r\n", line("GET", "/", 3000)} {
		c := dial(t, s)
		_, err := io.WriteString(c, begin)
		must(t, err)
		all.Go(func() {
			if got, err := io.ReadAll(c); err != nil || (len(got) > 0) != strings.HasSuffix(begin, "\r\n\r\n") {
				t.Errorf("%q: %q, %v", begin, got, err)
			}
		})
	}
	all.Wait()
}

// TestLaneCloses: requests under way are waited for, as long as there is time.
func TestLaneCloses(t *testing.T) {
	for _, patient := range []bool{true, false} {
		town := newTown()
		began, goOn := make(chan struct{}), make(chan struct{})
		town.serve(t, alpha, 3000, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(began)
			select {
			case <-goOn:
			case <-r.Context().Done():
			}
			io.WriteString(w, "ok")
		}))
		_, s := town.open(t, Config{})
		quiet, busy := dial(t, s), dial(t, s)
		_, err := io.WriteString(busy, line("GET", "/", 3000))
		must(t, err)
		<-began
		ln := s.Listener.(*Lane)
		must(t, ln.Close())
		must(t, ln.Close())
		if n, err := quiet.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("a quiet connection: %d, %v", n, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		if patient {
			close(goOn)
		} else {
			cancel()
		}
		ln.Drain(ctx)
		cancel()
		if _, body, err := busy.ask("", "GET"); (body == "ok") != patient {
			t.Errorf("patient: %v; %q, %v", patient, body, err)
		}
		if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept: %v", err)
		}
	}
}

// TestLaneForgetsTunnels: who drains does not wait for what the server has handed over.
func TestLaneForgetsTunnels(t *testing.T) {
	town := newTown()
	town.raws(t, 3000, func(_, _ int, _ *http.Request) string {
		return "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
	})
	_, s := town.open(t, Config{})
	conn := dial(t, s)
	resp, _, err := conn.ask(line("GET", "/", 3000, "Connection: Upgrade", "Upgrade: x"), "GET")
	if err != nil || resp.StatusCode != 101 {
		t.Fatal(resp, err)
	}
	ln := s.Listener.(*Lane)
	must(t, ln.Close())
	ln.Drain(t.Context())
}

// half is a connection on which no request can be sent whole. That shows when the answer
// to it is there.
type half struct {
	net.Conn
	answered <-chan struct{}
}

func (h half) Write(p []byte) (int, error) {
	n, err := h.Conn.Write(p[:len(p)/2])
	<-h.answered
	if err == nil {
		err = syscall.EPIPE
	}
	return n, err
}

// TestLaneEarlyRefusal: a server may refuse a request that it does not read whole, and
// close. One that says nothing is not waited for, and not asked again.
func TestLaneEarlyRefusal(t *testing.T) {
	for answer, want := range map[string]int{"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno": 413, "": 502} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		defer l.Close()
		town := newTown()
		town.ports[alpha+":3000"] = l.Addr().String()
		answered := make(chan struct{})
		town.wrap = func(c net.Conn) net.Conn { return half{c, answered} }
		_, s := town.open(t, Config{})
		go func() {
			c, err := l.Accept()
			if err == nil {
				defer c.Close()
				_, err = io.WriteString(c, answer)
			}
			close(answered)
			if err != nil {
				t.Error(err)
				return
			}
			io.Copy(io.Discard, c)
		}()
		resp, _, err := dial(t, s).ask(line("POST", "/", 3000, "Content-Length: 2")+"ab", "POST")
		if err != nil || resp.StatusCode != want || town.dials.Load() != 1 {
			t.Errorf("%q: %v, %v, %d connections; want %d", answer, resp, err, town.dials.Load(), want)
		}
	}
}

// TestLaneAnswersForAnotherLife: a sandbox that is paused while a request passes is
// not called closed.
func TestLaneAnswersForAnotherLife(t *testing.T) {
	town := newTown()
	began := make(chan struct{}, 1)
	town.serve(t, alpha, 3000, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		began <- struct{}{}
		<-r.Context().Done()
	}))
	e, s := town.open(t, Config{})
	c := dial(t, s)
	_, err := io.WriteString(c, line("POST", "/", 3000, "Content-Length: 0"))
	must(t, err)
	<-began
	town.change(alpha, func(r *Route) { r.Life = 2 })
	e.Drop(hearth.SandboxID(alpha))
	if resp, body, err := c.ask("", "POST"); err != nil || resp.StatusCode != 502 || !strings.Contains(body, "not found") {
		t.Errorf("%v, %v, %s", resp, err, body)
	}
}
