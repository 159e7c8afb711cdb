package process

import (
	"context"
	"net/http"
	"sync/atomic"
)

// A stream's answer ends with three things: the process's end, the protocol's end of
// the stream, and HTTP's. Each is flushed by itself, and each flush is a packet that wakes
// everybody up to the client. Together they are as soon there.

// last is a ResponseWriter whose flushes can be left to the end of the handler.
type last struct {
	http.ResponseWriter
	held atomic.Bool
}

type lastKey struct{}

// JoinEnds lets the calls of this service send the ends of their streams together.
func JoinEnds(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l := &last{ResponseWriter: w}
		next.ServeHTTP(l, r.WithContext(context.WithValue(r.Context(), lastKey{}, l)))
	})
}

// hold leaves what is written from now on to the server, which flushes it when the
// handler returns. The caller is about to return.
func hold(ctx context.Context) {
	if l, ok := ctx.Value(lastKey{}).(*last); ok {
		l.held.Store(true)
	}
}

// FlushError flushes what has been written, or leaves it.
func (l *last) FlushError() error {
	if l.held.Load() {
		return nil
	}
	return http.NewResponseController(l.ResponseWriter).Flush()
}

// Flush is FlushError for those who do not ask.
func (l *last) Flush() { _ = l.FlushError() }

// Unwrap gives the rest of the writer's abilities.
func (l *last) Unwrap() http.ResponseWriter { return l.ResponseWriter }

var _ http.Flusher = (*last)(nil)
