package bench

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
	Unit string  `json:"unit"` // "ms" or "MiB"

	// Reference is what was measured beside it; the first one is what Ratio
	// divides by.
	Reference []Figure `json:"reference"`
	Ratio     float64  `json:"ratio,omitempty"` // of the medians
	Target    string   `json:"target,omitempty"`
	Met       *bool    `json:"met,omitempty"`
	Note      string   `json:"note,omitempty"`
	Skipped   string   `json:"skipped,omitempty"` // why there are no figures
}

func skipped(row, name, why string) Figure {
	return Figure{Row: row, Name: name, Reference: []Figure{}, Skipped: why}
}

// figure summarizes samples.
func figure(name, unit string, samples []float64) Figure {
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

// target is what a row has to reach; zero fields ask for nothing.
type target struct {
	p50, p99 float64 // at most, in the figure's unit
	ratio    float64 // of the medians, to the first reference, at most
}

func (t target) String(unit string) string {
	var parts []string
	if t.p50 > 0 {
		parts = append(parts, fmt.Sprintf("p50 <= %g %s", t.p50, unit))
	}
	if t.p99 > 0 {
		parts = append(parts, fmt.Sprintf("p99 <= %g %s", t.p99, unit))
	}
	if t.ratio > 0 {
		parts = append(parts, fmt.Sprintf("<= %gx", t.ratio))
	}
	return strings.Join(parts, ", ")
}

// against completes a figure of row with its references and the verdict.
func (f Figure) against(row string, t target, refs ...Figure) Figure {
	f.Row, f.Target = row, t.String(f.Unit)
	f.Reference = append(f.Reference, refs...)
	if len(refs) > 0 && refs[0].P50 > 0 {
		f.Ratio = f.P50 / refs[0].P50
	}
	if f.Skipped != "" || t.ratio > 0 && f.Ratio == 0 {
		return f
	}
	met := (t.p50 == 0 || f.P50 <= t.p50) && (t.p99 == 0 || f.P99 <= t.p99) && (t.ratio == 0 || f.Ratio <= t.ratio)
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

// samples collects one figure's measurements.
type samples struct {
	name, unit string
	values     []float64
	skipped    string
}

func milliseconds(name string) *samples { return &samples{name: name, unit: "ms"} }
func mebibytes(name string) *samples    { return &samples{name: name, unit: "MiB"} }

func (s *samples) took(d time.Duration) { s.values = append(s.values, float64(d.Microseconds())/1000) }
func (s *samples) bytes(n int64)        { s.values = append(s.values, float64(n)/(1<<20)) }

// skip leaves the figure out, with the reason.
func (s *samples) skip(why string) { s.skipped = why }

func (s *samples) figure() Figure {
	f := figure(s.name, s.unit, s.values)
	if s.skipped != "" {
		f.Skipped = s.skipped
	}
	return f
}

func writeJSON(w io.Writer, list []Figure) error {
	if list == nil {
		list = []Figure{}
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(list)
}

// writeTable prints every figure with its references below it.
func writeTable(w io.Writer, host string, list []Figure) error {
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
