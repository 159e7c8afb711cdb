package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/alecthomas/kong"

	"hearth/internal/hearth"
)

// budget is a flag of a number of bytes that may stand alone: -1 then.
type budget int64

// Decode implements kong.MapperValue.
func (b *budget) Decode(ctx *kong.DecodeContext) error {
	if ctx.Scan.Peek().Type != kong.FlagValueToken {
		*b = -1
		return nil
	}
	text := ctx.Scan.Pop().String()
	n, err := parseSize(text)
	if err != nil {
		return hearth.Errorf(hearth.InvalidArgument, "--%s=%s must be a number of bytes, like 536870912 or 512MiB", ctx.Value.Name, text)
	}
	*b = budget(n)
	return nil
}

// IsBool lets the flag stand without a value.
func (b *budget) IsBool() bool { return true }

// units of sizes, by what they are multiplied with.
func units() map[string]int64 {
	return map[string]int64{"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
}

func parseSize(text string) (int64, error) {
	digits := strings.TrimRight(text, "BKMGTi")
	n, err := strconv.ParseInt(digits, 10, 64)
	times, known := units()[text[len(digits):]]
	if err != nil || !known || n <= 0 || n > 1<<62/times {
		return 0, hearth.Errorf(hearth.InvalidArgument, "%q is not a size", text)
	}
	return n * times, nil
}

// size writes a number of bytes for people.
func size(n int64) string {
	for unit := range strings.SplitSeq("B KiB MiB GiB", " ") {
		if n < 10<<10 {
			return fmt.Sprintf("%d %s", n, unit)
		}
		n >>= 10
	}
	return fmt.Sprintf("%d TiB", n)
}

func noStep(n int64) error {
	return hearth.Errorf(hearth.InvalidArgument, "%d is no step: steps begin with 1, and 'hearth sandbox history ID' lists them", n)
}

// misread says more of a command line that the parser refused: to a command that
// takes a step, a negative number looks like a flag.
func misread(err error) error {
	p, ok := errors.AsType[*kong.ParseError](err)
	if !ok || p.Context.Selected() == nil {
		return err
	}
	switch p.Context.Selected().Target.Interface().(type) {
	case sandboxRollbackCmd, sandboxSnapshotCmd:
		for _, arg := range p.Context.Args {
			if n, nerr := strconv.ParseInt(arg, 10, 64); nerr == nil && n < 0 {
				return noStep(n)
			}
		}
	}
	return err
}

type sandboxHistoryCmd struct {
	dataFlag
	ID   string `arg:"" help:"Sandbox."`
	JSON bool   `name:"json" help:"Print what the server answers."`
}

// Run prints a table, oldest first. The step that the sandbox is at has a star.
func (s *sandboxHistoryCmd) Run(in *invocation) error {
	c, err := s.server(in)
	if err != nil {
		return err
	}
	h, err := c.History(in.ctx, s.ID)
	if err != nil {
		return remote(err)
	}
	if s.JSON {
		enc := json.NewEncoder(in.out)
		enc.SetIndent("", "  ")
		return enc.Encode(h)
	}
	if h.MaxBytes == 0 {
		return hearth.Errorf(hearth.FailedPrecondition, "sandbox %s was created without --history", s.ID)
	}
	w := tabwriter.NewWriter(in.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "STEP\tAFTER\tTIME\tSIZE\tSNAPSHOT\tLABEL")
	for _, s := range h.Steps {
		number, after, snapshot := strconv.FormatInt(s.Number, 10), "-", s.Snapshot
		if s.Number == h.Head {
			number += "*"
		}
		if s.Parent > 0 {
			after = strconv.FormatInt(s.Parent, 10)
		}
		if s.Error != "" {
			snapshot = "not taken: " + s.Error
		}
		if s.Kept {
			snapshot += " (kept)"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", number, after, s.CreatedAt.Local().Format(time.DateTime), size(s.Bytes), snapshot, s.Label)
	}
	fmt.Fprintf(w, "%s of %s\n", size(h.Bytes), size(h.MaxBytes))
	return w.Flush()
}
