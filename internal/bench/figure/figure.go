// Package figure sums up measurements: percentiles of what was measured, the
// references that were measured beside it, and whether a target was met.
package figure

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Figure is what was measured of one thing.
type Figure struct {
	Row  string  `json:"row"` // number of the target; empty in a reference
	Name string  `json:"name"`
	Runs int     `json:"runs"`
	Min  float64 `json:"min"`
	P50  float64 `json:"p50"`
	P95  float64 `json:"p95"`
	P99  float64 `json:"p99"`
	Unit string  `json:"unit"`

	// Reference is what was measured beside it; the first one is what Ratio
	// divides by.
	Reference []Figure `json:"reference"`
	Ratio     float64  `json:"ratio,omitempty"` // of the medians
	Target    string   `json:"target,omitempty"`
	Met       *bool    `json:"met,omitempty"`
	Note      string   `json:"note,omitempty"`
	Skipped   string   `json:"skipped,omitempty"` // why there are no figures
}

// Skipped is the figure of what could not be measured, with the reason.
func Skipped(row, name, why string) Figure {
	return Figure{Row: row, Name: name, Reference: []Figure{}, Skipped: why}
}

// Of summarizes samples.
func Of(name, unit string, samples []float64) Figure {
	f := Figure{Name: name, Unit: unit, Runs: len(samples), Reference: []Figure{}}
	if len(samples) == 0 {
		f.Skipped = "no run ended"
		return f
	}
	sorted := slices.Sorted(slices.Values(samples))
	f.Min, f.P50, f.P95, f.P99 = sorted[0], percentile(sorted, 50), percentile(sorted, 95), percentile(sorted, 99)
	return f
}

// percentile is the smallest sample that p percent of the sorted samples do not
// exceed (nearest rank): always something that was measured.
func percentile(sorted []float64, p float64) float64 {
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// Target is what a row has to reach; zero fields ask for nothing.
type Target struct {
	P50, P99 float64 // at most, in the figure's unit
	Least    float64 // the median, at least
	Ratio    float64 // of the medians, to the first reference, at most
	Times    float64 // the same ratio, at least
}

func (t Target) text(unit string) string {
	var parts []string
	for _, p := range []struct {
		limit  float64
		format string
		args   []any
	}{
		{t.P50, "p50 <= %g %s", []any{t.P50, unit}},
		{t.P99, "p99 <= %g %s", []any{t.P99, unit}},
		{t.Least, ">= %g %s", []any{t.Least, unit}},
		{t.Ratio, "<= %gx", []any{t.Ratio}},
		{t.Times, ">= %gx", []any{t.Times}},
	} {
		if p.limit > 0 {
			parts = append(parts, fmt.Sprintf(p.format, p.args...))
		}
	}
	return strings.Join(parts, ", ")
}

// met reports whether a figure with its ratio reaches the target.
func (t Target) met(f Figure) bool {
	most := func(limit, got float64) bool { return limit == 0 || got <= limit }
	least := func(limit, got float64) bool { return limit == 0 || got >= limit }
	return most(t.P50, f.P50) && most(t.P99, f.P99) && least(t.Least, f.P50) && most(t.Ratio, f.Ratio) && least(t.Times, f.Ratio)
}

// Against completes a figure of row with its references and the verdict.
func (f Figure) Against(row string, t Target, refs ...Figure) Figure {
	f.Row, f.Target = row, t.text(f.Unit)
	f.Reference = append(f.Reference, refs...)
	if len(refs) > 0 && refs[0].P50 > 0 {
		f.Ratio = f.P50 / refs[0].P50
	}
	if f.Skipped != "" || f.Target == "" || (t.Ratio > 0 || t.Times > 0) && f.Ratio == 0 {
		return f
	}
	met := t.met(f)
	f.Met = &met
	return f
}

func (f Figure) verdict() string {
	switch {
	case f.Met == nil:
		return ""
	case *f.Met:
		return "met"
	}
	return "MISSED"
}

// Samples collects one figure's measurements. Its methods are not safe for
// concurrent use.
type Samples struct {
	name, unit string
	values     []float64
	skipped    string
	note       string
}

// Milliseconds, Mebibytes and In collect samples of a thing in a unit.
func Milliseconds(name string) *Samples { return In("ms", name) }

// Mebibytes is In for sizes.
func Mebibytes(name string) *Samples { return In("MiB", name) }

// In collects samples of any unit.
func In(unit, name string) *Samples { return &Samples{name: name, unit: unit} }

// Add takes one sample, in the figure's unit.
func (s *Samples) Add(v float64) { s.values = append(s.values, v) }

// Took takes a duration for a figure in ms.
func (s *Samples) Took(d time.Duration) { s.values = append(s.values, float64(d.Microseconds())/1000) }

// Bytes takes a size for a figure in MiB.
func (s *Samples) Bytes(n int64) { s.values = append(s.values, float64(n)/(1<<20)) }

// Skip leaves the figure out, with the reason.
func (s *Samples) Skip(why string) { s.skipped = why }

// Explain says what stands below the table.
func (s *Samples) Explain(note string) { s.note = note }

// Skips reports whether the figure is left out.
func (s *Samples) Skips() bool { return s.skipped != "" }

// Figure sums up.
func (s *Samples) Figure() Figure {
	f := Of(s.name, s.unit, s.values)
	f.Note = s.note
	if s.skipped != "" {
		f.Skipped = s.skipped
	}
	return f
}

// WriteJSON writes the list as JSON.
func WriteJSON(w io.Writer, list []Figure) error {
	if list == nil {
		list = []Figure{}
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(list)
}

// WriteTable prints every figure with its references below it.
func WriteTable(w io.Writer, host string, list []Figure) error {
	if _, err := fmt.Fprintf(w, "%s\n\n", host); err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ROW\tWHAT\tRUNS\tMIN\tP50\tP95\tP99\tUNIT\tRATIO\tTARGET\tVERDICT")
	for _, f := range list {
		line(t, f.Row, f, "")
		for i, ref := range f.Reference {
			ratio := ""
			if i == 0 && f.Ratio > 0 {
				ratio = fmt.Sprintf("%.2fx", f.Ratio)
			}
			line(t, "", ref, ratio)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, f := range list {
		for _, n := range append([]Figure{f}, f.Reference...) {
			if text := n.remark(); text != "" {
				if _, err := fmt.Fprintf(w, "\nrow %s, %s: %s", f.Row, n.Name, text); err != nil {
					return err
				}
			}
		}
	}
	_, err := fmt.Fprintln(w)
	return err
}

// remark is what stands below the table.
func (f Figure) remark() string {
	if f.Skipped != "" {
		return "skipped: " + f.Skipped
	}
	return f.Note
}

// line prints a figure. A reference, which has no row, shows the ratio to it.
func line(w io.Writer, row string, f Figure, ratio string) {
	name := f.Name
	if row == "" {
		name = "  beside it: " + name
	}
	if f.Skipped != "" {
		fmt.Fprintf(w, "%s\t%s\t-\t-\t-\t-\t-\t\t\t%s\tskipped\n", row, name, f.Target)
		return
	}
	fmt.Fprintf(w, "%s\t%s\t%d\t%.1f\t%.1f\t%.1f\t%.1f\t%s\t%s\t%s\t%s\n", row, name, f.Runs, f.Min, f.P50, f.P95, f.P99, f.Unit, ratio, f.Target, f.verdict())
}
