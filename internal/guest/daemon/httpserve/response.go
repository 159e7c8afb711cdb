package httpserve

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const maxHeld = 2 << 10 // bytes of an answer that are sent with its length if there are no more

// response is the http.ResponseWriter of one request. Its head is sent when the
// handler flushes, has written more than maxHeld bytes or is done.
type response struct {
	conn    *conn
	request *body
	cancel  func()
	head    bool // the request is a HEAD
	old     bool // the client speaks HTTP/1.0
	last    bool // the connection ends with this answer

	header  http.Header // the handler's
	status  int         // 0: not decided
	sent    http.Header // header as it was when the status was decided
	headed  bool        // the head is written
	chunked bool
	length  int64 // declared by the handler; -1: not
	written int64
	held    []byte
}

// Header implements http.ResponseWriter.
func (w *response) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter.
func (w *response) WriteHeader(status int) {
	if status < 100 || status > 999 {
		panic(fmt.Sprintf("httpserve: status %d", status))
	}
	if w.conn.taken || w.status != 0 || status < 200 && status != http.StatusSwitchingProtocols {
		return
	}
	w.status, w.sent = status, w.header.Clone()
	if text := w.sent.Get("Content-Length"); text != "" {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 0 {
			w.sent.Del("Content-Length")
		} else {
			w.length = n
		}
	}
}

// bodied says whether the status allows an answer to have a body.
func (w *response) bodied() bool {
	return w.status >= 200 && w.status != http.StatusNoContent && w.status != http.StatusNotModified
}

// Write implements http.ResponseWriter.
func (w *response) Write(p []byte) (int, error) {
	if w.conn.taken {
		return 0, http.ErrHijacked
	}
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if !w.bodied() {
		return 0, http.ErrBodyNotAllowed
	}
	if w.length >= 0 && w.written+int64(len(p)) > w.length {
		return 0, http.ErrContentLength
	}
	w.written += int64(len(p))
	if len(w.held)+len(p) <= maxHeld {
		w.held = append(w.held, p...)
		return len(p), nil
	}
	if err := w.push(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// push writes what is held, and more.
func (w *response) push(more []byte) error {
	first := w.held
	if len(first) == 0 {
		first = more
	}
	w.writeHead(first, -1)
	err := w.piece(w.held)
	w.held = w.held[:0]
	if err == nil {
		err = w.piece(more)
	}
	return w.note(err)
}

// piece writes a part of the body.
func (w *response) piece(p []byte) error {
	if len(p) == 0 || w.head || !w.bodied() {
		return nil
	}
	if !w.chunked {
		_, err := w.conn.w.Write(p)
		return err
	}
	var size [20]byte
	_, _ = w.conn.w.Write(append(strconv.AppendInt(size[:0], int64(len(p)), 16), "\r\n"...))
	_, _ = w.conn.w.Write(p)
	_, err := w.conn.w.WriteString("\r\n") // an error of a bufio.Writer stays
	return err
}

// note ends the request's context when the client cannot be written to.
func (w *response) note(err error) error {
	if err != nil {
		w.last = true
		w.cancel()
	}
	return err
}

// FlushError sends what has been written.
func (w *response) FlushError() error {
	if w.conn.taken {
		return http.ErrHijacked
	}
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if err := w.push(nil); err != nil {
		return err
	}
	return w.note(w.conn.w.Flush())
}

// Flush implements http.Flusher.
func (w *response) Flush() { _ = w.FlushError() }

// Hijack implements http.Hijacker.
func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if w.conn.taken || w.status != 0 {
		return nil, nil, http.ErrHijacked
	}
	nc, rw := w.conn.take()
	return nc, rw, nil
}

// goOn sends 100 Continue, unless the answer has begun. The handler may be reading and writing at once, but
// not before it has read: net/http asks for the same.
func (w *response) goOn() error {
	if w.headed {
		return nil
	}
	_, _ = w.conn.w.WriteString("HTTP/1.1 100 Continue\r\n\r\n")
	return w.note(w.conn.w.Flush())
}

// finish sends the rest of the answer when the handler has returned.
func (w *response) finish() error {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	w.writeHead(w.held, int64(len(w.held)))
	err := w.piece(w.held)
	if err == nil && w.chunked && !w.head {
		_, _ = w.conn.w.WriteString("0\r\n")
		_ = w.trailer().Write(w.conn.w)
		_, err = w.conn.w.WriteString("\r\n")
	}
	if err == nil {
		err = w.conn.w.Flush()
	}
	if w.length > w.written && w.bodied() && !w.head {
		w.last = true // the client waits for more than there is
	}
	return w.note(err)
}

// writeHead writes the head once. first is the beginning of the body; whole is the length of
// all of it if that is known, or -1.
func (w *response) writeHead(first []byte, whole int64) {
	if w.headed {
		return
	}
	w.headed = true
	// A client that writes all of its request before it reads anything must get rid of it first.
	if !w.request.close() {
		w.last = true
	}
	h := w.sent
	promised := w.trailing()
	h.Del("Transfer-Encoding")
	if strings.EqualFold(h.Get("Connection"), "close") {
		w.last = true
		h.Del("Connection")
	}
	out := w.conn.w
	_, _ = out.WriteString("HTTP/1.1 ")
	_, _ = out.Write(strconv.AppendInt(out.AvailableBuffer(), int64(w.status), 10))
	line(out, " ", http.StatusText(w.status))
	if w.bodied() {
		w.frame(first, whole, len(promised) > 0)
	} else if w.status != http.StatusNotModified {
		h.Del("Content-Length")
	}
	if h.Get("Date") == "" {
		_, _ = out.WriteString("Date: ")
		_, _ = out.Write(append(time.Now().UTC().AppendFormat(out.AvailableBuffer(), http.TimeFormat), "\r\n"...))
	}
	if w.last && w.status != http.StatusSwitchingProtocols {
		line(out, "Connection: ", "close")
	}
	_ = h.WriteSubset(out, promised)
	_, _ = out.WriteString("\r\n")
}

// line writes a line of a head. Its errors stay in out.
func line(out *bufio.Writer, name, value string) {
	_, _ = out.WriteString(name)
	_, _ = out.WriteString(value)
	_, _ = out.WriteString("\r\n")
}

// frame writes how the end of the body is told, and what it is if the handler does not say.
func (w *response) frame(first []byte, whole int64, trailers bool) {
	h, out := w.sent, w.conn.w
	if _, said := h["Content-Type"]; !said && len(first) > 0 && h.Get("Content-Encoding") == "" {
		line(out, "Content-Type: ", http.DetectContentType(first))
	}
	switch {
	case w.length >= 0:
	case whole >= 0 && !trailers:
		if !w.head || whole > 0 {
			line(out, "Content-Length: ", strconv.FormatInt(whole, 10))
		}
	case w.head:
	case w.old:
		w.last = true
	default:
		w.chunked = true
		line(out, "Transfer-Encoding: ", "chunked")
	}
}

// trailing returns the names of what belongs after the body. Those with http.TrailerPrefix are
// known only at the end, if the head is gone by then.
func (w *response) trailing() map[string]bool {
	var names map[string]bool
	add := func(name string) {
		if names == nil {
			names = map[string]bool{}
		}
		names[name] = true
	}
	for _, list := range w.sent["Trailer"] {
		for name := range strings.SplitSeq(list, ",") {
			add(http.CanonicalHeaderKey(strings.TrimSpace(name)))
		}
	}
	for name := range w.header {
		if strings.HasPrefix(name, http.TrailerPrefix) {
			add(name)
		}
	}
	return names
}

// trailer is what comes after the body.
func (w *response) trailer() http.Header {
	t := http.Header{}
	for name := range w.trailing() {
		if values, ok := w.header[name]; ok {
			t[strings.TrimPrefix(name, http.TrailerPrefix)] = values
		}
	}
	for _, framing := range []string{"Transfer-Encoding", "Content-Length", "Trailer"} {
		delete(t, framing)
	}
	return t
}
