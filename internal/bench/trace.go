package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"hearth/client"
	"hearth/internal/bench/figure"
	"hearth/internal/bench/gauge"
	"hearth/internal/config"
	"hearth/internal/hearth"
)

// TraceOptions are the flags of the command that prints a create's budget.
type TraceOptions struct {
	Template string        `default:"base" help:"Template of the sandboxes."`
	Runs     int           `default:"30" help:"Creates that count."`
	Cold     bool          `help:"Keep no machines ready: every create restores its own."`
	Limit    time.Duration `default:"10m" help:"Time after which no further run begins."`

	// Running is as in Options.
	Running bool `kong:"-"`
}

func (o TraceOptions) check() error {
	switch {
	case o.Runs < 1 || o.Runs > maxRuns:
		return hearth.Errorf(hearth.InvalidArgument, "runs: %d is not within 1 to %d", o.Runs, maxRuns)
	case o.Cold && o.Running:
		return hearth.Errorf(hearth.InvalidArgument, "cold: a running server keeps its pool; measure without --data")
	}
	return nil
}

// Trace measures creates and prints what each step of them costs: by the
// server's own word, and around it by the client's clock.
func Trace(ctx context.Context, cfg *config.Config, o TraceOptions, out, progress io.Writer) (err error) {
	if err := o.check(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.Limit, hearth.Errorf(hearth.DeadlineExceeded, "the limit of %s is over", o.Limit))
	defer cancel()
	r := &run{cfg: cfg, opts: Options{Runs: o.Runs, Running: o.Running}, progress: progress}
	if r.dir, err = os.MkdirTemp("", "hearth-bench-"); err != nil {
		return hearth.Wrap(hearth.PermissionDenied, err, "no temporary directory can be made")
	}
	defer func() {
		err = errors.Join(err, r.close(context.WithoutCancel(ctx)), os.RemoveAll(r.dir))
	}()
	host, kind := gauge.Host(), poolFull
	if o.Cold {
		kind = poolEmpty
	}
	if err := r.serve(ctx, kind); err != nil {
		return err
	}
	steps := newBudget()
	err = r.times(ctx, o.Runs+warmups, func(ctx context.Context, i int) error {
		into := steps
		if i < warmups {
			into = newBudget()
		}
		return r.traced(ctx, o.Template, into)
	})
	return errors.Join(err, steps.write(out, host))
}

// traced makes one sandbox, runs echo in it and adds up where the time went.
func (r *run) traced(ctx context.Context, template string, into *budget) error {
	r.server.settle(ctx)
	began := time.Now()
	sb, err := r.create(ctx, template)
	if err != nil {
		return err
	}
	defer r.kill(ctx, sb)
	created := time.Now()
	if err := echo(ctx)(sb); err != nil {
		return err
	}
	into.add("create to echo", 0, time.Since(began))
	into.add("  create", 0, created.Sub(began))
	for _, t := range nested(sb.Timing) {
		into.add("    "+t.Name, t.Start, t.Took)
	}
	into.add("  echo", created.Sub(began), time.Since(created))
	return nil
}

// nested makes a tree of the server's spans, which come in the order in which they
// ended: each is followed by what lies within it, indented, in the order of the
// starts. The server's clock is cut to microseconds.
func nested(spans []client.Timing) []client.Timing {
	within := map[int][]int{}
	for i, s := range spans {
		parent := len(spans) // the trace itself
		for j := i + 1; j < len(spans); j++ {
			if o := spans[j]; o.Start <= s.Start+time.Microsecond && o.Start+o.Took >= s.Start+s.Took-2*time.Microsecond {
				parent = j
				break
			}
		}
		within[parent] = append(within[parent], i)
	}
	var list []client.Timing
	var visit func(of int, indent string)
	visit = func(of int, indent string) {
		slices.SortStableFunc(within[of], func(i, j int) int { return cmp.Compare(spans[i].Start, spans[j].Start) })
		for _, i := range within[of] {
			s := spans[i]
			s.Name = indent + s.Name
			list = append(list, s)
			visit(i, indent+"  ")
		}
	}
	visit(len(spans), "")
	return list
}

// budget is samples by step, in the order in which steps were first seen.
type budget struct {
	order []string
	by    map[string]*step
}

// step is when one step began, by the clock of who reports it, and what it took.
type step struct{ start, took *figure.Samples }

func newBudget() *budget { return &budget{by: map[string]*step{}} }

func (b *budget) add(name string, start, took time.Duration) {
	s := b.by[name]
	if s == nil {
		s = &step{figure.Milliseconds(name), figure.Milliseconds(name)}
		b.by[name] = s
		b.order = append(b.order, name)
	}
	s.start.Took(start)
	s.took.Took(took)
}

// write prints the table. Starts are medians, and a share is of the medians.
func (b *budget) write(out io.Writer, host string) error {
	if len(b.order) == 0 {
		return nil
	}
	if _, err := fmt.Fprintf(out, "%s\n\n", host); err != nil {
		return err
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "STEP\tRUNS\tSTART\tMIN\tP50\tP95\tP99\tUNIT\tSHARE")
	whole := b.by[b.order[0]].took.Figure().P50
	for _, name := range b.order {
		f, start := b.by[name].took.Figure(), b.by[name].start.Figure()
		fmt.Fprintf(t, "%s\t%d\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\tms\t%.0f %%\n", name, f.Runs, start.P50, f.Min, f.P50, f.P95, f.P99, 100*f.P50/whole)
	}
	return t.Flush()
}
