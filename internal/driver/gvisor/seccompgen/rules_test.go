package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	filters "gvisor.dev/gvisor/runsc/boot/filter/config"
)

// A program compiled ahead and filled in by a process must be, instruction by
// instruction, what gVisor would have compiled in that process.
func TestProgramsAreWhatGVisorCompiles(t *testing.T) {
	ready, err := compile()
	if err != nil {
		t.Fatal(err)
	}
	list, err := variants()
	if err != nil {
		t.Fatal(err)
	}
	if len(list) == 0 || len(list) != len(ready) {
		t.Fatalf("%d variants, %d programs", len(list), len(ready))
	}
	for _, opt := range list {
		p, ok := ready[opt.ConfigKey()]
		if !ok {
			t.Errorf("no program for %s", opt.ConfigKey())
			continue
		}
		got, err := p.RenderInstructions(opt.Vars())
		if err != nil {
			t.Fatal(err)
		}
		allowed, denied := filters.Rules(opt)
		want, _, err := program(opt, allowed, denied).Build()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s:\n%s", opt.ConfigKey(), diff)
		}
		if len(p.VarOffsets["self_pid_low32bits"]) == 0 {
			t.Errorf("%s does not depend on the process's number", opt.ConfigKey())
		}
	}
}
