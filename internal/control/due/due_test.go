package due_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"hearth/internal/control/due"
	"hearth/internal/hearth"
)

func row(id string, at int, generation int64) *hearth.Sandbox {
	return &hearth.Sandbox{ID: hearth.SandboxID(id), EndsAt: time.Unix(int64(at), 0), Generation: generation}
}

func take(t *testing.T, q *due.Queue, now int, want ...hearth.SandboxID) time.Time {
	t.Helper()
	got, next := q.Take(time.Unix(int64(now), 0))
	if !slices.Equal(got, want) {
		t.Errorf("due at %d: %v, want %v", now, got, want)
	}
	return next
}

func TestQueue(t *testing.T) {
	q := due.New()
	if next := take(t, q, 100); !next.IsZero() {
		t.Errorf("an empty queue is due at %v", next)
	}
	q.Set(row("a", 10, 1))
	q.Set(row("b", 5, 1))
	q.Set(row("c", 20, 1))
	<-q.Changed()
	if next := take(t, q, 4); next.Unix() != 5 {
		t.Errorf("next at %v, want 5", next)
	}
	q.Set(row("b", 30, 3))
	q.Set(row("b", 7, 2)) // told late: an older row
	q.Drop("c")
	q.Drop("nobody")
	take(t, q, 10, "a")
	take(t, q, 29)
	q.Note("b", time.Unix(1, 0)) // known already
	q.Note("d", time.Unix(2, 0))
	take(t, q, 29, "d")
	if next := take(t, q, 30, "b"); !next.IsZero() {
		t.Errorf("an emptied queue is due at %v", next)
	}
}

// TestOrder takes many from a shuffled queue in the order of their ends.
func TestOrder(t *testing.T) {
	q := due.New()
	const n = 500
	for _, i := range rand.Perm(n) {
		id := fmt.Sprintf("%03d", i)
		q.Set(row(id, n-i, 1))
		q.Set(row(id, i, 2))
	}
	var want []hearth.SandboxID
	for i := range n {
		if id := hearth.SandboxID(fmt.Sprintf("%03d", i)); i%10 == 0 {
			q.Drop(id)
		} else {
			want = append(want, id)
		}
	}
	take(t, q, n, want...)
}
