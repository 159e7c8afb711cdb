package turn

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

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

// TestCalmWaitsForUsers: what is made in the background gives way to users, for a while.
func TestCalmWaitsForUsers(t *testing.T) {
	enter := func(t *testing.T, q *Queue, u Urgency) func() {
		t.Helper()
		leave, err := q.Enter(t.Context(), u)
		if err != nil {
			t.Fatal(err)
		}
		return leave
	}
	waited := func(ctx context.Context, q *Queue) time.Duration {
		began := time.Now()
		q.Calm(ctx)
		return time.Since(began)
	}
	const busy = patience / 3
	synctest.Test(t, func(t *testing.T) {
		q := NewQueue(1, 8)
		if d := waited(t.Context(), q); d != 0 {
			t.Errorf("it waited %s for nobody", d)
		}
		leave := enter(t, q, Background)
		if d := waited(t.Context(), q); d != 0 {
			t.Errorf("it waited %s for its like", d)
		}
		gone, cancel := context.WithCancel(t.Context())
		go func() { // one user waits in line, and gives up
			time.AfterFunc(busy, cancel)
			_, _ = q.Enter(gone, User)
		}()
		synctest.Wait()
		if d := waited(t.Context(), q); d != busy {
			t.Errorf("it waited %s for a user in line, want %s", d, busy)
		}
		leave()

		first := enter(t, q, User)
		go func() { // the next begins when the first ends
			leave, err := q.Enter(t.Context(), User)
			time.Sleep(busy)
			if err == nil {
				leave()
			}
		}()
		time.AfterFunc(busy, first)
		synctest.Wait()
		if d := waited(t.Context(), q); d != 2*busy {
			t.Errorf("it waited %s for two users, want %s", d, 2*busy)
		}

		leave = enter(t, q, User)
		if d := waited(t.Context(), q); d != patience {
			t.Errorf("it waited %s, want %s", d, patience)
		}
		ended, cancel := context.WithTimeout(t.Context(), busy)
		defer cancel()
		if d := waited(ended, q); d != busy {
			t.Errorf("it waited %s, want %s, when it was told to end", d, busy)
		}
		leave()
		if d := waited(t.Context(), q); d != 0 {
			t.Errorf("it waited %s when all were gone", d)
		}
	})
}
