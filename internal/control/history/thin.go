package history

import (
	"cmp"
	"maps"
	"math/bits"
	"slices"

	"hearth/internal/hearth"
)

// Window is how many of the newest steps are all kept while the budget allows it.
const Window = 20

// Piece is files that occupy disk: a step's own, or what steps lie on.
type Piece struct {
	ID    hearth.SnapshotID
	Base  hearth.SnapshotID // what its files refer to; empty, or unknown here: nothing that counts
	Bytes int64
}

// Step is a step as thinning sees it.
type Step struct {
	Piece
	Number int64
	Gap    bool // it could not be taken: there is nothing to go back to
	Pinned bool // somebody is in it; it stays whatever it costs
}

// Thin says which steps of a sandbox go, by a rule that looks at their numbers
// alone. With a window w, a step that is a numbers behind the newest one stays
// when a < w; when w <= a < 2w if its number is divisible by 2, when 2w <= a < 4w
// if by 4, and so on: of the past ever less is kept, but something of all of it,
// about w + w/2 per doubling. What one window lets go every smaller one does, so
// nothing that was let go is ever missed later.
//
// The window is the largest one, Window at most, with which the steps that stay
// and what they lie on fit into budget bytes; when not even a window of 1 does,
// the oldest go until they do. The newest step and pinned ones always stay. Gaps
// go when they leave Window.
//
// beneath is what steps lie on and that is there for them alone: removing a step
// frees nothing while one that stays lies on it, and it is counted until then.
func Thin(steps []Step, beneath []Piece, budget int64) (gone []Step) {
	if len(steps) == 0 {
		return nil
	}
	steps = slices.SortedFunc(slices.Values(steps), func(a, b Step) int { return cmp.Compare(b.Number, a.Number) })
	newest := steps[0].Number
	known := pieces(steps, beneath)
	var kept []Step
	for window := int64(Window); window > 0; window-- {
		kept, gone = nil, nil
		for i, s := range steps {
			if i == 0 || s.Pinned || stays(s, newest-s.Number, window) {
				kept = append(kept, s)
			} else {
				gone = append(gone, s)
			}
		}
		if weigh(kept, known) <= budget {
			return gone
		}
	}
	for i := len(kept) - 1; i > 0 && weigh(kept, known) > budget; i-- {
		if !kept[i].Pinned && !kept[i].Gap {
			gone = append(gone, kept[i])
			kept = slices.Delete(kept, i, i+1)
		}
	}
	return gone
}

// stays applies the rule to a step that is age numbers behind the newest one.
func stays(s Step, age, window int64) bool {
	if s.Gap {
		return age < Window
	}
	level := bits.Len64(uint64(age / window))
	return s.Number%(1<<level) == 0
}

// Weigh is how many bytes are there for steps alone: their own, and those of what
// they lie on, each counted once.
func Weigh(steps []Step, beneath []Piece) int64 { return weigh(steps, pieces(steps, beneath)) }

func pieces(steps []Step, beneath []Piece) map[hearth.SnapshotID]Piece {
	known := map[hearth.SnapshotID]Piece{}
	for _, p := range beneath {
		known[p.ID] = p
	}
	for _, s := range steps {
		known[s.ID] = s.Piece
	}
	return known
}

func weigh(kept []Step, known map[hearth.SnapshotID]Piece) (sum int64) {
	counted := maps.Clone(known) // what is left in it is not counted yet
	for _, s := range kept {
		for id := s.ID; id != ""; {
			p, left := counted[id]
			if !left {
				break
			}
			delete(counted, id)
			sum += p.Bytes
			id = p.Base
		}
	}
	return sum
}
