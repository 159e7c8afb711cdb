package feed

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"

	"hearth/internal/hearth"
	"hearth/internal/leaktest"
	"hearth/internal/node"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func event(id string, reason string) node.Event {
	return node.Event{ID: hearth.SandboxID(id), State: hearth.Stopped, Reason: reason}
}

func TestFirstReaderGetsWhatHappenedBefore(t *testing.T) {
	h := New()
	h.Publish(event("a", "1"))
	h.Publish(event("b", "2"))
	h.Publish(event("a", "3"))
	h.Close()
	var got []string
	for e, err := range h.Subscribe(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(e.ID)+e.Reason)
	}
	if fmt.Sprint(got) != "[a3 b2]" {
		t.Fatalf("got %v", got)
	}
}

func TestSlowReaderSeesTheLastOfEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New()
		ctx, cancel := context.WithCancel(t.Context())
		events := h.Subscribe(ctx)
		for i := range 1000 {
			h.Publish(event(fmt.Sprint(i%3), fmt.Sprint(i)))
		}
		last := map[hearth.SandboxID]string{}
		for e := range events {
			last[e.ID] = e.Reason
			if len(last) == 3 {
				break
			}
		}
		if last["0"] != "999" || last["1"] != "997" || last["2"] != "998" {
			t.Fatalf("got %v", last)
		}
		cancel()
		synctest.Wait()
		if len(h.readers) != 0 {
			t.Fatal("a reader that left is still there")
		}
	})
}

func TestReaderThatOverflowsIsTold(t *testing.T) {
	h := New()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events := h.Subscribe(ctx)
	for i := range maxPending + 1 {
		h.Publish(event(fmt.Sprint(i), ""))
	}
	n := 0
	for _, err := range events {
		n++
		if err != nil {
			if hearth.KindOf(err) != hearth.Aborted {
				t.Fatal(err)
			}
			break
		}
	}
	if n != 2 { // what came after the overflow, then the notice
		t.Fatalf("%d events before the notice", n)
	}
}
