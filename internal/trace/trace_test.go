package trace

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestSpansTravelInTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, tr := With(t.Context())
		end := Begin(context.WithoutCancel(ctx), "thaw")
		time.Sleep(1500 * time.Microsecond)
		end()
		Note(ctx, "init", time.Now(), 7*time.Millisecond)
		if got := tr.String(); got != "thaw;dur=1.500;start=0.000, init;dur=7.000;start=1.500" {
			t.Errorf("got %q", got)
		}
	})
}

func TestWithoutATraceNothingIsKept(t *testing.T) {
	Begin(t.Context(), "x")()
	Note(t.Context(), "x", time.Now(), time.Second) // must not panic
}

func TestSpansAreBounded(t *testing.T) {
	ctx, tr := With(t.Context())
	var all sync.WaitGroup
	for range 10 * maxSpans {
		all.Go(func() { Note(ctx, "x", time.Now(), 1) })
	}
	all.Wait()
	if n := len(tr.Spans()); n != maxSpans {
		t.Errorf("%d spans, want %d", n, maxSpans)
	}
}
