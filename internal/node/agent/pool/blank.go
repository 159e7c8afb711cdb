package pool

import (
	"slices"
	"strings"
	"time"

	"hearth/internal/hearth"
)

// Shape is what a blank is made of before its state is known. Machines of one
// shape differ in nothing but that.
type Shape struct {
	Driver    string
	Layers    string // keys, one a line
	Resources hearth.Resources
}

// ShapeOf is the shape of what is restored from a snapshot over a build's layers.
func ShapeOf(b hearth.Build, s hearth.Snapshot, r hearth.Resources) Shape {
	return Shape{Driver: s.Driver, Layers: strings.Join(b.Layers, "\n"), Resources: r}
}

// tier is the blanks of one shape.
type tier[M Member] struct {
	build    hearth.Build // one with these layers
	ready    []M          // oldest first
	filling  int
	failures int // in a row
	retryAt  time.Time
	size     int64 // bytes of the one that was made last
}

const blankGuess = 16 << 20

func (t *tier[M]) guess() int64 {
	if t.size > 0 {
		return t.size
	}
	return blankGuess
}

// ClaimBlank takes the oldest blank of a shape.
func (s *Set[M]) ClaimBlank(of Shape, now time.Time) (m M, found bool) {
	t := s.blanks[of]
	if t == nil || len(t.ready) == 0 {
		return m, false
	}
	m, t.ready = t.ready[0], t.ready[1:]
	s.taken = now
	return m, true
}

// NextBlank chooses a shape of a pool's of which there are too few blanks, within memory and when
// no pool lacks a machine that could be made for it, and counts one for it that FilledBlank or FailedBlank ends. While a machine has just been taken it
// says how long to wait: who has it comes first.
func (s *Set[M]) NextBlank(now time.Time, memory int64, able func(driver string) bool) (of Shape, b hearth.Build, wait time.Duration, found bool) {
	held := s.Held()
	if s.hungry(now, memory-held) {
		return of, b, 0, false
	}
	for _, p := range s.pools {
		shape := ShapeOf(p.Build, p.Warm, p.Build.Resources)
		if !p.named || !p.Warm.Memory || !able(shape.Driver) {
			continue
		}
		t := s.blanks[shape]
		if t == nil {
			t = &tier[M]{build: p.Build}
			s.blanks[shape] = t
		}
		if len(t.ready)+t.filling >= s.each || held+t.guess() > memory {
			continue
		}
		due := s.taken.Add(calm)
		if t.retryAt.After(due) {
			due = t.retryAt
		}
		if early := due.Sub(now); early <= 0 {
			t.filling++
			return shape, t.build, 0, true
		} else if wait == 0 || early < wait {
			wait = early
		}
	}
	return of, b, wait, false
}

// hungry says whether a pool lacks a machine that could be made for it in so much memory. One whose fills fail,
// or that has no room to grow, holds nobody off.
func (s *Set[M]) hungry(now time.Time, room int64) bool {
	for _, p := range s.pools {
		if p.named && p.lacks(now) > 0 && !p.retryAt.After(now) && p.guess() <= room {
			return true
		}
	}
	return false
}

// FilledBlank ends a fill that brought a blank; false when none is wanted any more.
func (s *Set[M]) FilledBlank(of Shape, m M) bool {
	t := s.blanks[of]
	t.filling--
	t.failures = 0
	if !s.wants(of) {
		return false
	}
	t.ready, t.size = append(t.ready, m), m.Held()
	return true
}

// FailedBlank ends a fill that failed; the next waits, longer each time.
func (s *Set[M]) FailedBlank(of Shape, now time.Time) {
	t := s.blanks[of]
	t.filling--
	t.failures++
	t.retryAt = now.Add(backoff(t.failures))
}

// wants says whether a pool that is named has the shape.
func (s *Set[M]) wants(of Shape) bool {
	for _, p := range s.pools {
		if p.named && ShapeOf(p.Build, p.Warm, p.Build.Resources) == of {
			return true
		}
	}
	return false
}

func (s *Set[M]) takeBlank(m M) bool {
	for _, t := range s.blanks {
		if at := slices.Index(t.ready, m); at >= 0 {
			t.ready = slices.Delete(t.ready, at, at+1)
			return true
		}
	}
	return false
}

// trimBlanks takes out the blanks of shapes that no pool has any more.
func (s *Set[M]) trimBlanks() (gone []M) {
	for of, t := range s.blanks {
		if s.wants(of) {
			continue
		}
		gone, t.ready = append(gone, t.ready...), nil
		if t.filling == 0 {
			delete(s.blanks, of)
		}
	}
	return gone
}

func (s *Set[M]) heldBlank() (sum int64) {
	for _, t := range s.blanks {
		sum += int64(t.filling) * t.guess()
		for _, m := range t.ready {
			sum += m.Held()
		}
	}
	return sum
}

func (s *Set[M]) fillingBlank() (n int) {
	for _, t := range s.blanks {
		n += t.filling
	}
	return n
}

// Blanks takes out all blanks.
func (s *Set[M]) Blanks() (gone []M) {
	for _, t := range s.blanks {
		gone, t.ready = append(gone, t.ready...), nil
	}
	return gone
}

// CountBlanks counts the blanks that wait.
func (s *Set[M]) CountBlanks() (n int) {
	for _, t := range s.blanks {
		n += len(t.ready)
	}
	return n
}
