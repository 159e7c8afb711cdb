package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
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
	steps := &budget{by: map[string]*figure.Samples{}}
	err = r.times(ctx, o.Runs+warmups, func(ctx context.Context, i int) error {
		into := steps
		if i < warmups {
			into = &budget{by: map[string]*figure.Samples{}}
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
	into.add("create to echo", time.Since(began))
	into.add("  create", created.Sub(began))
	for _, t := range nested(sb.Timing) {
		into.add("    "+t.Name, t.Took)
	}
	into.add("  echo", time.Since(created))
	return nil
}

// nested orders the server's spans as they lie within each other and indents
// them: the API's, then the control plane's, then the node's within its call.
func nested(spans []client.Timing) []client.Timing {
	var list []client.Timing
	pick := func(indent string, is func(string) bool) {
		for _, s := range spans {
			if is(s.Name) {
				list = append(list, client.Timing{Name: indent + s.Name, Took: s.Took})
			}
		}
	}
	begins := func(prefix string) func(string) bool {
		return func(name string) bool { return strings.HasPrefix(name, prefix) }
	}
	pick("", begins("api"))
	pick("  ", begins("control"))
	pick("  ", begins("node"))
	pick("    ", begins("agent"))
	return list
}

// budget is samples by step, in the order in which steps were first seen.
type budget struct {
	order []string
	by    map[string]*figure.Samples
}

func (b *budget) add(step string, took time.Duration) {
	s := b.by[step]
	if s == nil {
		s = figure.Milliseconds(step)
		b.by[step] = s
		b.order = append(b.order, step)
	}
	s.Took(took)
}

// write prints the table. A share is of the medians.
func (b *budget) write(out io.Writer, host string) error {
	if len(b.order) == 0 {
		return nil
	}
	if _, err := fmt.Fprintf(out, "%s\n\n", host); err != nil {
		return err
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "STEP\tRUNS\tMIN\tP50\tP95\tP99\tUNIT\tSHARE")
	whole := b.by[b.order[0]].Figure().P50
	for _, step := range b.order {
		f := b.by[step].Figure()
		fmt.Fprintf(t, "%s\t%d\t%.2f\t%.2f\t%.2f\t%.2f\tms\t%.0f %%\n", step, f.Runs, f.Min, f.P50, f.P95, f.P99, 100*f.P50/whole)
	}
	return t.Flush()
}
