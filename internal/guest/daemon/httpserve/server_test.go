package httpserve

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"hearth/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const patience = 20 * time.Second

// serve runs a server for one test.
func serve(t testing.TB, h http.Handler, change func(*Server)) (address string) {
	t.Helper()
	s := &Server{Handler: h, HeadTimeout: patience, IdleTimeout: patience, MaxHead: 64 << 10, Log: slog.New(slog.DiscardHandler), farewell: patience}
	if change != nil {
		change(s)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		_ = s.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	return l.Addr().String()
}

// answers are the handlers that both servers are compared with.
func answers() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/hello", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") })
	mux.HandleFunc("/nothing", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/204", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204); _, _ = w.Write([]byte("no")) })
	mux.HandleFunc("/304", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("ETag", `"x"`); w.WriteHeader(304) })
	mux.HandleFunc("/404", http.NotFound)
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			w.WriteHeader(400)
			return
		}
		fmt.Fprintf(w, "%s %s %q %d %s", r.Method, r.URL, b, r.ContentLength, r.Trailer.Get("X-End"))
	})
	mux.HandleFunc("/unread", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "unread") })
	mux.HandleFunc("/large", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(bytes.Repeat([]byte("large "), 20_000)) })
	mux.HandleFunc("/pieces", func(w http.ResponseWriter, _ *http.Request) {
		for i := range 5 {
			fmt.Fprintf(w, "piece %d\n", i)
			w.(http.Flusher).Flush()
		}
	})
	mux.HandleFunc("/declared", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "5")
		n, err := w.Write([]byte("12345"))
		m, more := w.Write([]byte("6"))
		if n != 5 || err != nil || m != 0 || !errors.Is(more, http.ErrContentLength) {
			panic("the declared length is not kept")
		}
	})
	mux.HandleFunc("/short", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "50")
		fmt.Fprint(w, "too short")
	})
	mux.HandleFunc("/trailers", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "X-Declared")
		fmt.Fprint(w, "body")
		w.(http.Flusher).Flush()
		w.Header().Set("X-Declared", "1")
		w.Header().Set("X-Late", "not sent")
		w.Header().Set(http.TrailerPrefix+"X-Undeclared", "2")
	})
	mux.HandleFunc("/split", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-A", "b\r\nX-Evil: 1") })
	mux.HandleFunc("/close", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		fmt.Fprint(w, "end")
	})
	mux.HandleFunc("/panic", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "never sent"); panic("as it must") })
	mux.HandleFunc("/panic-late", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "begun")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "a.txt", time.Unix(1e9, 0), strings.NewReader(strings.Repeat("0123456789", 1000)))
	})
	mux.HandleFunc("/bounded", func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 4)); err != nil {
			http.Error(w, "too large", http.StatusRequestEntityTooLarge)
		}
	})
	return mux
}

func text(method, path, more string) string {
	return method + " " + path + " HTTP/1.1\r\nHost: x\r\n" + more
}

// seen is what a client can tell of an answer.
func seen(t *testing.T, address, requests string, methods []string) string {
	t.Helper()
	nc, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(nc, requests); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	from := bufio.NewReader(nc)
	for _, method := range methods {
		res, err := http.ReadResponse(from, &http.Request{Method: method})
		if err != nil {
			fmt.Fprintf(&out, "no answer\n")
			break
		}
		b, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if res.Header.Get("Date") == "" && res.StatusCode >= 200 && res.StatusCode < 400 {
			t.Errorf("%.40q: no Date", requests)
		}
		res.Header.Del("Date")
		fmt.Fprintf(&out, "%s close=%v length=%d %v %v %q %v\n", res.Status, res.Close, res.ContentLength, res.TransferEncoding, res.Header, b, err)
		fmt.Fprintf(&out, "trailers %v\n", res.Trailer)
	}
	return out.String()
}

// TestLikeNetHTTP: what clients see of the same handlers is the same behind net/http's server.
func TestLikeNetHTTP(t *testing.T) {
	reference := httptest.NewUnstartedServer(answers())
	reference.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	reference.Start()
	defer reference.Close()
	mine := serve(t, answers(), nil)
	var cases [][]string
	for _, path := range []string{"hello", "nothing", "204", "304", "404", "unread", "large", "pieces", "declared", "short", "trailers", "split", "close",
		"panic", "panic-late", "file", "missing"} {
		cases = append(cases, []string{text("GET", "/"+path, "\r\n"), "GET"})
		if path != "panic-late" { // reading a HEAD's answer, one cannot see where it breaks off
			cases = append(cases, []string{text("HEAD", "/"+path, "\r\n"), "HEAD"})
		}
	}
	chunked := "Transfer-Encoding: chunked\r\n\r\n"
	cases = append(cases, [][]string{
		{text("POST", "/echo", "Content-Length: 5\r\n\r\n12345"), "POST"},
		{text("POST", "/echo", chunked+"3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\n\r\n"), "POST"},
		{text("POST", "/echo", "Trailer: X-End\r\n"+chunked+"3\r\nabc\r\n0\r\nX-End: yes\r\n\r\n"), "POST"},
		{text("POST", "/echo", chunked+"zz\r\nabc\r\n0\r\n\r\n"), "POST"},
		{text("POST", "/echo", chunked+"3\r\nabcd\r\n0\r\n\r\n"), "POST"},
		{text("POST", "/echo", "\r\n"), "POST"},
		{text("GET", "/hello", "Connection: close\r\n\r\n"), "GET", "GET"},
		{text("GET", "/hello", "\r\n") + text("GET", "/pieces", "\r\n") + text("GET", "/404", "\r\n"), "GET", "GET", "GET"},
		{text("POST", "/unread", "Content-Length: 5\r\n\r\n12345") + text("GET", "/hello", "\r\n"), "POST", "GET"},
		{text("POST", "/unread", chunked+"5\r\n12345\r\n0\r\n\r\n") + text("GET", "/hello", "\r\n"), "POST", "GET"},
		{text("POST", "/echo", "Content-Length: 5\r\n\r\n12345") + text("GET", "/hello", "\r\n"), "POST", "GET"},
		{text("POST", "/bounded", "Content-Length: 3\r\n\r\n123") + text("GET", "/hello", "\r\n"), "POST", "GET"},
		{text("GET", "/file", "Range: bytes=10-19\r\n\r\n"), "GET"},
		{text("GET", "/file", "Range: bytes=90000-\r\n\r\n"), "GET"},
		{text("GET", "/file", "If-Modified-Since: Sun, 09 Sep 2001 01:46:40 GMT\r\n\r\n"), "GET"},
		{text("POST", "/unread", "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"), "POST"},
		{text("POST", "/echo", "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n12345"), "POST", "POST"},
		{"GET http://other/hello HTTP/1.1\r\nHost: x\r\n\r\n", "GET"},
	}...)
	for _, c := range cases {
		want, got := seen(t, reference.Listener.Addr().String(), c[0], c[1:]), seen(t, mine, c[0], c[1:])
		if want != got {
			t.Errorf("%.120q:\nnet/http %.1000s\nmine     %.1000s", c[0], want, got)
		}
	}
}

// TestRefused: what is ambiguous, malformed or too large gets its status and the end of the
// connection; what comes after it on the connection is not served.
func TestRefused(t *testing.T) {
	address := serve(t, answers(), nil)
	after := text("GET", "/hello", "\r\n")
	for name, c := range map[string]struct {
		request string
		status  string
	}{
		"length and coding":      {text("POST", "/echo", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), "400"},
		"two lengths":            {text("POST", "/echo", "Content-Length: 5\r\nContent-Length: 6\r\n\r\n123456"), "400"},
		"two equal lengths":      {text("POST", "/echo", "Content-Length: 5\r\ncontent-length: 5\r\n\r\n12345"), "400"},
		"a list of lengths":      {text("POST", "/echo", "Content-Length: 5, 5\r\n\r\n12345"), "400"},
		"signed length":          {text("POST", "/echo", "Content-Length: +5\r\n\r\n12345"), "400"},
		"negative length":        {text("POST", "/echo", "Content-Length: -1\r\n\r\n"), "400"},
		"huge length":            {text("POST", "/echo", "Content-Length: 99999999999999999999\r\n\r\n"), "400"},
		"empty length":           {text("POST", "/echo", "Content-Length:\r\n\r\n"), "400"},
		"space before the colon": {text("POST", "/echo", "Content-Length : 5\r\n\r\n12345"), "400"},
		"folded coding":          {text("POST", "/echo", "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"), "400"},
		"unknown coding":         {text("POST", "/echo", "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), "501"},
		"two codings":            {text("POST", "/echo", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), "400"},
		"odd coding":             {text("POST", "/echo", "Transfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n"), "501"},
		"coding of HTTP/1.0":     {"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
		"no host":                {"GET /hello HTTP/1.1\r\n\r\n", "400"},
		"two hosts":              {text("GET", "/hello", "Host: y\r\n\r\n"), "400"},
		"bare LF":                {"GET /hello HTTP/1.1\nHost: x\n\n", "400"},
		"one bare LF":            {"GET /hello HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", "400"},
		"bare CR":                {"GET /hello HTTP/1.1\r\nHost: x\r\nA: b\rContent-Length: 5\r\n\r\n", "400"},
		"NUL":                    {text("GET", "/hello", "A: b\x00\r\n\r\n"), "400"},
		"header without name":    {text("GET", "/hello", ": b\r\n\r\n"), "400"},
		"header without colon":   {text("GET", "/hello", "nothing\r\n\r\n"), "400"},
		"empty line first":       {"\r\n" + after, "400"},
		"no HTTP":                {"SSH-2.0-x\r\n\r\n", "505"},
		"HTTP/2":                 {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505"},
		"HTTP/1.2":               {"GET /hello HTTP/1.2\r\nHost: x\r\n\r\n", "505"},
		"spaces":                 {"GET  /hello  HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
		"method":                 {"G(T /hello HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
		"target":                 {"GET hello HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
		"expectation":            {text("POST", "/echo", "Expect: a miracle\r\n\r\n"), "417"},
		"large header":           {text("GET", "/hello", "A: "+strings.Repeat("b", 64<<10)+"\r\n\r\n"), "431"},
		"large target":           {"GET /" + strings.Repeat("b", 64<<10), "431"},
		"many headers":           {text("GET", "/hello", strings.Repeat("A: b\r\n", 20_000)+"\r\n"), "431"},
	} {
		got := seen(t, address, c.request+after, []string{"POST", "POST"})
		if !strings.HasPrefix(got, c.status+" ") || !strings.Contains(got, "close=true") || !strings.HasSuffix(got, "\nno answer\n") {
			t.Errorf("%s: want %s and the end, got\n%s", name, c.status, got)
		}
	}
}

// TestOldClients: HTTP/1.0 gets its answer whole, unchunked, and the end.
func TestOldClients(t *testing.T) {
	address := serve(t, answers(), nil)
	for path, want := range map[string]string{"hello": "hello", "pieces": "piece 0\npiece 1\npiece 2\npiece 3\npiece 4\n"} {
		got := seen(t, address, "GET /"+path+" HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", []string{"GET", "GET"})
		if !strings.HasPrefix(got, "200 OK close=true") || !strings.Contains(got, fmt.Sprintf("%q", want)) || strings.Contains(got, "chunked") {
			t.Errorf("%s: %s", path, got)
		}
	}
}

// TestClientGoes: the handler's context ends when its client goes away, with its body read or without one,
// and when the server is closed.
func TestClientGoes(t *testing.T) {
	began, ended := make(chan struct{}), make(chan error)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.(http.Flusher).Flush()
		began <- struct{}{}
		<-r.Context().Done()
		ended <- r.Context().Err()
	})
	var server *Server
	address := serve(t, h, func(s *Server) { server = s })
	for name, request := range map[string]string{
		"no body": text("GET", "/", "\r\n"), "length": text("POST", "/", "Content-Length: 2\r\n\r\nab"),
		"chunks": text("POST", "/", "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"), "server closes": text("GET", "/", "\r\n"),
	} {
		nc, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(nc, request)
		<-began
		if name == "server closes" {
			server.mu.Lock()
			for c := range server.conns {
				c.end()
			}
			server.mu.Unlock()
		} else {
			_ = nc.Close()
		}
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
		_ = nc.Close()
	}
}

// TestUnreadBody: a client that sends more than anybody reads gets its answer, and the connection ends.
func TestUnreadBody(t *testing.T) {
	address := serve(t, answers(), nil)
	const size = 1 << 20
	got := seen(t, address, text("POST", "/unread", fmt.Sprintf("Content-Length: %d\r\n\r\n", size))+strings.Repeat("x", maxDrain+8<<10), []string{"POST", "POST"})
	if !strings.HasPrefix(got, "200 OK close=true") || !strings.HasSuffix(got, "no answer\n") {
		t.Error(got)
	}
}

// TestSlowHead: a head must come in time, and an idle connection ends.
func TestSlowHead(t *testing.T) {
	address := serve(t, answers(), func(s *Server) { s.HeadTimeout, s.IdleTimeout = 10*time.Millisecond, 10*time.Millisecond })
	for _, begun := range []string{"", "GET / HT", text("GET", "/hello", "A: b")} {
		nc, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		_ = nc.SetDeadline(time.Now().Add(patience))
		_, _ = io.WriteString(nc, begun) // fails if the time is over already
		if n, err := nc.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q: %d bytes, %v", begun, n, err)
		}
		_ = nc.Close()
	}
}

// TestHijack: the connection is the handler's, with what the client has sent early.
func TestHijack(t *testing.T) {
	var states []http.ConnState
	gone := make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		nc, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := w.Write([]byte("x")); !errors.Is(err, http.ErrHijacked) {
			t.Errorf("a write after it: %v", err)
		}
		defer close(gone)
		defer nc.Close()
		line, _ := rw.ReadString('\n')
		_, _ = io.WriteString(nc, "got "+line)
	})
	address := serve(t, h, func(s *Server) {
		s.ConnState = func(_ net.Conn, state http.ConnState) { states = append(states, state) }
	})
	nc, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_, _ = io.WriteString(nc, text("GET", "/", "\r\nearly\n"))
	b, _ := io.ReadAll(nc)
	<-gone
	if string(b) != "got early\n" || fmt.Sprint(states) != "[new hijacked]" {
		t.Errorf("%q, states %v", b, states)
	}
}

// TestUse drives the server with net/http's client, many at once.
func TestUse(t *testing.T) {
	server := "http://" + serve(t, answers(), nil)
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	hc := &http.Client{Transport: tr}
	done := make(chan error)
	const clients, turns = 8, 40
	for n := range clients {
		go func() {
			var err error
			for i := range turns {
				body := strings.Repeat("x", i*n*37)
				res, failed := hc.Post(server+"/echo", "text/plain", io.MultiReader(strings.NewReader(body)))
				if failed != nil {
					err = failed
					break
				}
				b, _ := io.ReadAll(res.Body)
				_ = res.Body.Close()
				if want := fmt.Sprintf("POST /echo %q -1 ", body); body != "" && string(b) != want {
					err = fmt.Errorf("turn %d: %.100q", i, b)
				}
			}
			done <- err
		}()
	}
	for range clients {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// FuzzRequests: whatever is sent, the server answers and ends, and a head that it serves is one that it and
// http.ReadRequest agree about.
func FuzzRequests(f *testing.F) {
	for _, seed := range []string{text("GET", "/hello", "\r\n"), text("POST", "/echo", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
		text("POST", "/unread", "Content-Length: 3\r\n\r\nabc") + text("GET", "/hello", "\r\n"), "GET / HTTP/1.0\n\n", text("POST", "/", "Expect: 100-continue\r\n\r\n")} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		front, back := net.Pipe()
		served := 0
		s := &Server{HeadTimeout: patience, IdleTimeout: patience, MaxHead: 4 << 10, Log: slog.New(slog.DiscardHandler), conns: map[*conn]struct{}{}}
		s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			served++
			if r.ContentLength < -1 || len(r.TransferEncoding) > 0 && r.Header.Get("Content-Length") != "" {
				t.Errorf("served with two lengths: %v", r.Header)
			}
			_, _ = io.Copy(w, r.Body)
		})
		done := make(chan struct{})
		go func() { defer close(done); newConn(s, back).serve() }()
		go func() { _, _ = io.Copy(io.Discard, front); _ = front.Close() }()
		_, _ = front.Write(sent)
		_ = front.Close()
		<-done
		if heads := bytes.Count(sent, []byte("\n")); served > heads/2 {
			t.Errorf("%d requests served of %d lines", served, heads)
		}
	})
}

// BenchmarkRequest is one request on a kept connection, beside net/http's server.
func BenchmarkRequest(b *testing.B) {
	reference := httptest.NewServer(answers())
	defer reference.Close()
	for _, c := range [][2]string{{"own", serve(b, answers(), nil)}, {"nethttp", reference.Listener.Addr().String()}} {
		b.Run(c[0], func(b *testing.B) {
			nc, err := net.Dial("tcp", c[1])
			if err != nil {
				b.Fatal(err)
			}
			defer nc.Close()
			request, from := []byte(text("GET", "/hello", "\r\n")), bufio.NewReader(nc)
			for b.Loop() {
				if _, err := nc.Write(request); err != nil {
					b.Fatal(err)
				}
				res, err := http.ReadResponse(from, nil)
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, res.Body)
			}
		})
	}
}

// received counts the right answers of /echo to requests with the body abc.
func received(t *testing.T, nc net.Conn, most int) (n int) {
	t.Helper()
	_ = nc.SetReadDeadline(time.Now().Add(patience))
	from := bufio.NewReader(nc)
	for range most {
		res, err := http.ReadResponse(from, nil)
		if err != nil {
			return n
		}
		if b, _ := io.ReadAll(res.Body); string(b) == `POST /echo "abc" 3 ` {
			n++
		}
	}
	return n
}
