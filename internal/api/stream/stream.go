// Package stream moves bodies of any size: bounded in bytes, and given up when the
// other side stands still, however long all of it may take.
package stream

import (
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"hearth/internal/hearth"
)

// Stall is how long the other side may take for a part.
const Stall = time.Minute

// Reader is a request's body.
type Reader struct {
	body io.ReadCloser
	conn *http.ResponseController
	most int64
	left int64
}

// NewReader returns the body of a request that w answers, of at most so many bytes:
// the read that goes beyond fails with InvalidArgument, one that stands still with
// DeadlineExceeded.
func NewReader(w http.ResponseWriter, body io.ReadCloser, most int64) *Reader {
	return &Reader{body: body, conn: http.NewResponseController(w), most: most, left: most}
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	_ = r.conn.SetReadDeadline(time.Now().Add(Stall)) // not every writer has a connection
	n, err := r.body.Read(p)
	if r.left -= int64(n); r.left < 0 {
		return 0, hearth.Errorf(hearth.InvalidArgument, "The body must be at most %d bytes", r.most)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = hearth.Wrap(hearth.DeadlineExceeded, err, "Nothing came of the body for %s", Stall)
	}
	return n, err
}

// Close implements io.Closer.
func (r *Reader) Close() error { return r.body.Close() }

// Writer is an answer's body, whose head is sent with the first byte: until then
// an error can be answered instead.
type Writer struct {
	w     http.ResponseWriter
	conn  *http.ResponseController
	kind  string
	begun bool
}

// NewWriter returns the body of an answer of a media type.
func NewWriter(w http.ResponseWriter, mediaType string) *Writer {
	return &Writer{w: w, conn: http.NewResponseController(w), kind: mediaType}
}

// Write implements io.Writer.
func (w *Writer) Write(p []byte) (int, error) {
	if !w.begun {
		w.begun = true
		w.w.Header().Set("Content-Type", w.kind)
		w.w.Header().Set("Cache-Control", "no-store")
		w.w.WriteHeader(http.StatusOK)
	}
	_ = w.conn.SetWriteDeadline(time.Now().Add(Stall))
	return w.w.Write(p)
}

// Begun reports whether the client has seen a part.
func (w *Writer) Begun() bool { return w.begun }

// Done lets the connection serve on.
func (w *Writer) Done() { _ = w.conn.SetWriteDeadline(time.Time{}) }
