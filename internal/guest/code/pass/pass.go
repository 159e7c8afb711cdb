// Package pass hands HTTP requests on to a server behind a socket: one connection for each,
// WebSockets and other upgrades included. It does what httputil.ReverseProxy would, without
// http.Transport, which alone would be a twentieth of the guest daemon.
package pass

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"hearth/internal/guest/splice"
)

const (
	maxHead = 1 << 20     // bytes of an answer's head
	maxInfo = 5           // informational answers before the one that counts
	piece   = 32 << 10    // bytes that are copied at once
	grace   = time.Second // for an answer to a request that could not be passed on as a whole
)

// Handler passes on what it serves.
type Handler struct {
	// Dial connects to the server.
	Dial func(context.Context) (net.Conn, error)
	// Fail answers where there is no answer of the server.
	Fail func(http.ResponseWriter, error)
}

// ServeHTTP implements http.Handler. A body is passed on as a whole before the answer
// is looked at. An answer that breaks off ends the client's connection.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	back, err := h.Dial(r.Context())
	if err != nil {
		h.Fail(w, err)
		return
	}
	defer back.Close()
	stop := context.AfterFunc(r.Context(), func() { _ = back.Close() })
	defer stop()
	upgrade := ""
	if listed(r.Header, "Upgrade") {
		upgrade = r.Header.Get("Upgrade")
	}
	unsent := outgoing(r, upgrade).Write(back)
	if unsent != nil { // the client is gone, or the server, which may have said why
		_ = back.SetReadDeadline(time.Now().Add(grace))
	}
	limited := &io.LimitedReader{R: back, N: maxHead}
	buffered := bufio.NewReader(limited)
	res, err := answer(buffered, r)
	_ = back.SetReadDeadline(time.Time{})
	switch {
	case err != nil:
		h.Fail(w, errors.Join(err, unsent))
		return
	case res.StatusCode != http.StatusSwitchingProtocols:
		limited.N = 1<<63 - 1
		forward(w, res)
		return
	case upgrade == "" || !strings.EqualFold(res.Header.Get("Upgrade"), upgrade):
		h.Fail(w, errors.New("it switched to a protocol that nobody asked for"))
		return
	}
	limited.N = 1<<63 - 1
	stop() // from here on the two connections end each other
	h.join(w, res, buffered, back)
}

// answer reads the head of the answer that counts.
func answer(from *bufio.Reader, r *http.Request) (*http.Response, error) {
	for range maxInfo {
		res, err := http.ReadResponse(from, r)
		if err != nil {
			return nil, err
		}
		if res.StatusCode >= 200 || res.StatusCode == http.StatusSwitchingProtocols {
			return res, nil
		}
	}
	return nil, errors.New("it answers with informational statuses alone")
}

// outgoing is the request as the server gets it.
func outgoing(r *http.Request, upgrade string) *http.Request {
	out := r.Clone(r.Context())
	clean(out.Header)
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Expect"} {
		out.Header.Del(name)
	}
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header.Set("User-Agent", "") // not Go's
	}
	out.URL.Scheme, out.URL.Host = "http", "server"
	out.Close = upgrade == ""
	if upgrade != "" {
		out.Header.Set("Connection", "Upgrade")
		out.Header.Set("Upgrade", upgrade)
	}
	if r.ContentLength == 0 {
		out.Body = http.NoBody
	}
	return out
}

// clean removes what concerns one connection only.
func clean(h http.Header) {
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range []string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate",
		"Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade"} {
		h.Del(name)
	}
}

// listed says whether the Connection header has an option.
func listed(h http.Header, option string) bool {
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			if strings.EqualFold(strings.TrimSpace(name), option) {
				return true
			}
		}
	}
	return false
}

// forward copies an answer, each part as it comes.
func forward(w http.ResponseWriter, res *http.Response) {
	clean(res.Header)
	for name, values := range res.Header {
		w.Header()[name] = append(w.Header()[name], values...)
	}
	w.WriteHeader(res.StatusCode)
	flush := http.NewResponseController(w).Flush
	buf := make([]byte, piece)
	for {
		n, err := res.Body.Read(buf)
		if n > 0 {
			if _, failed := w.Write(buf[:n]); failed != nil || flush() != nil {
				panic(http.ErrAbortHandler)
			}
		}
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			panic(http.ErrAbortHandler) // the client must not take it for all
		}
	}
}

// join makes one connection of the two.
func (h *Handler) join(w http.ResponseWriter, res *http.Response, early io.Reader, back net.Conn) {
	headers := w.Header().Clone()
	front, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		h.Fail(w, err)
		return
	}
	defer front.Close()
	for name, values := range res.Header {
		headers[name] = append(headers[name], values...)
	}
	_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	_ = headers.Write(rw)
	_, _ = rw.WriteString("\r\n")
	if rw.Flush() != nil {
		return
	}
	splice.Join(splice.End{Conn: front, From: rw.Reader}, splice.End{Conn: back, From: early})
}
