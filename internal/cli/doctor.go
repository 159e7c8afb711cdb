package cli

import (
	"encoding/json"
	"fmt"

	"hearth/internal/app"
	"hearth/internal/doctor"
	"hearth/internal/hearth"
)

type doctorCmd struct {
	dataFlag
	JSON bool `help:"Print a JSON list of {name, status, detail, remedy}."`
}

// Run prints a line per check and fails when one fails.
func (d *doctorCmd) Run(in *invocation) error {
	c, err := d.load(in)
	if err != nil {
		return err
	}
	lines := doctor.Examine(in.ctx, app.DoctorHost(c))
	if d.JSON {
		enc := json.NewEncoder(in.out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(lines); err != nil {
			return err
		}
		return summary(lines)
	}
	for _, l := range lines {
		fmt.Fprintf(in.out, "%-4s  %-16s %s\n", l.Status, l.Name, l.Detail)
		if l.Remedy != "" {
			fmt.Fprintf(in.out, "      %-16s -> %s\n", "", l.Remedy)
		}
	}
	return summary(lines)
}

func summary(lines []doctor.Line) error {
	failed := 0
	for _, l := range lines {
		if l.Status == doctor.Fail {
			failed++
		}
	}
	if failed > 0 {
		return hearth.Errorf(hearth.FailedPrecondition, "%d of %d checks failed", failed, len(lines))
	}
	return nil
}
