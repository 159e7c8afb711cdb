package history

import (
	"cmp"
	"math/bits"
	"slices"

	"hearth/internal/blob"
	"hearth/internal/hearth"
)

// Window is how many of the newest steps are all kept while the budget allows it.
const Window = 20

// Step is a step as thinning sees it.
type Step struct {
	ID      hearth.SnapshotID
	Number  int64
	Gap     bool          // it could not be taken: there is nothing to go back to
	Pinned  bool          // somebody is in it; it stays whatever it costs
	Objects []blob.Object // on disk for it, for other steps perhaps as well, and for nothing else
}

// Thin says which steps of a sandbox go, by a rule that looks at their numbers
// alone. With a window w, a step that is a numbers behind the newest one stays
// when a < w; when w <= a < 2w if its number is divisible by 2, when 2w <= a < 4w
// if by 4, and so on: of the past ever less is kept, but something of all of it,
// about w + w/2 per doubling. What one window lets go every smaller one does, so
// nothing that was let go is ever missed later.
//
// The newest step that is no gap, the newest row, which may be a gap, and pinned steps
// always stay; W0 is what these weigh. The window is the largest one, Window at most,
// with which all that stay weigh no more than max(budget, W0 + budget/8), see Limit;
// when not even a window of 1 does, the oldest go until they do. So what is on disk may
// be more than the budget, and never by more than an eighth of it beside what must
// stay. Gaps go when they leave Window.
func Thin(steps []Step, budget int64) (gone []Step) {
	if len(steps) == 0 {
		return nil
	}
	kept := slices.SortedFunc(slices.Values(steps), func(a, b Step) int { return cmp.Compare(b.Number, a.Number) })
	newest, last, limit := kept[0].Number, last(steps), Limit(steps, budget)
	weight := weigh(kept)
	for window := int64(Window); window > 0 && (window == Window || weight.bytes > limit); window-- {
		kept = slices.DeleteFunc(kept, func(s Step) bool {
			if s.Number == last || s.Pinned || stays(s, newest-s.Number, window) {
				return false
			}
			weight.remove(s)
			gone = append(gone, s)
			return true
		})
	}
	for _, s := range slices.Backward(kept) {
		if weight.bytes > limit && s.Number != last && !s.Pinned && !s.Gap {
			weight.remove(s)
			gone = append(gone, s)
		}
	}
	return gone
}

// share is the part of the budget that is there for other steps whatever those weigh
// that must stay: else a sandbox that grew to its budget would have one step for good,
// and mostly for nothing, since they share what is big: a pack is on disk, and counts,
// whole as long as a step uses any of it.
const share = 8

// Limit is the bytes that steps may weigh, together: the budget, or what those weigh
// that must stay and an eighth of the budget, if that is more.
func Limit(steps []Step, budget int64) int64 {
	last := last(steps)
	var must []Step
	for _, s := range steps {
		if s.Number == last || s.Pinned {
			must = append(must, s)
		}
	}
	return max(budget, Weigh(must)+budget/share)
}

// last is the number of the newest step that is no gap; 0 if all are.
func last(steps []Step) (number int64) {
	for _, s := range steps {
		if !s.Gap {
			number = max(number, s.Number)
		}
	}
	return number
}

// stays applies the rule to a step that is age numbers behind the newest one.
func stays(s Step, age, window int64) bool {
	if s.Gap {
		return age < Window
	}
	level := bits.Len64(uint64(age / window))
	return s.Number%(1<<level) == 0
}

// Weigh is how many bytes are there for steps alone: those of all their objects,
// each counted once, as removing a step frees nothing that another one needs.
func Weigh(steps []Step) int64 { return weigh(steps).bytes }

// weight is the bytes of steps, and how many of them need which object.
type weight struct {
	bytes int64
	needs map[string]int
}

func weigh(steps []Step) *weight {
	w := &weight{needs: map[string]int{}}
	for _, s := range steps {
		for _, o := range s.Objects {
			if w.needs[o.Name]++; w.needs[o.Name] == 1 {
				w.bytes += o.Bytes
			}
		}
	}
	return w
}

func (w *weight) remove(s Step) {
	for _, o := range s.Objects {
		if w.needs[o.Name]--; w.needs[o.Name] == 0 {
			w.bytes -= o.Bytes
		}
	}
}
