package turn

import "hearth/internal/hearth"

const maxTombs = 4096

// Tombs remembers, of the sandboxes stopped last, the greatest generation, so
// that a start that was overtaken by its stop does not bring the sandbox back. The
// zero value is ready; its owner guards it.
type Tombs struct {
	generation map[hearth.SandboxID]int64
	order      []hearth.SandboxID
}

// Add notes that a sandbox was stopped with the given generation.
func (t *Tombs) Add(id hearth.SandboxID, generation int64) {
	if t.generation == nil {
		t.generation = map[hearth.SandboxID]int64{}
	}
	old, there := t.generation[id]
	if !there {
		t.order = append(t.order, id)
	}
	t.generation[id] = max(old, generation)
	if len(t.order) > maxTombs {
		delete(t.generation, t.order[0])
		t.order = t.order[1:]
	}
}

// Covers reports whether a start of the given generation comes too late.
func (t *Tombs) Covers(id hearth.SandboxID, generation int64) bool {
	g, there := t.generation[id]
	return there && generation <= g
}
