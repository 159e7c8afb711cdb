package agent

import (
	"testing"

	"hearth/internal/hearth"
)

func TestTombsAreBounded(t *testing.T) {
	var b tombs
	for range maxTombs + 100 {
		b.add(hearth.NewSandboxID(), 3)
	}
	b.add("last", 2)
	b.add("last", 7)
	if len(b.generation) != maxTombs || len(b.order) != maxTombs {
		t.Fatalf("%d, %d remembered", len(b.generation), len(b.order))
	}
	if !b.covers("last", 7) || b.covers("last", 8) || b.covers("other", 0) {
		t.Fatal("wrong generations are covered")
	}
}
