package history

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"hearth/internal/blob"
	"hearth/internal/hearth"
)

// line makes steps with the given numbers, each of so many bytes.
func line(bytes int64, numbers ...int64) []Step {
	var list []Step
	for _, n := range numbers {
		list = append(list, Step{ID: name(n), Number: n, Objects: []blob.Object{{Name: string(name(n)), Bytes: bytes}}})
	}
	return list
}

func name(n int64) hearth.SnapshotID { return hearth.SnapshotID(fmt.Sprint("step", n)) }

// needs makes a step need objects, too.
func needs(s Step, objects ...blob.Object) Step {
	s.Objects = append(slices.Clone(s.Objects), objects...)
	return s
}

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

func TestThin(t *testing.T) {
	pinned := line(10, upTo(30)...)
	pinned[2].Pinned = true
	gaps := append(line(10, 1, 2, 30), Step{Number: 3, Gap: true}, Step{Number: 29, Gap: true})
	steps := line(10, 1, 2, 3)
	shared := blob.Object{Name: "shared", Bytes: 50}
	alike := []Step{needs(steps[0], shared), needs(steps[1], shared), needs(steps[2], shared)}
	var light []Step
	for _, s := range line(1, upTo(10)...) {
		light = append(light, needs(s, blob.Object{Name: "big", Bytes: 1000}))
	}
	failing := line(10, 1)
	for n := range int64(2 * Window) {
		failing = append(failing, Step{Number: n + 2, Gap: true})
	}
	beside := line(10, upTo(3)...)
	beside[0].Pinned, beside[0].Objects[0].Bytes = true, 100
	for _, tc := range []struct {
		name   string
		steps  []Step
		budget int64
		keeps  []int64
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
		{name: "what all share counts once", steps: alike, budget: 80, keeps: []int64{1, 2, 3}},
		{name: "a step frees its own part", steps: alike, budget: 79, keeps: []int64{2, 3}},
		{name: "the last one pays for it", steps: alike, budget: 10, keeps: []int64{3}},
		{name: "what frees nothing stays", steps: light, budget: 80, keeps: upTo(10)},
		{name: "an eighth is for the nine others", steps: light, budget: 72, keeps: upTo(10)},
		{name: "and no more", steps: light, budget: 71, keeps: upTo(10)[1:]},
		{name: "an eighth beside the pinned one, too", steps: beside, budget: 80, keeps: upTo(3)},
		{name: "which is not for two", steps: beside, budget: 79, keeps: []int64{1, 3}},
		{name: "nothing but gaps", steps: []Step{{Number: 1, Gap: true}, {Number: 22, Gap: true}}, budget: 10, keeps: []int64{22}},
		{name: "a gap is not the newest", steps: append(line(100, 1, 2), Step{Number: 3, Gap: true}), budget: 10, keeps: []int64{2, 3}},
		{name: "nor are ever so many", steps: failing, budget: 100, keeps: append([]int64{1}, upTo(2*Window + 1)[Window+1:]...)},
		{name: "what another needs frees nothing", steps: []Step{steps[0], steps[1], needs(steps[2], steps[0].Objects...)}, budget: 29, keeps: []int64{3}},
		{name: "a step of nothing", steps: []Step{{ID: "a", Number: 1}, steps[1]}, budget: 10, keeps: []int64{1, 2}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := numbers(without(tc.steps, Thin(tc.steps, tc.budget)))
			if !slices.Equal(got, tc.keeps) {
				t.Errorf("keeps %v, want %v", got, tc.keeps)
			}
		})
	}
}

// A history of any length, thinned after every step, by any budget, of steps that
// share with those before them: nothing is let go twice, nor more by a bigger budget,
// the limit holds, the newest row, the newest step that is no gap and a pinned one
// stay, and what is left grows like the logarithm of the length.
func TestThinAlways(t *testing.T) {
	for range 30 {
		budget := rand.Int64N(3000)
		var steps []Step
		var whole int64 // the newest step that is no gap
		n := rand.Int64N(400) + 1
		pinned := rand.Int64N(n) + 1
		for number := int64(1); number <= n; number++ {
			s := line(rand.Int64N(100), number)[0]
			s.Pinned = number == pinned
			switch r := rand.IntN(10); {
			case r == 0 || number%100 > 70: // nothing can be taken for a while
				s.Gap, s.Objects = true, nil
			case r < 6 && len(steps) > 0: // shares with the one before it, or was rolled back to another one
				s = needs(s, steps[max(0, len(steps)-1-rand.IntN(3))].Objects...)
				s.Objects = s.Objects[:min(len(s.Objects), 30)]
			}
			if !s.Gap {
				whole = number
			}
			steps = append(steps, s)
			gone := Thin(steps, budget)
			if more := Thin(steps, budget*2); len(without(more, gone)) > 0 {
				t.Fatalf("twice the budget lets %v go, the half of it %v", numbers(more), numbers(gone))
			}
			steps = without(steps, gone)
			if again := Thin(steps, budget); len(again) > 0 {
				t.Fatalf("a second look lets %v go of %v", numbers(again), numbers(steps))
			}
			for _, must := range []int64{number, whole, min(pinned, number)} {
				if must > 0 && !slices.Contains(numbers(steps), must) {
					t.Fatalf("step %d is not kept: %v", must, numbers(steps))
				}
			}
			if w := Weigh(steps); w != union(steps) || w > Limit(steps, budget) {
				t.Fatalf("%v weigh %d, which is %d, of %d", numbers(steps), w, union(steps), budget)
			}
			if len(steps) > 120 {
				t.Fatalf("%d steps are left of %d", len(steps), number)
			}
		}
	}
}

// union adds up objects, each once.
func union(steps []Step) (sum int64) {
	sizes := map[string]int64{}
	for _, s := range steps {
		for _, o := range s.Objects {
			sizes[o.Name] = o.Bytes
		}
	}
	for n := range maps.Values(sizes) {
		sum += n
	}
	return sum
}
