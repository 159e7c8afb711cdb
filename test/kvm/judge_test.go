package main

import (
	"strings"
	"testing"
)

func TestJudge(t *testing.T) {
	whole := []string{
		"[    0.1] Linux\r", "HEARTH-KVM begin a\r", "=== RUN   TestX", "--- PASS: TestX (0.1s)", "    --- SKIP: TestY/z (0s)", "PASS", "HEARTH-KVM end a ok",
		"[ 3.0] noise HEARTH-KVM begin b", "--- PASS: TestX (0.1s)", "HEARTH-KVM end b ok", "HEARTH-KVM done",
	}
	with := func(from, to string) []string {
		var out []string
		for _, l := range whole {
			if l = strings.ReplaceAll(l, from, to); l != "" {
				out = append(out, l)
			}
		}
		return out
	}
	for name, test := range map[string]struct {
		lines []string
		want  string // in the error; empty: no error
	}{
		"all is well":        {whole, ""},
		"nothing":            {nil, "suite a did not run"},
		"a failed":           {with("end a ok", "end a failed exit status 1"), "suite a failed exit status 1"},
		"b never ran":        {whole[:7], "suite b did not run"},
		"crash in b":         {whole[:9], "suite b did not end"},
		"end is missing":     {with("HEARTH-KVM done", ""), "its last words:\n\t[    0.1] Linux"},
		"no test passed":     {with("--- PASS", "--- SKIP"), "suite a passed without a test"},
		"not the suite's ok": {with("HEARTH-KVM end a ok", "end a ok"), "suite a did not run"},
	} {
		j := newJudge([]string{"a", "b"})
		for _, l := range test.lines {
			j.hear(l)
		}
		err := j.verdict()
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// The verdicts of tests within a test come after all of them, the reasons before.
func TestJudgeKnowsWhoSaidWhat(t *testing.T) {
	j := newJudge([]string{"a"})
	for _, l := range []string{"HEARTH-KVM begin a", "=== RUN   TestX", "=== RUN   TestX/one", "    x_test.go:1: too slow", "=== RUN   TestX/two", "    x_test.go:2: no tools",
		"=== RUN   TestX/three", "--- PASS: TestX (1s)", "    --- SKIP: TestX/one (0s)", "    --- SKIP: TestX/two (0s)", "    --- PASS: TestX/three (1s)", "HEARTH-KVM end a ok"} {
		j.hear(l)
	}
	if got, want := strings.Join(j.skipped, "|"), "a: TestX/one: x_test.go:1: too slow|a: TestX/two: x_test.go:2: no tools"; got != want {
		t.Errorf("skipped %q, want %q", got, want)
	}
}

func TestJudgeShowsWhatMatters(t *testing.T) {
	j := newJudge([]string{"a"})
	var shown []string
	for _, l := range []string{"kernel", "HEARTH-KVM begin a", "=== RUN   TestX", "=== PAUSE TestX", "    x_test.go:1: no tools", "--- SKIP: TestX (0s)", "", "HEARTH-KVM end a ok", "HEARTH-KVM done"} {
		if text, show := j.hear(l); show {
			shown = append(shown, text)
		}
	}
	const want = "==> a|=== RUN   TestX|    x_test.go:1: no tools|--- SKIP: TestX (0s)|<== a: ok, 0 passed"
	if got := strings.Join(shown, "|"); got != want {
		t.Errorf("shown %q, want %q", got, want)
	}
	const skipped = "a: TestX: x_test.go:1: no tools"
	if len(j.skipped) != 1 || j.skipped[0] != skipped {
		t.Errorf("skipped %q, want %q", j.skipped, skipped)
	}
}

// Only what failed for the panics of guests' kernels alone is run once more.
func TestJudgeKnowsPanics(t *testing.T) {
	const panics = `    x_test.go:1: its console says "Kernel panic - not syncing: Fatal exception"; the end`
	verdicts := []string{"--- FAIL: TestX (1s)", "    --- PASS: TestX/heat (1s)", "    --- FAIL: TestX/one (0s)", "    --- FAIL: TestX/two (0s)"}
	whole := func(one, two string) []string {
		lines := []string{"HEARTH-KVM begin a", "=== RUN   TestX", "=== RUN   TestX/heat", "=== RUN   TestX/one", one, "=== RUN   TestX/two", two}
		return append(append(lines, verdicts...), "FAIL", "HEARTH-KVM end a failed: exit status 1 after 2 s",
			"HEARTH-KVM begin b", "--- PASS: TestY (1s)", "HEARTH-KVM end b ok", "HEARTH-KVM done")
	}
	both := whole(panics, panics)
	for name, test := range map[string]struct {
		lines []string
		want  string
	}{
		"both panicked":     {both, "a ^TestX$/^(heat|one|two)$"},
		"one did not":       {whole(panics, "    x_test.go:2: wrong"), " "},
		"all is well":       {[]string{"HEARTH-KVM begin a", "--- PASS: TestX (1s)", "HEARTH-KVM end a ok", "HEARTH-KVM begin b", "HEARTH-KVM end b ok", "HEARTH-KVM done"}, " "},
		"the host crashed":  {both[:len(both)-2], " "},
		"it has no end":     {both[:len(both)-1], " "},
		"no case failed":    {[]string{"HEARTH-KVM begin a", "--- FAIL: TestX (1s)", "HEARTH-KVM end a failed: exit status 1", "HEARTH-KVM begin b", "HEARTH-KVM end b ok", "HEARTH-KVM done"}, " "},
		"another suite too": {append(both[:len(both)-3:len(both)-3], "--- FAIL: TestY (1s)", "HEARTH-KVM end b failed: exit status 1", "HEARTH-KVM done"), " "},
	} {
		j := newJudge([]string{"a", "b"})
		for _, l := range test.lines {
			j.hear(l)
		}
		if suite, cases := j.panicked(); suite+" "+cases != test.want {
			t.Errorf("%s: %q of %q, want %q", name, cases, suite, test.want)
		}
	}
}
