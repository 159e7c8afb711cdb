package cli

import (
	"encoding/json"
	"fmt"
	"strconv"
	"text/tabwriter"
)

type snapshotDiffCmd struct {
	dataFlag
	From  string `arg:"" help:"Snapshot, by ID or name."`
	To    string `arg:"" help:"Another one."`
	Limit int    `default:"1000" help:"How many changes to list, at most 10000; the totals count all."`
	JSON  bool   `name:"json" help:"Print what the server answers."`
}

// Run prints a line per change, then the totals.
func (s *snapshotDiffCmd) Run(in *invocation) error {
	c, err := s.server(in)
	if err != nil {
		return err
	}
	d, err := c.Diff(in.ctx, s.From, s.To, s.Limit)
	if err != nil {
		return remote(err)
	}
	if s.JSON {
		enc := json.NewEncoder(in.out)
		enc.SetIndent("", "  ")
		return enc.Encode(d)
	}
	w := tabwriter.NewWriter(in.out, 0, 0, 2, ' ', 0)
	for _, f := range d.Changes {
		mark, bytes := "~", size(f.SizeBefore)+" -> "+size(f.Size)
		switch f.Change {
		case "added":
			mark, bytes = "+", size(f.Size)
		case "removed":
			mark, bytes = "-", size(f.SizeBefore)
		}
		if f.Kind != "file" {
			bytes = f.Kind
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", mark, bytes, shownPath(f.Path))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if d.Truncated {
		fmt.Fprintf(in.out, "... and more: these are the first %d\n", len(d.Changes))
	}
	_, err = fmt.Fprintf(in.out, "%d added (%s), %d changed (%s), %d removed (%s)\n",
		d.Added.Count, size(d.Added.Bytes), d.Changed.Count, size(d.Changed.Bytes), d.Removed.Count, size(d.Removed.Bytes))
	return err
}

// shownPath keeps what a sandbox called its files from driving the terminal.
func shownPath(p string) string {
	if q := strconv.Quote(p); q[1:len(q)-1] != p {
		return q
	}
	return p
}
