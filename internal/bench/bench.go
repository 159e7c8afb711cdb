// Package bench measures this host: how long a sandbox takes from the request
// to its first answer, and what it costs while idle. Every figure stands beside
// references that were measured in the same run, in turn with it, because no
// two hosts, and no two minutes of one host, are alike: runc, and gVisor's own
// command line, as it is published if there is a program with that, restoring the
// same templates.
//
// The rows are numbered as the targets in docs/PERFORMANCE.md.
package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/bench/figure"
	"hearth/internal/bench/gauge"
	"hearth/internal/bench/stock"
	"hearth/internal/config"
	"hearth/internal/hearth"
)

// Templates that are measured. A server has them unless it was told otherwise.
const (
	baseTemplate = "base"
	codeTemplate = "code-interpreter-v1"
)

const (
	maxRuns      = 1000
	maxSandboxes = 1000
	stepTime     = 2 * time.Minute // for one sandbox, or one program beside it
)

// Options are the command's flags.
type Options struct {
	Rows      []string      `placeholder:"N,..." help:"Rows to measure; all when empty: 1 create and echo, 2 the same with the official SDKs, 3 first cell of a code interpreter, 4 start with the pool empty, 5 burst, 6 creates without pause, 7 a command, 8 idle memory, 8b sandboxes alive at once, 9 idle CPU, 10 pause, 11 fork, 12 rollback, 13 upload and download, 14 cost of the edge, 15 guest daemon, 16 API of a crowded store."`
	Runs      int           `default:"30" help:"Runs of what takes milliseconds; slow references get fewer."`
	Sandboxes int           `default:"60" help:"Sandboxes of each template that row 8 keeps alive, if there is memory for them."`
	Limit     time.Duration `default:"60m" help:"Time after which no further run begins."`
	Stock     string        `placeholder:"PROGRAM" help:"This command, built with gVisor as it is published, which is the reference, with its program of sandboxes, PROGRAM-sandbox, beside it; empty: the hearth-stock beside this program. When there is none, this program's own gVisor is, by its command line."`
	JSON      bool          `name:"json" help:"Print a list of figures instead of a table."`

	// Running says that the data directory's own server is to be measured, with
	// what load it has, instead of one that is started for it.
	Running bool `kong:"-"`
}

func (o Options) check() error {
	for _, r := range o.Rows {
		if !slices.ContainsFunc(plan(), func(p row) bool { return p.number == r }) {
			return hearth.Errorf(hearth.InvalidArgument, "rows: there is no row %q; there are %s", r, strings.Join(numbers(), ", "))
		}
	}
	switch {
	case o.Runs < 1 || o.Runs > maxRuns:
		return hearth.Errorf(hearth.InvalidArgument, "runs: %d is not within 1 to %d", o.Runs, maxRuns)
	case o.Sandboxes < 1 || o.Sandboxes > maxSandboxes:
		return hearth.Errorf(hearth.InvalidArgument, "sandboxes: %d is not within 1 to %d", o.Sandboxes, maxSandboxes)
	case o.Limit < time.Second:
		return hearth.Errorf(hearth.InvalidArgument, "limit: %s is less than a second", o.Limit)
	}
	return nil
}

// row is one line of the targets, and how it is measured.
type row struct {
	number  string
	name    string
	pool    pool
	measure func(*run, context.Context) ([]figure.Figure, error)
}

// pool says with what kind of server a row is measured.
type pool int

const (
	poolFull     pool = iota // as configured
	poolLarge                // a burst's worth of machines is ready
	poolEmpty                // no machine is ever ready
	withFewRows              // as configured; a few sandboxes are in the store
	withManyRows             // likewise, and very many
)

// plan lists the rows in the order in which they are measured.
func plan() []row {
	return []row{
		{"1", "create and echo", poolFull, (*run).createEcho},
		{"2", "create and echo with the official SDKs", poolFull, (*run).officialSDKs},
		{"3", "first cell of a code interpreter", poolFull, (*run).firstCell},
		{"7", "a command in a running sandbox", poolFull, (*run).runTrue},
		{"13", "upload and download", poolFull, (*run).transfers},
		{"14", "what the edge costs", poolFull, (*run).edgeLatency},
		{"15", "the guest daemon", poolFull, (*run).guestDaemon},
		{"10", "pause", poolFull, (*run).pauses},
		{"11", "fork", poolFull, (*run).forks},
		{"12", "rollback", poolFull, (*run).rollbacks},
		{"6", "creates without pause", poolFull, (*run).sustainedCreates},
		{"9", "idle CPU", poolFull, (*run).idleCPU},
		{"8", "idle memory", poolFull, (*run).idleMemory},
		{"8b", "sandboxes alive at once", poolFull, (*run).aliveAtOnce},
		{"5", "burst, pool full", poolLarge, (*run).burstFull},
		{"5", "burst, pool empty", poolEmpty, (*run).burstEmpty},
		{"4", "start with the pool empty", poolEmpty, (*run).emptyPool},
		{"16", "API of a crowded store", withFewRows, (*run).crowdedAPI},
	}
}

// numbers are the rows there are, each once, in the order of the targets.
func numbers() []string {
	var list []string
	for _, p := range plan() {
		if !slices.Contains(list, p.number) {
			list = append(list, p.number)
		}
	}
	slices.SortFunc(list, byNumber)
	return list
}

// byNumber puts "8b" between "8" and "9", and "10" after that.
func byNumber(a, b string) int {
	number := func(s string) int {
		n, _ := strconv.Atoi(strings.TrimRight(s, "b")) // rows have numbers
		return n
	}
	return cmp.Or(cmp.Compare(number(a), number(b)), cmp.Compare(a, b))
}

// Run measures the rows and prints them to out; progress goes to progress. It
// starts a server of its own in a temporary directory, with cfg otherwise, and
// removes all of it again, also when ctx ends early. A part that this host
// cannot measure is skipped by name.
func Run(ctx context.Context, cfg *config.Config, o Options, out, progress io.Writer) (err error) {
	if err := o.check(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.Limit, hearth.Errorf(hearth.DeadlineExceeded, "the limit of %s is over", o.Limit))
	defer cancel()
	r := &run{cfg: cfg, opts: o, progress: progress, refs: references{warm: map[origin]stock.Template{}}}
	if r.dir, err = os.MkdirTemp("", "hearth-bench-"); err != nil {
		return hearth.Wrap(hearth.PermissionDenied, err, "no temporary directory can be made")
	}
	defer func() {
		err = errors.Join(err, r.close(context.WithoutCancel(ctx)), os.RemoveAll(r.dir))
	}()
	if r.refs.first, err = chooseStock(o.Stock, besideSelf()); err != nil {
		return err
	}
	host := gauge.Host()
	err = r.rows(ctx)
	slices.SortStableFunc(r.figures, func(a, b figure.Figure) int { return byNumber(a.Row, b.Row) })
	if o.JSON {
		return errors.Join(err, figure.WriteJSON(out, r.figures))
	}
	return errors.Join(err, figure.WriteTable(out, host, r.figures))
}

// run is one run of the command.
type run struct {
	cfg      *config.Config
	opts     Options
	progress io.Writer
	dir      string // temporary
	figures  []figure.Figure

	server *server // nil until a row needs one
	refs   references
}

// rows measures what was asked for. A row that fails does not cost the others,
// nor the figures that it had until then.
func (r *run) rows(ctx context.Context) error {
	var errs []error
	if r.refs.missing = r.writePublished(ctx); r.refs.missing != nil {
		errs = append(errs, fmt.Errorf("reference: %w", r.refs.missing))
	}
	if ctx.Err() != nil {
		return errors.Join(errs...) // nothing can be measured
	}
	for _, p := range plan() {
		if len(r.opts.Rows) > 0 && !slices.Contains(r.opts.Rows, p.number) {
			continue
		}
		figures, err := r.row(ctx, p)
		if err != nil && len(figures) == 0 {
			figures = []figure.Figure{figure.Skipped(p.number, p.name, err.Error())}
		}
		r.figures = append(r.figures, figures...)
		if err != nil {
			errs = append(errs, fmt.Errorf("row %s: %w", p.number, err))
		}
		if ctx.Err() != nil || err != nil && r.server == nil {
			break // nothing more can be measured
		}
	}
	return errors.Join(errs...)
}

func (r *run) row(ctx context.Context, p row) ([]figure.Figure, error) {
	if p.pool != poolFull && r.opts.Running {
		return []figure.Figure{figure.Skipped(p.number, p.name, "a running server keeps its pool and its store; measure without --data")}, nil
	}
	if err := r.serve(ctx, p.pool); err != nil {
		return nil, err
	}
	r.say("row %s", p.number)
	return p.measure(r, ctx)
}

// say reports progress.
func (r *run) say(format string, args ...any) {
	fmt.Fprintf(r.progress, "bench: "+format+"\n", args...)
}

// runscRoot is where gVisor's command line keeps its state.
func (r *run) runscRoot() string { return filepath.Join(r.dir, "runsc") }

func (r *run) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	var errs []error
	if r.refs.maker != nil {
		errs = append(errs, r.refs.maker.Close(ctx))
	}
	if r.server != nil {
		errs = append(errs, r.server.close(ctx))
	}
	// gVisor keeps an empty network namespace mounted in its directory.
	_ = unix.Unmount(filepath.Join(r.runscRoot(), "null-netns"), unix.MNT_DETACH)
	return errors.Join(errs...)
}

// times runs f up to n times, until ctx ends or it fails.
func (r *run) times(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	for i := range n {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		step, cancel := context.WithTimeout(ctx, stepTime)
		err := f(step, i)
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// slow is how often something is run that takes a second, when quick things are
// run as often as the user said.
func (r *run) slow() int { return max(min(r.opts.Runs, 5), r.opts.Runs/3) }
