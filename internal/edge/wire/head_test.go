package wire

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httputil"
	"slices"
	"strings"
	"testing"
)

const plainRequest = "GET /a?b=c HTTP/1.1\r\nHost: h\r\n\r\n"

var requests = []struct {
	name, raw string
	odd       bool
}{
	{name: "least", raw: plainRequest},
	{name: "body", raw: "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"},
	{name: "fields", raw: "PUT /%41 HTTP/1.1\r\nhOST: [::1]:80\r\nX:\r\nX: \t a b \t\r\nconnection: Keep-Alive\r\n\r\n"},
	{name: "text beyond ASCII", raw: "GET / HTTP/1.1\r\nHost: h\r\nX: \xc3\xa9\r\n\r\n"},
	{name: "bare line ends", raw: "GET / HTTP/1.1\nHost: h\n\n", odd: true},
	{name: "one bare line end", raw: "GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n", odd: true},
	{name: "carriage return in a value", raw: "GET / HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n", odd: true},
	{name: "NUL", raw: "GET / HTTP/1.1\r\nHost: h\r\nX: a\x00b\r\n\r\n", odd: true},
	{name: "folded", raw: "GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n", odd: true},
	{name: "space before the colon", raw: "GET / HTTP/1.1\r\nHost: h\r\nX : a\r\n\r\n", odd: true},
	{name: "no name", raw: "GET / HTTP/1.1\r\nHost: h\r\n: a\r\n\r\n", odd: true},
	{name: "no colon", raw: "GET / HTTP/1.1\r\nHost: h\r\nX\r\n\r\n", odd: true},
	{name: "empty first line", raw: "\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", odd: true},
	{name: "other version", raw: "GET / HTTP/1.0\r\nHost: h\r\n\r\n", odd: true},
	{name: "other method", raw: "BREW / HTTP/1.1\r\nHost: h\r\n\r\n", odd: true},
	{name: "method in lower case", raw: "get / HTTP/1.1\r\nHost: h\r\n\r\n", odd: true},
	{name: "HTTP/2", raw: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", odd: true},
	{name: "whole URL", raw: "GET http://h/ HTTP/1.1\r\nHost: h\r\n\r\n", odd: true},
	{name: "two spaces", raw: "GET  / HTTP/1.1\r\nHost: h\r\n\r\n", odd: true},
	{name: "fragment", raw: "GET /#a HTTP/1.1\r\nHost: h\r\n\r\n", odd: true},
	{name: "half a byte", raw: "GET /%4 HTTP/1.1\r\nHost: h\r\n\r\n", odd: true},
	{name: "backslash", raw: "GET /\\a HTTP/1.1\r\nHost: h\r\n\r\n", odd: true},
	{name: "no host", raw: "GET / HTTP/1.1\r\nX: y\r\n\r\n", odd: true},
	{name: "two hosts", raw: "GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", odd: true},
	{name: "hostile host", raw: "GET / HTTP/1.1\r\nHost: h/../i\r\n\r\n", odd: true},
	{name: "two lengths", raw: "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", odd: true},
	{name: "list of lengths", raw: "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1, 1\r\n\r\n", odd: true},
	{name: "signed length", raw: "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\n", odd: true},
	{name: "endless length", raw: "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 18446744073709551617\r\n\r\n", odd: true},
	{name: "chunked", raw: "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", odd: true},
	{name: "chunked, hidden", raw: "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-encoding:\tchunked\r\n\r\n", odd: true},
	{name: "last request", raw: "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", odd: true},
	{name: "upgrade", raw: "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", odd: true},
	{name: "expectation", raw: "PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n", odd: true},
	{name: "too many fields", raw: "GET / HTTP/1.1\r\nHost: h\r\n" + strings.Repeat("X: y\r\n", MaxFields) + "\r\n", odd: true},
}

func TestRequests(t *testing.T) {
	for _, c := range requests {
		t.Run(c.name, func(t *testing.T) {
			var r Request
			n, err := r.Parse([]byte(c.raw))
			if errors.Is(err, ErrOdd) != c.odd || (n > 0) == c.odd {
				t.Fatalf("Parse: %d, %v; odd: %v", n, err, c.odd)
			}
		})
	}
	for cut := range len(plainRequest) {
		var r Request
		if n, err := r.Parse([]byte(plainRequest[:cut])); n != 0 || err != nil {
			t.Fatalf("Parse(%q): %d, %v", plainRequest[:cut], n, err)
		}
	}
}

func TestRequestIsPassedOn(t *testing.T) {
	var r Request
	if _, err := r.Parse([]byte("POST /x HTTP/1.1\r\nHost: h\r\nA: 1\r\nB:2\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	for i := range r.Fields {
		r.Fields[i].Gone = r.Fields[i].Gone || r.Fields[i].Is("a")
	}
	if got, want := string(r.Append(nil)), "POST /x HTTP/1.1\r\nHost: h\r\nB: 2\r\nContent-Length: 3\r\n\r\n"; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
	if r.Length != 3 || r.Repeatable() {
		t.Fatalf("length %d, repeatable: %v", r.Length, r.Repeatable())
	}
}

// FuzzRequest: what is plain, net/http reads in the same way.
func FuzzRequest(f *testing.F) {
	for _, c := range requests {
		f.Add([]byte(c.raw))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var r Request
		n, err := r.Parse(raw)
		if err != nil || n == 0 {
			return
		}
		in := bufio.NewReader(bytes.NewReader(r.Append(nil)))
		want, err := http.ReadRequest(in)
		if err != nil {
			t.Fatalf("%q is plain, but %v", raw[:n], err)
		}
		same := want.Method == string(r.Method) && want.RequestURI == string(r.Target) && want.Host == string(r.Host) &&
			max(want.ContentLength, 0) == r.Length && len(want.TransferEncoding) == 0 && !want.Close && in.Buffered() == 0
		sameHead(t, raw[:n], &r.Head, want.Header)
		if !same {
			t.Fatalf("%q is read as %+v", raw[:n], want)
		}
	})
}

// sameHead compares a head with what net/http made of it, but for the fields which
// that keeps elsewhere.
func sameHead(t *testing.T, raw []byte, got *Head, want http.Header) {
	t.Helper()
	h := make(http.Header)
	for _, f := range got.Fields {
		if !f.Gone && !f.Is("host") && !f.Is("transfer-encoding") {
			h.Add(string(f.Name), string(f.Value))
		}
	}
	for name, values := range h {
		if name == "Content-Length" {
			continue
		}
		if !slices.Equal(values, want[name]) {
			t.Fatalf("%q: %s is %q, but for net/http %q", raw, name, values, want[name])
		}
	}
}

var answers = []struct {
	name, raw string
	odd       bool
}{
	{name: "length", raw: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"},
	{name: "chunked", raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"},
	{name: "no body", raw: "HTTP/1.1 204 \r\nKeep-Alive: timeout=5\r\nConnection: keep-alive\r\n\r\n"},
	{name: "no reason", raw: "HTTP/1.1 404\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"},
	{name: "until the end", raw: "HTTP/1.1 200 OK\r\n\r\nok", odd: true},
	{name: "old", raw: "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", odd: true},
	{name: "for information", raw: "HTTP/1.1 103 Early Hints\r\n\r\n", odd: true},
	{name: "switching", raw: "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", odd: true},
	{name: "no status", raw: "HTTP/1.1 2x0 OK\r\nContent-Length: 0\r\n\r\n", odd: true},
	{name: "long status", raw: "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n", odd: true},
	{name: "both framings", raw: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", odd: true},
	{name: "two lengths", raw: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n", odd: true},
	{name: "other encoding", raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", odd: true},
	{name: "trailers", raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n", odd: true},
	{name: "no body, with a length", raw: "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n", odd: true},
	{name: "connection's own field", raw: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: X\r\n\r\n", odd: true},
}

func TestAnswers(t *testing.T) {
	to := &Request{Method: []byte("GET")}
	for _, c := range answers {
		t.Run(c.name, func(t *testing.T) {
			var a Answer
			if n, err := a.Parse([]byte(c.raw), to); errors.Is(err, ErrOdd) != c.odd || (n > 0) == c.odd {
				t.Fatalf("Parse: %d, %v; odd: %v", n, err, c.odd)
			}
		})
	}
	var a Answer
	raw := []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
	if n, err := a.Parse(raw, &Request{Method: []byte("HEAD")}); n != len(raw) || err != nil {
		t.Fatalf("answer to HEAD: %d, %v", n, err)
	}
	if n, done, err := a.Body.Scan(nil); n != 0 || !done || err != nil {
		t.Fatalf("its body: %d, %v, %v", n, done, err)
	}
}

// FuzzAnswer: what is plain, net/http reads in the same way, body included, in
// whatever pieces it comes.
func FuzzAnswer(f *testing.F) {
	for _, c := range answers {
		f.Add([]byte(c.raw), false, 1)
		f.Add([]byte(c.raw), true, 7)
	}
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nok\r\n00\r\nX: y\r\n\r\nmore"), false, 3)
	f.Fuzz(func(t *testing.T, raw []byte, head bool, piece int) {
		method := "GET"
		if head {
			method = "HEAD"
		}
		var a Answer
		n, err := a.Parse(raw, &Request{Method: []byte(method)})
		if err != nil || n == 0 {
			return
		}
		size, done, err := scan(&a.Body, raw[n:], piece)
		if err != nil {
			return
		}
		in := bufio.NewReader(bytes.NewReader(append(a.Append(nil), raw[n:]...)))
		want, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			t.Fatalf("%q is plain, but %v", raw[:n], err)
		}
		sameHead(t, raw[:n], &a.Head, want.Header)
		_, err = io.ReadAll(want.Body)
		if done && a.Body.line > 0 {
			return // its trailers are the client's to read
		}
		if done != (err == nil) {
			t.Fatalf("%q: the body ends: %v, but %v", raw, done, err)
		}
		rest, _ := io.ReadAll(in)
		if done && string(rest) != string(raw[n+size:]) {
			t.Fatalf("%q: the body ends before %q, but for net/http before %q", raw, raw[n+size:], rest)
		}
	})
}

// scan scans a body in pieces of a size.
func scan(b *Body, raw []byte, piece int) (size int, done bool, err error) {
	piece = max(piece, 1)
	for first := true; first || size < len(raw) && !done && err == nil; first = false {
		var n int
		n, done, err = b.Scan(raw[size:min(size+piece, len(raw))])
		size += n
	}
	return size, done, err
}

func TestChunks(t *testing.T) {
	var whole strings.Builder
	w := httputil.NewChunkedWriter(&whole)
	for _, size := range []int{1, 15, 16, 4096, 70000} {
		_, _ = w.Write(bytes.Repeat([]byte("x"), size))
	}
	_ = w.Close()
	good := whole.String() + "\r\n"
	for _, piece := range []int{1, 2, 3, 1000, len(good)} {
		b := Body{chunked: true}
		if n, done, err := scan(&b, []byte(good+"HTTP/1.1"), piece); n != len(good) || !done || err != nil {
			t.Errorf("in pieces of %d: %d of %d, %v, %v", piece, n, len(good), done, err)
		}
	}
	for _, bad := range []string{
		"\r\n", "x\r\n", "-1\r\n", "+1\r\n", "0x1\r\n", "1\nx", "1\r\nx\n", "1\r\nxy", "1 x;\r\n", "1 2\r\n", "1;\x00\r\n", "1111111111111111\r\n", "0\r\nX: y\n", "0\r\n\n", "0\r\n: y\x01",
		"1" + strings.Repeat(" ", maxSizeLine) + "\r\n", "0\r\nX: " + strings.Repeat("y", maxTrailer) + "\r\n\r\n",
	} {
		b := Body{chunked: true}
		if _, done, err := b.Scan([]byte(bad)); done || err == nil {
			t.Errorf("%.40q: done: %v, %v", bad, done, err)
		}
	}
}
