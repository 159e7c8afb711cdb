package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"hearth/client"
)

type snapshotCmd struct {
	List   snapshotListCmd   `cmd:"" help:"List snapshots."`
	Delete snapshotDeleteCmd `cmd:"" help:"Delete snapshots; what was made from them lives on."`
	Diff   snapshotDiffCmd   `cmd:"" help:"Show which files were added, changed and removed between two snapshots or steps."`
	Export snapshotExportCmd `cmd:"" help:"Write a snapshot to a file, with all that it needs. Its memory holds secrets."`
	Import snapshotImportCmd `cmd:"" help:"Make a snapshot of an exported file that you trust."`
}

type snapshotListCmd struct {
	dataFlag
	Sandbox string `help:"Only those of this sandbox."`
}

// Run prints a table, newest first. What create takes is the name of a snapshot that has one.
func (s *snapshotListCmd) Run(in *invocation) error {
	c, err := s.server(in)
	if err != nil {
		return err
	}
	list, err := c.Templates(in.ctx)
	if err != nil {
		return remote(err)
	}
	names := map[string]string{}
	for _, t := range list {
		names[t.ID] = strings.Join(t.Aliases, ",")
	}
	w := tabwriter.NewWriter(in.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SNAPSHOT\tSANDBOX\tTEMPLATE\tTAKEN\tSIZE")
	for snap, err := range c.Snapshots(in.ctx, s.Sandbox) {
		if err != nil {
			return remote(err)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", snap.ID, cmp.Or(snap.Sandbox, "-"), cmp.Or(names[snap.Template], snap.Template, "-"),
			snap.CreatedAt.Local().Format(time.DateTime), size(snap.Bytes))
	}
	return w.Flush()
}

type snapshotDeleteCmd struct {
	dataFlag
	IDs []string `arg:"" name:"id" help:"Snapshots, by ID or name."`
}

// Run deletes every snapshot it is given, and fails if one was not there.
func (s *snapshotDeleteCmd) Run(in *invocation) error {
	c, err := s.server(in)
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range s.IDs {
		errs = append(errs, remote(c.DeleteSnapshot(in.ctx, id)))
	}
	return errors.Join(errs...)
}

type sandboxSnapshotCmd struct {
	dataFlag
	ID   string `arg:"" help:"Sandbox."`
	Name string `help:"Name, name[:tag]; taken from the snapshot that has it."`
	Step *int64 `help:"Keep this step of its history instead of what it is now."`
}

// Run prints the snapshot's ID.
func (s *sandboxSnapshotCmd) Run(in *invocation) error {
	if s.Step != nil && *s.Step < 1 {
		return noStep(*s.Step)
	}
	c, err := s.server(in)
	if err != nil {
		return err
	}
	var snap *client.Snapshot
	if s.Step != nil {
		snap, err = c.KeepStep(in.ctx, s.ID, *s.Step, s.Name)
	} else {
		snap, err = c.Snapshot(in.ctx, s.ID, s.Name)
	}
	if err != nil {
		return remote(err)
	}
	_, err = fmt.Fprintln(in.out, snap.ID)
	return err
}

type sandboxForkCmd struct {
	dataFlag
	ID      string        `arg:"" help:"Sandbox, running or paused."`
	Count   int           `default:"1" help:"How many."`
	Timeout time.Duration `default:"5m" help:"Life of each."`
}

// Run prints the IDs of those that started, and fails if one did not.
func (s *sandboxForkCmd) Run(in *invocation) error {
	if err := lifetime(s.Timeout); err != nil {
		return err
	}
	c, err := s.server(in)
	if err != nil {
		return err
	}
	forks, err := c.Fork(in.ctx, s.ID, s.Count, s.Timeout)
	if err != nil {
		return remote(err)
	}
	var errs []error
	for _, f := range forks {
		if f.Err != nil {
			errs = append(errs, remote(f.Err))
		} else if _, err := fmt.Fprintln(in.out, f.Sandbox.ID); err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}

type sandboxRollbackCmd struct {
	dataFlag
	ID       string `arg:"" help:"Sandbox."`
	Snapshot string `arg:"" name:"step" help:"Number of a step of its history; or a snapshot of it, or of what it came from, by ID or name."`
}

// Run returns when the sandbox is what the snapshot was.
func (s *sandboxRollbackCmd) Run(in *invocation) error {
	step, nerr := strconv.ParseInt(s.Snapshot, 10, 64)
	if nerr == nil && step < 1 {
		return noStep(step)
	}
	c, err := s.server(in)
	if err != nil {
		return err
	}
	if nerr == nil {
		_, err = c.RollbackTo(in.ctx, s.ID, step)
	} else {
		_, err = c.Rollback(in.ctx, s.ID, s.Snapshot)
	}
	return remote(err)
}

type sandboxTreeCmd struct {
	dataFlag
	ID string `arg:"" help:"Sandbox."`
}

// Run draws the tree, one line per snapshot or sandbox: of a snapshot what it adds on
// disk to those before it, and how big it is with them.
func (s *sandboxTreeCmd) Run(in *invocation) error {
	c, err := s.server(in)
	if err != nil {
		return err
	}
	t, err := c.Tree(in.ctx, s.ID)
	if err != nil {
		return remote(err)
	}
	w := tabwriter.NewWriter(in.out, 0, 0, 2, ' ', 0)
	drawTree(w, t, "", 0)
	return w.Flush()
}

// weight says what a snapshot adds on disk, and what a sandbox that starts from it has.
func weight(s client.TreeSnapshot) string {
	if s.AddedBytes == nil || s.WholeBytes == nil {
		return ""
	}
	return fmt.Sprintf("+%s of %s", size(*s.AddedBytes), size(*s.WholeBytes))
}

// drawTree writes what comes after a snapshot, indented.
func drawTree(w io.Writer, t *client.Tree, parent string, depth int) {
	indent := strings.Repeat("  ", depth)
	known := map[string]bool{}
	for _, s := range t.Snapshots {
		known[s.ID] = true
	}
	for _, s := range t.Snapshots {
		if s.Parent != parent && (parent != "" || known[s.Parent]) {
			continue
		}
		what := s.Kind
		if !s.Usable {
			what = "deleted"
		}
		if s.Step > 0 {
			what += fmt.Sprintf(" (step %d)", s.Step)
		}
		fmt.Fprintf(w, "%s%s\t%s\t%s\t%s\t%s\tof %s\t%s\n", indent, s.ID, what, s.Name, s.CreatedAt.Local().Format(time.DateTime), weight(s), s.Sandbox, s.Label)
		drawTree(w, t, s.ID, depth+1)
	}
	for _, b := range t.Sandboxes {
		if b.Head == parent || parent == "" && !known[b.Head] {
			fmt.Fprintf(w, "%s%s\t%s\t\t\t\t\t\n", indent, b.ID, b.State)
		}
	}
}
