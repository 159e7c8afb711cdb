package history

import (
	"fmt"
	"maps"
	"math"
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
		list = append(list, Step{ID: name(n), Number: n, Line: true, Objects: []blob.Object{{Name: string(name(n)), Bytes: bytes}}})
	}
	return list
}

func name(n int64) hearth.SnapshotID { return hearth.SnapshotID(fmt.Sprint("step", n)) }

// strays makes those of some steps that have the numbers be of no line.
func strays(steps []Step, numbers ...int64) []Step {
	for i, s := range steps {
		steps[i].Line = !slices.Contains(numbers, s.Number)
	}
	return steps
}

// grown is steps of which each needs all that those before it brought with it.
func grown(bytes ...int64) (list []Step) {
	var all []blob.Object
	for i, n := range bytes {
		s := line(n, int64(i+1))[0]
		list = append(list, needs(s, all...))
		all = append(all, s.Objects...)
	}
	return list
}

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
	// Three small commands, six big ones, back to the third, and a small one.
	seen := strays(grown(1, 1, 1, 20, 20, 20, 20, 20, 20), 4, 5, 6, 7, 8, 9)
	seen = append(seen, needs(line(1, 10)[0], seen[2].Objects...))
	heavy := line(1, upTo(10)...)
	heavy[4].Objects[0].Bytes = 100
	undo := line(40, 4, 7, 9, 10)
	undo[2].Objects[0].Bytes, undo[3].Objects[0].Bytes = 100, 10
	pair := []Step{steps[0], steps[1], needs(steps[2], shared), needs(line(10, 4)[0], shared), line(10, 5)[0]}
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
		{name: "the budget shortens the window", steps: line(10, upTo(8)...), budget: 40, keeps: []int64{4, 6, 7, 8}},
		{name: "and no more than it must", steps: line(10, upTo(8)...), budget: 50, keeps: []int64{4, 5, 6, 7, 8}},
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
		{name: "what another needs frees nothing", steps: []Step{steps[0], steps[1], needs(steps[2], steps[0].Objects...)}, budget: 29, keeps: []int64{1, 3}},
		{name: "each step adds to those before it", steps: seen[:9], budget: 64, keeps: upTo(9)},
		{name: "what was gone back to is kept, what was left behind as far as it fits", steps: seen, budget: 64, keeps: []int64{1, 2, 3, 4, 5, 6, 10}},
		{name: "though it is not the newest", steps: seen, budget: 16, keeps: []int64{1, 2, 3, 10}},
		{name: "the last one before is wanted most", steps: line(10, upTo(10)...), budget: 20, keeps: []int64{9, 10}},
		{name: "the line before what was left behind", steps: strays(line(10, upTo(8)...), 4, 5, 6, 7), budget: 40, keeps: []int64{1, 2, 3, 8}},
		{name: "then that as well", steps: strays(line(10, upTo(8)...), 4, 5, 6, 7), budget: 60, keeps: []int64{1, 2, 3, 6, 7, 8}},
		{name: "a heavy one goes alone", steps: heavy, budget: 50, keeps: []int64{1, 2, 3, 4, 6, 7, 8, 9, 10}},
		{name: "and is the last to go, as the one before it is wanted less beside it", steps: undo, budget: 50, keeps: []int64{4, 10}},
		{name: "as do two that share what is heavy", steps: pair, budget: 50, keeps: []int64{1, 2, 5}},
		{name: "a step of nothing", steps: []Step{{ID: "a", Number: 1}, steps[1]}, budget: 10, keeps: []int64{1, 2}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			gone := Thin(tc.steps, tc.budget)
			for n := range len(gone) + 1 { // as many are gone when the next look is taken
				cutOff := without(tc.steps, gone[:n])
				if got := numbers(without(cutOff, Thin(cutOff, tc.budget))); !slices.Equal(got, tc.keeps) {
					t.Errorf("keeps %v, want %v, with %v gone before", got, tc.keeps, numbers(gone[:n]))
				}
			}
		})
	}
}

// tree grows a history by random steps: each shares what the one that it comes after
// needs, or some of it, some cannot be taken, and now and then the sandbox is taken
// back to one that is there.
type tree struct {
	steps  []Step
	head   int64
	before map[int64]int64
	whole  int64 // the newest step that is no gap
}

func (r *tree) grow(number int64) {
	if len(r.steps) > 0 && rand.IntN(10) == 0 {
		if s := r.steps[rand.IntN(len(r.steps))]; !s.Gap {
			r.head = s.Number
		}
	}
	s := line(rand.Int64N(100), number)[0]
	switch {
	case rand.IntN(10) == 0 || number%100 > 70: // nothing can be taken for a while
		s.Gap, s.Objects = true, nil
	default:
		for _, other := range r.steps {
			if other.Number == r.head {
				s = needs(s, other.Objects[rand.IntN(len(other.Objects)+1):]...)
				s.Objects = s.Objects[:min(len(s.Objects), 30)]
			}
		}
		r.before[number], r.head, r.whole = r.head, number, number
	}
	if r.steps = append(r.steps, s); rand.IntN(20) == 0 && r.whole > 0 {
		r.head = r.whole // back, before a step is taken
	}
	at := map[int64]bool{}
	for n := r.head; n > 0; n = r.before[n] {
		at[n] = true
	}
	for i, s := range r.steps {
		r.steps[i].Pinned, r.steps[i].Line = s.Number == r.head, at[s.Number]
	}
}

// A history of any length and shape, thinned after every step, by any budget: the limit
// holds; the newest row, the newest step that is no gap and the one that the sandbox is
// at stay; nothing goes that could stay, so nothing that frees nothing; and what is left
// grows like the logarithm of the length.
func TestThinAlways(t *testing.T) {
	for range 30 {
		budget := rand.Int64N(3000)
		r := tree{before: map[int64]int64{}}
		for number := range rand.Int64N(400) + 1 {
			number++
			r.grow(number)
			gone := Thin(r.steps, budget)
			kept := without(r.steps, gone)
			for _, must := range []int64{number, r.whole, r.head} {
				if must > 0 && !slices.Contains(numbers(kept), must) {
					t.Fatalf("step %d is not kept: %v", must, numbers(kept))
				}
			}
			if w := Weigh(kept); w != union(kept) || w > Limit(kept, budget) || Limit(kept, budget) != Limit(r.steps, budget) {
				t.Fatalf("%v weigh %d, which is %d, of %d", numbers(kept), w, union(kept), budget)
			}
			goesForReason(t, r.steps, gone, budget)
			cutOff := without(r.steps, gone[:rand.IntN(len(gone)+1)])
			if again := without(cutOff, Thin(cutOff, budget)); !slices.Equal(numbers(again), numbers(kept)) {
				t.Fatalf("of %v stay %v, in two goes %v", numbers(r.steps), numbers(kept), numbers(again))
			}
			if r.steps = kept; len(kept) > 120 {
				t.Fatalf("%d steps are left of %d", len(kept), number)
			}
		}
	}
}

// goesForReason checks that the steps that are too old for Window go, and of the others
// those that would be too much for the budget, and for the eighth beside what must stay,
// were they put back.
func goesForReason(t *testing.T, steps, gone []Step, budget int64) {
	t.Helper()
	kept, newest := without(steps, gone), slices.Max(numbers(steps))
	must, others := split(steps)
	for _, s := range others {
		old := !stays(s, newest-s.Number, Window)
		went := slices.Contains(numbers(gone), s.Number)
		if old && !went {
			t.Fatalf("step %d of %d stays", s.Number, newest)
		}
		if all := union(append(slices.Clone(kept), s)); !old && went && (all <= budget || all <= union(must)+budget/8) {
			t.Fatalf("step %d went, and %v with it are %d of %d, of which %d must stay", s.Number, numbers(kept), all, budget, union(must))
		}
	}
}

// A bigger budget lets nothing go that is wanted more than all that a smaller one does.
func TestThinByMore(t *testing.T) {
	r := tree{before: map[int64]int64{}}
	for number := int64(1); number < 300; number++ {
		r.grow(number)
		r.steps = without(r.steps, Thin(r.steps, math.MaxInt64))
		_, order := split(r.steps)
		rank(order, number)
		first := func(budget int64) int {
			gone := numbers(Thin(r.steps, budget))
			at := slices.IndexFunc(order, func(s Step) bool { return slices.Contains(gone, s.Number) })
			if at < 0 {
				return len(order)
			}
			return at
		}
		if budget := rand.Int64N(3000); first(budget) > first(budget*2) {
			t.Fatalf("by %d all of %v stay up to %d, by twice of that up to %d", budget, numbers(order), first(budget), first(budget*2))
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
