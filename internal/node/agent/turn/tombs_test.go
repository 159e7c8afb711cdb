package turn

import (
	"testing"

	"hearth/internal/hearth"
)

func TestTombsAreBounded(t *testing.T) {
	var b Tombs
	for range maxTombs + 100 {
		b.Add(hearth.NewSandboxID(), 3)
	}
	b.Add("last", 2)
	b.Add("last", 7)
	if len(b.generation) != maxTombs || len(b.order) != maxTombs {
		t.Fatalf("%d, %d remembered", len(b.generation), len(b.order))
	}
	if !b.Covers("last", 7) || b.Covers("last", 8) || b.Covers("other", 0) {
		t.Fatal("wrong generations are covered")
	}
}
