package bench

import (
	"strings"
	"testing"
	"time"

	"hearth/client"
	"hearth/internal/hearth"
)

func TestNestedSpans(t *testing.T) {
	const us = time.Microsecond
	var got []string
	for _, s := range nested([]client.Timing{
		{Name: "control.row", Start: 100 * us, Took: 50 * us},
		{Name: "agent.thaw", Start: 201 * us, Took: 99 * us},
		{Name: "agent.init", Start: 300 * us, Took: 400 * us}, // ends a rounding after its parent
		{Name: "agent.record", Start: 199 * us, Took: 2 * us}, // begins one before it
		{Name: "node.start", Start: 200 * us, Took: 499 * us},
		{Name: "control.running", Start: 710 * us, Took: 10 * us},
		{Name: "api", Took: 800 * us},
		{Name: "after", Start: 900 * us},
	}) {
		got = append(got, s.Name)
	}
	want := "api|  control.row|  node.start|    agent.record|    agent.thaw|    agent.init|  control.running|after"
	if strings.Join(got, "|") != want {
		t.Errorf("got %q", got)
	}
	if nested(nil) != nil {
		t.Error("nothing has spans")
	}
}

func TestBudgetKeepsTheOrderOfSteps(t *testing.T) {
	b := newBudget()
	for _, ms := range []time.Duration{30, 10, 20} {
		b.add("create to echo", 0, ms*time.Millisecond)
		b.add("  create", ms*time.Millisecond/4, ms*time.Millisecond/2)
	}
	var out strings.Builder
	if err := b.write(&out, "the host"); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	want := []string{"create to echo 3 0.00 10.00 20.00 30.00 30.00 ms 100 %", "create 3 5.00 5.00 10.00 15.00 15.00 ms 50 %"}
	for i, w := range want {
		if got := strings.Join(strings.Fields(lines[3+i]), " "); got != w {
			t.Errorf("line %d: got %q, want %q", i, got, w)
		}
	}
}

func TestTraceOptions(t *testing.T) {
	for _, o := range []TraceOptions{{Runs: 0}, {Runs: 1, Cold: true, Running: true}} {
		if err := o.check(); hearth.KindOf(err) != hearth.InvalidArgument {
			t.Errorf("%+v: got %v", o, err)
		}
	}
}

func TestPlotOptions(t *testing.T) {
	good := PlotOptions{Out: t.TempDir(), Runs: 1, Sandboxes: 1}
	if err := good.check(); err != nil {
		t.Error(err)
	}
	for _, change := range []func(*PlotOptions){
		func(o *PlotOptions) { o.Runs = 0 },
		func(o *PlotOptions) { o.Sandboxes = maxSandboxes + 1 },
		func(o *PlotOptions) { o.Out += "/none" },
	} {
		o := good
		change(&o)
		if err := o.check(); hearth.KindOf(err) != hearth.InvalidArgument {
			t.Errorf("%+v: got %v", o, err)
		}
	}
}
