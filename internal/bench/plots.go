package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"hearth/client"
	"hearth/internal/bench/figure"
	"hearth/internal/bench/gauge"
	"hearth/internal/bench/plot"
	"hearth/internal/config"
	"hearth/internal/hearth"
)

// PlotOptions are the flags of the command that draws pictures.
type PlotOptions struct {
	Out       string        `default:"." placeholder:"DIR" help:"Directory of the pictures, which are named burst.png and memory.png."`
	Runs      int           `default:"3" help:"Bursts of every size."`
	Sandboxes int           `default:"60" help:"Sandboxes of each template in the picture of memory, if there is memory for them."`
	Limit     time.Duration `default:"20m" help:"Time after which no further run begins."`
}

func (o PlotOptions) check() error {
	switch {
	case o.Runs < 1 || o.Runs > maxRuns:
		return hearth.Errorf(hearth.InvalidArgument, "runs: %d is not within 1 to %d", o.Runs, maxRuns)
	case o.Sandboxes < 1 || o.Sandboxes > maxSandboxes:
		return hearth.Errorf(hearth.InvalidArgument, "sandboxes: %d is not within 1 to %d", o.Sandboxes, maxSandboxes)
	}
	if info, err := os.Stat(o.Out); err != nil || !info.IsDir() {
		return hearth.Wrap(hearth.InvalidArgument, err, "out: %q is not a directory", o.Out)
	}
	return nil
}

// Plots measures how long bursts of creates take and what sandboxes hold while
// idle, on a server that is started for it, and draws both.
func Plots(ctx context.Context, cfg *config.Config, o PlotOptions, progress io.Writer) (err error) {
	if err := o.check(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.Limit, hearth.Errorf(hearth.DeadlineExceeded, "the limit of %s is over", o.Limit))
	defer cancel()
	r := &run{cfg: cfg, opts: Options{Runs: o.Runs, Sandboxes: o.Sandboxes}, progress: progress}
	if r.dir, err = os.MkdirTemp("", "hearth-bench-"); err != nil {
		return hearth.Wrap(hearth.PermissionDenied, err, "no temporary directory can be made")
	}
	defer func() {
		err = errors.Join(err, r.close(context.WithoutCancel(ctx)), os.RemoveAll(r.dir))
	}()
	host := gauge.Host()
	for _, p := range []struct {
		file string
		draw func(context.Context) (plot.Chart, error)
	}{{"memory.png", r.memoryChart}, {"burst.png", r.burstChart}} {
		chart, err := p.draw(ctx)
		if err != nil {
			return err
		}
		chart.Note = host
		if err := save(filepath.Join(o.Out, p.file), chart); err != nil {
			return err
		}
		r.say("wrote %s", filepath.Join(o.Out, p.file))
	}
	return nil
}

func save(path string, c plot.Chart) error {
	f, err := os.Create(path)
	if err != nil {
		return hearth.Wrap(hearth.PermissionDenied, err, "%s cannot be written", path)
	}
	return errors.Join(c.Write(f), f.Close())
}

// burstChart shows the time until all sandboxes of a burst have answered, by the
// size of the burst.
func (r *run) burstChart(ctx context.Context) (plot.Chart, error) {
	chart := plot.Chart{
		Title: fmt.Sprintf("Creates at once, each used: median of %d bursts", r.opts.Runs),
		X:     "sandboxes in the burst", Y: "ms until all have answered echo",
	}
	for _, way := range []struct {
		name string
		kind pool
	}{{fmt.Sprintf("pool of %d, full", burstSize), poolLarge}, {"pool empty", poolEmpty}} {
		if err := r.serve(ctx, way.kind); err != nil {
			return chart, err
		}
		line := plot.Line{Name: way.name}
		for _, n := range []int{1, 2, 5, 10, 20, 40} {
			r.say("bursts of %d, %s", n, way.name)
			s := figure.Milliseconds("")
			err := r.times(ctx, r.opts.Runs, func(ctx context.Context, _ int) error {
				r.server.settle(ctx)
				took, _, err := r.burst(ctx, n)
				s.Took(took)
				return err
			})
			if err != nil {
				return chart, err
			}
			line.Points = append(line.Points, plot.Point{X: float64(n), Y: s.Figure().P50})
		}
		chart.Lines = append(chart.Lines, line)
	}
	return chart, nil
}

// memoryChart shows the memory of all sandboxes of a template together, by
// their number: the cgroups', and what the host has lost of its own.
func (r *run) memoryChart(ctx context.Context) (plot.Chart, error) {
	chart := plot.Chart{
		Title: "Memory of idle sandboxes together", X: "sandboxes alive", Y: "MiB",
	}
	if err := r.serve(ctx, poolFull); err != nil {
		return chart, err
	}
	for _, template := range []string{baseTemplate, codeTemplate} {
		groups := plot.Line{Name: template + ", by their cgroups"}
		host := plot.Line{Name: template + ", by what the host lacks"}
		r.say("memory of %s", template)
		var machines []string
		r.server.settle(ctx)
		before, n := gauge.Memory("MemAvailable"), 0
		measure := func(ctx context.Context, sb *client.Sandbox) error {
			m, err := r.server.of(sb.ID)
			if err != nil {
				return err
			}
			machines = append(machines, m.Handle.ID)
			if n++; n%5 != 0 && n != 1 {
				return nil
			}
			r.server.settle(ctx)
			var sum int64
			for _, id := range machines {
				held, err := gauge.Held(filepath.Join(r.server.cfg.Node.Cgroup, id))
				if err != nil {
					return err
				}
				sum += held
			}
			groups.Points = append(groups.Points, plot.Point{X: float64(n), Y: float64(sum) / (1 << 20)})
			host.Points = append(host.Points, plot.Point{X: float64(n), Y: max(float64(before-gauge.Memory("MemAvailable"))/(1<<20), 0)})
			return nil
		}
		if err := r.alive(ctx, template, r.opts.Sandboxes, measure, func([]*client.Sandbox, string) error { return nil }); err != nil {
			return chart, err
		}
		chart.Lines = append(chart.Lines, groups, host)
	}
	return chart, nil
}
