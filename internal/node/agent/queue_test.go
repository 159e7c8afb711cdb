package agent

import (
	"context"
	"testing"
	"testing/synctest"

	"hearth/internal/hearth"
)

func TestQueueCanceledWaiterPassesItsTurnOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(1, 2)
		leave, err := q.enter(t.Context(), user)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		gone, served := make(chan error), make(chan error)
		go func() { _, err := q.enter(ctx, user); gone <- err }()
		synctest.Wait()
		go func() {
			leave, err := q.enter(t.Context(), user)
			if err == nil {
				leave()
			}
			served <- err
		}()
		synctest.Wait()
		if _, err := q.enter(t.Context(), user); hearth.KindOf(err) != hearth.ResourceExhausted {
			t.Fatalf("third waiter: %v", err)
		}
		cancel()
		if err := <-gone; hearth.KindOf(err) != hearth.Canceled {
			t.Fatalf("canceled waiter: %v", err)
		}
		leave()
		if err := <-served; err != nil {
			t.Fatal(err)
		}
		if active, waiting := q.load(); active != 0 || waiting != 0 {
			t.Fatalf("%d active, %d waiting", active, waiting)
		}
	})
}

func TestTombsAreBounded(t *testing.T) {
	var b tombs
	for range maxTombs + 100 {
		b.add(hearth.NewSandboxID(), 3)
	}
	b.add("last", 2)
	b.add("last", 7)
	if len(b.generation) != maxTombs || len(b.order) != maxTombs {
		t.Fatalf("%d, %d remembered", len(b.generation), len(b.order))
	}
	if !b.covers("last", 7) || b.covers("last", 8) || b.covers("other", 0) {
		t.Fatal("wrong generations are covered")
	}
}
