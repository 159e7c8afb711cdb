// Package trace notes how long the parts of one request take: a list of spans
// that travels in the request's context. Where no trace was begun nothing is
// kept and nothing is spent. It imports the standard library alone, so that
// every room may use it.
//
// A trace goes out as the Server-Timing header of HTTP
// (https://www.w3.org/TR/server-timing/), which browsers and `hearth bench
// trace` read.
package trace

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"
)

// Header is where a server says what it spent a request's time on.
const Header = "Server-Timing"

// maxSpans bounds a trace, whatever happens below it.
const maxSpans = 64

// Span is one part of a request. Spans may lie within each other.
type Span struct {
	Name string // [a-z.-]
	Took time.Duration
}

// Trace collects the spans of one request. It is safe for concurrent use.
type Trace struct {
	mu    sync.Mutex
	spans []Span
}

type key struct{}

// With begins a trace for what is done with the returned context.
func With(ctx context.Context) (context.Context, *Trace) {
	t := &Trace{}
	return context.WithValue(ctx, key{}, t), t
}

// Note adds a span that has ended to the context's trace, if it has one.
func Note(ctx context.Context, name string, took time.Duration) {
	t, _ := ctx.Value(key{}).(*Trace)
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.spans) < maxSpans {
		t.spans = append(t.spans, Span{Name: name, Took: took})
	}
}

// Begin begins a span; the function that it returns ends it.
func Begin(ctx context.Context, name string) func() {
	if ctx.Value(key{}) == nil {
		return func() {}
	}
	began := time.Now()
	return func() { Note(ctx, name, time.Since(began)) }
}

// Spans returns what ended until now, in the order in which it did.
func (t *Trace) Spans() []Span {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Span(nil), t.spans...)
}

// String is the header's value: "thaw;dur=1.2, init;dur=7.9", in ms.
func (t *Trace) String() string {
	var parts []string
	for _, s := range t.Spans() {
		parts = append(parts, fmt.Sprintf("%s;dur=%.3f", s.Name, float64(s.Took.Microseconds())/1000))
	}
	return strings.Join(parts, ", ")
}
