package figure

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPercentile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(i + 1)
	}
	for _, tc := range []struct {
		name   string
		sorted []float64
		p      float64
		want   float64
	}{
		{"one sample is all of them", []float64{7}, 99, 7},
		{"median of two is the lower", []float64{1, 2}, 50, 1},
		{"median of three", []float64{1, 2, 3}, 50, 2},
		{"95 of a hundred", hundred, 95, 95},
		{"99 of a hundred", hundred, 99, 99},
		{"99 of ten is the worst", hundred[:10], 99, 10},
		{"0 is the least", hundred, 0, 1},
	} {
		if got := percentile(tc.sorted, tc.p); got != tc.want {
			t.Errorf("%s: got %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestFigureSummarizesUnsortedSamples(t *testing.T) {
	s := Milliseconds("x")
	s.values = []float64{30, 10, 20}
	want := Figure{Name: "x", Runs: 3, Min: 10, P50: 20, P95: 30, P99: 30, Unit: "ms", Reference: []Figure{}}
	if diff := cmp.Diff(want, s.Figure()); diff != "" {
		t.Error(diff)
	}
	if s.values[0] != 30 {
		t.Error("the samples were put in another order")
	}
}

func TestVerdicts(t *testing.T) {
	ours := Of("ours", "ms", []float64{10, 20, 90})
	ref := Of("reference", "ms", []float64{40})
	gone := Skipped("", "reference", "not installed")
	for _, tc := range []struct {
		name    string
		figure  Figure
		target  Target
		refs    []Figure
		want    string
		wantRef float64
	}{
		{"median and worst case within", ours, Target{P50: 20, P99: 100}, nil, "met", 0},
		{"median beyond", ours, Target{P50: 19}, nil, "MISSED", 0},
		{"worst case beyond", ours, Target{P50: 20, P99: 89}, nil, "MISSED", 0},
		{"ratio within", ours, Target{Ratio: 0.5}, []Figure{ref, gone}, "met", 0.5},
		{"ratio beyond", ours, Target{Ratio: 0.4}, []Figure{ref}, "MISSED", 0.5},
		{"nothing to compare with", ours, Target{Ratio: 0.4}, []Figure{gone}, "", 0},
		{"only the first reference counts", ours, Target{Ratio: 0.4}, []Figure{gone, ref}, "", 0},
		{"nothing measured", Of("ours", "ms", nil), Target{P50: 1}, []Figure{ref}, "", 0},
	} {
		f := tc.figure.Against("1", tc.target, tc.refs...)
		if f.verdict() != tc.want || math.Abs(f.Ratio-tc.wantRef) > 1e-9 {
			t.Errorf("%s: got %q and ratio %v, want %q and %v", tc.name, f.verdict(), f.Ratio, tc.want, tc.wantRef)
		}
	}
}

func TestJSONHasEveryKey(t *testing.T) {
	var out strings.Builder
	list := []Figure{
		Of("a", "ms", []float64{1}).Against("1", Target{P50: 2}, Of("b", "ms", []float64{4})),
		Skipped("2", "c", "node is not installed"),
	}
	if err := WriteJSON(&out, list); err != nil {
		t.Fatal(err)
	}
	var got []map[string]any
	if err := json.Unmarshal([]byte(out.String()), &got); err != nil {
		t.Fatal(err)
	}
	for i, f := range got {
		for _, key := range []string{"row", "name", "runs", "min", "p50", "p95", "p99", "unit", "reference"} {
			if _, ok := f[key]; !ok {
				t.Errorf("figure %d has no %q", i, key)
			}
		}
		if _, ok := f["reference"].([]any); !ok {
			t.Errorf("figure %d: reference is %T, want a list", i, f["reference"])
		}
	}
	if got[0]["met"] != true || got[0]["ratio"] != 0.25 || got[1]["skipped"] != "node is not installed" {
		t.Errorf("got %v", got)
	}
}

func TestNoFiguresAreAnEmptyList(t *testing.T) {
	var out strings.Builder
	if err := WriteJSON(&out, nil); err != nil || strings.TrimSpace(out.String()) != "[]" {
		t.Errorf("got %q, %v", out.String(), err)
	}
}

func TestTable(t *testing.T) {
	var out strings.Builder
	f := Of("create", "ms", []float64{10, 20, 30}).Against("1", Target{P50: 25, P99: 100},
		Of("runc run true", "ms", []float64{40}), Skipped("", "other", "not installed"))
	f.Note = "3 of 3 creates were served by the pool"
	if err := WriteTable(&out, "the host", []Figure{f, Skipped("2", "SDK", "node is not installed")}); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"the host", "",
		"ROW WHAT RUNS MIN P50 P95 P99 UNIT RATIO TARGET VERDICT",
		"1 create 3 10.0 20.0 30.0 30.0 ms p50 <= 25 ms, p99 <= 100 ms met",
		"beside it: runc run true 1 40.0 40.0 40.0 40.0 ms 0.50x",
		"beside it: other - - - - - skipped",
		"2 SDK - - - - - skipped", "",
		"row 1, create: 3 of 3 creates were served by the pool",
		"row 1, other: skipped: not installed",
		"row 2, SDK: skipped: node is not installed", "",
	}
	var got []string
	for l := range strings.Lines(out.String()) {
		got = append(got, strings.Join(strings.Fields(l), " "))
	}
	if diff := cmp.Diff(want, append(got, "")); diff != "" {
		t.Error(diff)
	}
}
