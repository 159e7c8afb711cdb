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
		lines  []string
		want   string // in the error; empty: no error
		failed string
	}{
		"all is well":        {whole, "", ""},
		"nothing":            {nil, "suite a did not run", "a b"},
		"a failed":           {with("end a ok", "end a failed exit status 1"), "suite a failed exit status 1", "a"},
		"b never ran":        {whole[:7], "suite b did not run", "b"},
		"crash in b":         {whole[:9], "suite b did not end", "b"},
		"end is missing":     {with("HEARTH-KVM done", ""), "its last words:\n\t[    0.1] Linux", ""},
		"no test passed":     {with("--- PASS", "--- SKIP"), "suite a passed without a test", "a b"},
		"not the suite's ok": {with("HEARTH-KVM end a ok", "end a ok"), "suite a did not run", "a"},
	} {
		j := newJudge([]string{"a", "b"})
		for _, l := range test.lines {
			j.hear(l)
		}
		err := j.verdict()
		if failed := strings.Join(j.failed(), " "); failed != test.failed {
			t.Errorf("%s: failed are %q, want %q", name, failed, test.failed)
		}
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
