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

// Span is one part of a request. Spans may lie within each other: a span's parent
// is the first one after it, in the order in which they ended, that began before it.
type Span struct {
	Name  string        // [a-z.-]
	Start time.Duration // since the trace began
	Took  time.Duration
}

// Trace collects the spans of one request. It is safe for concurrent use.
type Trace struct {
	began time.Time
	mu    sync.Mutex
	spans []Span
}

type key struct{}

// With begins a trace for what is done with the returned context.
func With(ctx context.Context) (context.Context, *Trace) {
	t := &Trace{began: time.Now()}
	return context.WithValue(ctx, key{}, t), t
}

// Note adds a span that has ended to the context's trace, if it has one.
func Note(ctx context.Context, name string, began time.Time, took time.Duration) {
	t, _ := ctx.Value(key{}).(*Trace)
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.spans) < maxSpans {
		t.spans = append(t.spans, Span{Name: name, Start: began.Sub(t.began), Took: took})
	}
}

// Begin begins a span; the function that it returns ends it.
func Begin(ctx context.Context, name string) func() {
	if ctx.Value(key{}) == nil {
		return func() {}
	}
	began := time.Now()
	return func() { Note(ctx, name, began, time.Since(began)) }
}

// Spans returns what ended until now, in the order in which it did.
func (t *Trace) Spans() []Span {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Span(nil), t.spans...)
}

// String is the header's value: "thaw;dur=1.2;start=0.3, init;dur=7.9;start=1.5", in
// ms. The start is Hearth's own addition; whoever does not know it skips it.
func (t *Trace) String() string {
	var parts []string
	for _, s := range t.Spans() {
		parts = append(parts, s.String())
	}
	return strings.Join(parts, ", ")
}

// String is the span's part of the header.
func (s Span) String() string {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return fmt.Sprintf("%s;dur=%.3f;start=%.3f", s.Name, ms(s.Took), ms(s.Start))
}
