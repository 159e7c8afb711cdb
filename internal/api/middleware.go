package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"hearth/internal/hearth"
	"hearth/internal/trace"
)

// record is what the access log says of one request. It is also the response
// writer, to know what was answered.
type record struct {
	http.ResponseWriter
	id         string
	operation  string
	route      string
	team       hearth.TeamID
	status     int
	err        error
	retryAfter time.Duration
	began      time.Time
	trace      *trace.Trace
}

type recordKey struct{}

// recordOf returns the request's record; outside of a request a fresh one.
func recordOf(ctx context.Context) *record {
	if rec, ok := ctx.Value(recordKey{}).(*record); ok {
		return rec
	}
	return &record{}
}

func (rec *record) wrote() bool { return rec.status != 0 }

// WriteHeader implements http.ResponseWriter.
func (rec *record) WriteHeader(status int) {
	if !rec.wrote() {
		rec.status = status
		rec.tell()
	}
	rec.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (rec *record) Write(b []byte) (int, error) {
	if !rec.wrote() {
		rec.status = http.StatusOK
		rec.tell()
	}
	return rec.ResponseWriter.Write(b)
}

// tell says what a request was spent on that took more than looking things up.
// Strangers are told nothing.
func (rec *record) tell() {
	if rec.team == "" || rec.trace == nil || len(rec.trace.Spans()) == 0 {
		return
	}
	whole := trace.Span{Name: "api", Took: time.Since(rec.began)}
	rec.Header().Set(trace.Header, rec.trace.String()+", "+whole.String())
}

// Unwrap lets http.ResponseController reach the connection.
func (rec *record) Unwrap() http.ResponseWriter { return rec.ResponseWriter }

// observe gives the request its record and log line, and survives
// a panicking handler.
func (s *server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		rec := &record{ResponseWriter: w, id: newRequestID(), began: start}
		ctx, tr := trace.With(r.Context())
		rec.trace = tr
		r = r.WithContext(context.WithValue(ctx, recordKey{}, rec))
		w.Header().Set("X-Request-Id", rec.id)
		w.Header().Set("X-E2B-Trace-ID", rec.id) // the SDKs print this one
		defer func() {
			p := recover()
			if p == http.ErrAbortHandler {
				panic(p) // net/http's own way to cut the connection
			}
			if p != nil {
				s.fail(rec, r, fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
			}
			s.logRequest(r, rec, time.Since(start))
		}()
		next.ServeHTTP(rec, r)
	})
}

// logRequest writes the request's only log line. The path is not in it: names
// in it are the user's own.
func (s *server) logRequest(r *http.Request, rec *record, took time.Duration) {
	level := slog.LevelInfo
	switch {
	case rec.operation == "health":
		level = slog.LevelDebug
	case rec.status >= 500:
		level = slog.LevelError
	}
	attrs := []slog.Attr{
		slog.String("method", r.Method),
		slog.String("route", rec.route),
		slog.Int("status", rec.status),
		slog.Float64("ms", float64(took.Microseconds())/1000),
		slog.String("request", rec.id),
	}
	if rec.team != "" {
		attrs = append(attrs, slog.String("team", string(rec.team)))
	}
	if rec.err != nil {
		attrs = append(attrs, slog.String("error", rec.err.Error()))
	}
	s.log.LogAttrs(r.Context(), level, "request", attrs...)
}

// cors lets any page call the API: it proves itself by a key, never by a cookie.
func cors(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Access-Control-Allow-Origin", "*")
		h.Set("Access-Control-Expose-Headers", "X-Next-Token, X-Total-Running, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, Retry-After, X-Request-Id, X-E2B-Trace-ID")
		if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
			next.ServeHTTP(w, r)
			return
		}
		h.Set("Access-Control-Allow-Methods", "GET, POST, PUT, PATCH, DELETE")
		h.Set("Access-Control-Max-Age", "7200")
		h.Set("Vary", "Access-Control-Request-Headers")
		if asked := r.Header.Get("Access-Control-Request-Headers"); asked != "" {
			h.Set("Access-Control-Allow-Headers", asked)
		}
		w.WriteHeader(http.StatusNoContent)
	})
}

// escapedPath makes the router work on the path as it was sent: names in it
// hold "/" and ":" in percent-encoding.
func escapedPath(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u := *r.URL
		u.RawPath = u.EscapedPath()
		r2 := *r
		r2.URL = &u
		next.ServeHTTP(w, &r2)
	})
}

func newRequestID() string {
	var b [8]byte
	rand.Read(b[:]) // never fails: the runtime aborts when the kernel has no entropy
	return hex.EncodeToString(b[:])
}
