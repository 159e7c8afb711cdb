package history

import (
	"cmp"
	"maps"
	"math"
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
	Line    bool          // the sandbox's state comes from it; false of what a rollback left behind
	Objects []blob.Object // on disk for it, for other steps perhaps as well, and for nothing else
}

// Thin says which steps of a sandbox go.
//
// First by their numbers alone. With a window w, a step that is a numbers behind the
// newest one stays when a < w; when w <= a < 2w if its number is divisible by 2, when
// 2w <= a < 4w if by 4, and so on: of the past ever less is kept, but something of all
// of it, about w + w/2 per doubling. What one window lets go every smaller one does.
// What Window lets go goes, even if it weighs nothing; gaps go when they leave it.
//
// Then by the budget. The newest step that is no gap and pinned steps always stay; W0
// is what these weigh. The others stay, the most wanted first, see rank, each if what
// stays by then weighs no more with it than max(budget, W0 + budget/8), see Limit. So
// none goes that could stay: each that went would be too much beside those that are
// left. One that frees nothing, because others that stay need all that it needs, never
// goes for the budget's sake, and one that is too heavy takes none of the lighter ones
// with it. What is on disk may be more than the budget, and never by more than an eighth
// of it beside what must stay.
//
// The least wanted are the first of those that go: whoever removes them in this order
// and is cut off finds that the others have to go, and no more.
func Thin(steps []Step, budget int64) (gone []Step) {
	must, others := split(steps)
	var newest int64 // a gap, perhaps
	for _, s := range steps {
		newest = max(newest, s.Number)
	}
	others = slices.DeleteFunc(others, func(s Step) bool {
		goes := !stays(s, newest-s.Number, Window)
		if goes {
			gone = append(gone, s)
		}
		return goes
	})
	rank(others, newest)
	weight, limit := weigh(must), Limit(steps, budget)
	var heavy []Step
	for _, s := range others {
		if !weight.add(s, limit) {
			heavy = append(heavy, s)
		}
	}
	slices.Reverse(heavy)
	return append(gone, heavy...)
}

// rank sorts steps that need not stay by how much they are wanted. First comes the last
// one before where the sandbox is, to which an undo goes and from which it may just have
// set out; then the others of its line; then what a rollback left behind. Of each of
// these two first those that the smallest window keeps, so that under a small budget,
// too, something of all of the past is left, and the newest of these first.
func rank(steps []Step, newest int64) {
	var nearest int64 // numbers only ever grow along a line
	for _, s := range steps {
		if s.Line {
			nearest = max(nearest, s.Number)
		}
	}
	class := func(s Step) int {
		switch {
		case !s.Line:
			return 2
		case s.Number != nearest:
			return 1
		}
		return 0
	}
	slices.SortFunc(steps, func(a, b Step) int {
		return cmp.Or(cmp.Compare(class(a), class(b)),
			cmp.Compare(window(a, newest-a.Number), window(b, newest-b.Number)),
			cmp.Compare(b.Number, a.Number))
	})
}

// share is the part of the budget that is there for other steps whatever those weigh
// that must stay: else a sandbox that grew to its budget would have one step for good,
// and mostly for nothing, since they share what is big: a pack is on disk, and counts,
// whole as long as a step uses any of it.
const share = 8

// Limit is the bytes that steps may weigh, together: the budget, or what those weigh
// that must stay and an eighth of the budget, if that is more.
func Limit(steps []Step, budget int64) int64 {
	must, _ := split(steps)
	return max(budget, Weigh(must)+budget/share)
}

// split tells the steps that must stay whatever they weigh from the others.
func split(steps []Step) (must, others []Step) {
	var last int64 // the newest that is no gap
	for _, s := range steps {
		if !s.Gap {
			last = max(last, s.Number)
		}
	}
	for _, s := range steps {
		if s.Number == last || s.Pinned {
			must = append(must, s)
		} else {
			others = append(others, s)
		}
	}
	return must, others
}

// stays applies a window to a step that is age numbers behind the newest one.
func stays(s Step, age, window int64) bool {
	if s.Gap {
		return age < Window
	}
	level := bits.Len64(uint64(age / window))
	return s.Number%(1<<level) == 0
}

// window is the smallest one with which a step stays that does with Window.
func window(s Step, age int64) int64 {
	for w := int64(1); w < Window; w++ {
		if stays(s, age, w) {
			return w
		}
	}
	return Window
}

// Weigh is how many bytes are there for steps alone: those of all their objects,
// each counted once, as removing a step frees nothing that another one needs.
func Weigh(steps []Step) int64 { return weigh(steps).bytes }

// weight is the objects of steps, and their bytes.
type weight struct {
	bytes int64
	there map[string]bool
}

func weigh(steps []Step) *weight {
	w := &weight{there: map[string]bool{}}
	for _, s := range steps {
		w.add(s, math.MaxInt64)
	}
	return w
}

// add adds a step's objects, unless they make more than limit with those that are there.
func (w *weight) add(s Step, limit int64) bool {
	bytes, fresh := w.bytes, map[string]bool{}
	for _, o := range s.Objects {
		if !w.there[o.Name] && !fresh[o.Name] {
			fresh[o.Name] = true
			bytes += o.Bytes
		}
	}
	if bytes > limit {
		return false
	}
	w.bytes = bytes
	maps.Copy(w.there, fresh)
	return true
}
