package turn

import (
	"context"
	"testing"
	"testing/synctest"

	"hearth/internal/hearth"
)

func TestQueueCanceledWaiterPassesItsTurnOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := NewQueue(1, 2)
		leave, err := q.Enter(t.Context(), User)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		gone, served := make(chan error), make(chan error)
		go func() { _, err := q.Enter(ctx, User); gone <- err }()
		synctest.Wait()
		go func() {
			leave, err := q.Enter(t.Context(), User)
			if err == nil {
				leave()
			}
			served <- err
		}()
		synctest.Wait()
		if _, err := q.Enter(t.Context(), User); hearth.KindOf(err) != hearth.ResourceExhausted {
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
		if active, waiting := q.Load(); active != 0 || waiting != 0 {
			t.Fatalf("%d active, %d waiting", active, waiting)
		}
	})
}
