package history

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"hearth/internal/hearth"
)

// line makes steps with the given numbers, each of so many bytes.
func line(bytes int64, numbers ...int64) []Step {
	var list []Step
	for _, n := range numbers {
		list = append(list, Step{Number: n, Piece: Piece{ID: name(n), Bytes: bytes}})
	}
	return list
}

func name(n int64) hearth.SnapshotID { return hearth.SnapshotID(strings.Repeat("x", int(n))) }

func upTo(n int64) (list []int64) {
	for i := range n {
		list = append(list, i+1)
	}
	return list
}

func numbers(steps []Step) (list []int64) {
	for _, s := range steps {
		list = append(list, s.Number)
	}
	slices.Sort(list)
	return list
}

func left(steps, gone []Step) (list []Step) {
	for _, s := range steps {
		if !slices.ContainsFunc(gone, func(g Step) bool { return g.Number == s.Number }) {
			list = append(list, s)
		}
	}
	return list
}

func TestThin(t *testing.T) {
	pinned := line(10, upTo(30)...)
	pinned[2].Pinned = true
	gaps := append(line(10, 1, 2, 30), Step{Number: 3, Gap: true}, Step{Number: 29, Gap: true})
	on := line(10, 1, 2, 3)
	on[2].Base = name(1) // step 3 lies on step 1
	for _, tc := range []struct {
		name    string
		steps   []Step
		beneath []Piece
		budget  int64
		keeps   []int64
	}{
		{name: "none", budget: 100},
		{name: "the newest 20 are whole", steps: line(1, upTo(20)...), budget: 100, keeps: upTo(20)},
		{name: "the 21st oldest must be even", steps: line(1, upTo(21)...), budget: 100, keeps: upTo(21)[1:]},
		{name: "then every fourth", steps: line(1, upTo(45)...), budget: 100, keeps: slices.Concat([]int64{4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24}, upTo(45)[25:])},
		{name: "the budget shortens the window", steps: line(10, upTo(8)...), budget: 50, keeps: []int64{4, 6, 7, 8}},
		{name: "not even a window of 1 fits", steps: line(10, 1, 2, 3, 4), budget: 10, keeps: []int64{4}},
		{name: "the newest stays whatever it costs", steps: line(100, 1, 2), budget: 10, keeps: []int64{2}},
		{name: "pinned", steps: pinned, budget: 15, keeps: []int64{3, 30}},
		{name: "gaps leave with the window", steps: gaps, budget: 1000, keeps: []int64{2, 29, 30}},
		{name: "what another lies on frees nothing", steps: on, budget: 20, keeps: []int64{3}},
		{name: "what is beneath counts", steps: []Step{{Number: 1, Piece: Piece{ID: "a", Bytes: 10}}, {Number: 2, Piece: Piece{ID: "b", Base: "x", Bytes: 10}}},
			beneath: []Piece{{ID: "x", Base: "y", Bytes: 5}, {ID: "y", Bytes: 5}}, budget: 29, keeps: []int64{2}},
		{name: "once", steps: []Step{{Number: 1, Piece: Piece{ID: "a", Base: "x", Bytes: 10}}, {Number: 2, Piece: Piece{ID: "b", Base: "x", Bytes: 10}}},
			beneath: []Piece{{ID: "x", Bytes: 10}}, budget: 30, keeps: []int64{1, 2}},
		{name: "a circle, which damage alone makes", steps: []Step{{Number: 1, Piece: Piece{ID: "a", Base: "a", Bytes: 10}}}, budget: 1, keeps: []int64{1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := numbers(left(tc.steps, Thin(tc.steps, tc.beneath, tc.budget)))
			if !slices.Equal(got, tc.keeps) {
				t.Errorf("keeps %v, want %v", got, tc.keeps)
			}
		})
	}
}

// A history of any length, thinned after every step, by any budget: nothing is let
// go twice, the budget holds, the newest stays, and what is left grows like the
// logarithm of the length.
func TestThinAlways(t *testing.T) {
	for range 30 {
		budget := rand.Int64N(3000)
		var steps []Step
		var beneath []Piece
		n := rand.Int64N(400) + 1
		for number := int64(1); number <= n; number++ {
			s := Step{Number: number, Piece: Piece{ID: name(number), Bytes: rand.Int64N(100)}}
			switch r := rand.IntN(10); {
			case r == 0:
				s.Gap, s.Piece = true, Piece{}
			case r < 4 && len(steps) > 0:
				s.Base = steps[rand.IntN(len(steps))].ID // rolled back to it before
			}
			steps = append(steps, s)
			gone := Thin(steps, beneath, budget)
			rest := left(steps, gone)
			beneath = needed(rest, append(beneath, ofSteps(gone)...))
			steps = rest
			if again := Thin(steps, beneath, budget); len(again) > 0 {
				t.Fatalf("a second look lets %v go of %v", numbers(again), numbers(steps))
			}
			if len(steps) == 0 || steps[len(steps)-1].Number != number {
				t.Fatalf("step %d is not kept: %v", number, numbers(steps))
			}
			if w := Weigh(steps, beneath); w > budget && whole(steps) > 1 {
				t.Fatalf("%v weigh %d of %d", numbers(steps), w, budget)
			}
			if len(steps) > 120 {
				t.Fatalf("%d steps are left of %d", len(steps), number)
			}
		}
	}
}

// whole counts the steps that can be gone back to and are not the newest.
func whole(steps []Step) (n int) {
	n = 1
	for _, s := range steps[:len(steps)-1] {
		if !s.Gap {
			n++
		}
	}
	return n
}

func ofSteps(steps []Step) (list []Piece) {
	for _, s := range steps {
		if !s.Gap {
			list = append(list, s.Piece)
		}
	}
	return list
}

// needed is what of the pieces steps lie on, as the shelf would say.
func needed(steps []Step, all []Piece) (list []Piece) {
	seen := map[hearth.SnapshotID]bool{}
	for _, s := range steps {
		seen[s.ID] = true
	}
	var follow func(base hearth.SnapshotID)
	follow = func(base hearth.SnapshotID) {
		for _, p := range all {
			if p.ID == base && base != "" && !seen[base] {
				seen[base] = true
				list = append(list, p)
				follow(p.Base)
			}
		}
	}
	for _, s := range steps {
		follow(s.Base)
	}
	return list
}
