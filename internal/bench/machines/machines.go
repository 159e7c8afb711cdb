// Package machines measures the isolation technologies of this host by
// themselves, below the server: how long one of a driver's machines takes to boot,
// to be restored, to be cloned and to be paused, what clones hold, and how fast a
// guest is. References are measured beside them in the same run, in turn with
// them: plain QEMU, gVisor's own command line, and this host without a guest.
//
// The machines are what a node's are: the template "base", the node's kernel and
// guest daemon, network slots with their filters, users and control groups. What a
// server adds (its API, its pool, its store) is left out.
package machines

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"hearth/internal/bench/figure"
	"hearth/internal/bench/gauge"
	"hearth/internal/config"
	"hearth/internal/hearth"
)

const (
	maxRuns   = 100
	maxClones = 1000
	minMemory = 128 // MiB: what a virtual machine with the guest daemon boots in
	maxMemory = 16 << 10

	stepTime = 2 * time.Minute // of one boot, restore, pause or job
	stopTime = 30 * time.Second
)

// Options are the command's flags.
type Options struct {
	Drivers []string      `placeholder:"NAME,..." help:"Drivers to measure; every one when empty. Those that cannot run here are skipped by name."`
	Runs    int           `default:"10" help:"Boots, restores and pauses of each driver; those of an emulated one are half as many. Jobs are run five times at most, emulated three times."`
	Clones  []int         `default:"1,10,50" help:"How many clones are alive when their memory is read, if there is memory for them."`
	Memory  int           `default:"256" help:"MiB of each machine."`
	Emulate bool          `help:"Measure qemu with an emulated processor where KVM does not run, as node.qemu.emulate has it."`
	Limit   time.Duration `default:"20m" help:"Time after which no further run begins."`
	JSON    bool          `name:"json" help:"Print a list of figures instead of a table."`
}

func (o Options) check() error {
	for _, name := range o.Drivers {
		if !slices.Contains(config.DriverNames(), name) {
			return hearth.Errorf(hearth.InvalidArgument, "drivers: there is no driver %.40q; there are %s", name, strings.Join(config.DriverNames(), ", "))
		}
	}
	for _, n := range o.Clones {
		if n < 1 || n > maxClones {
			return hearth.Errorf(hearth.InvalidArgument, "clones: %d is not within 1 to %d", n, maxClones)
		}
	}
	switch {
	case o.Runs < 1 || o.Runs > maxRuns:
		return hearth.Errorf(hearth.InvalidArgument, "runs: %d is not within 1 to %d", o.Runs, maxRuns)
	case len(o.Clones) == 0:
		return hearth.Errorf(hearth.InvalidArgument, "clones: there is no number")
	case o.Memory < minMemory || o.Memory > maxMemory:
		return hearth.Errorf(hearth.InvalidArgument, "memory: %d is not within %d to %d MiB", o.Memory, minMemory, maxMemory)
	case o.Limit < time.Second:
		return hearth.Errorf(hearth.InvalidArgument, "limit: %s is less than a second", o.Limit)
	}
	return nil
}

// Run measures the drivers and prints them to out; progress goes to progress.
// Everything it makes is removed again, also when ctx ends early. A driver that
// fails half way keeps the figures that it had until then, and does not cost the
// others theirs.
func Run(ctx context.Context, cfg *config.Config, o Options, out, progress io.Writer) (err error) {
	if err := o.check(); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return hearth.Errorf(hearth.FailedPrecondition, "machines are started by root alone: run as root")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.Limit, hearth.Errorf(hearth.DeadlineExceeded, "the limit of %s is over", o.Limit))
	defer cancel()
	host := gauge.Host()
	l, err := open(ctx, cfg, o, progress)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close(ctx)) }()
	figures, err := l.drivers(ctx, o)
	if o.JSON {
		return errors.Join(err, figure.WriteJSON(out, figures))
	}
	return errors.Join(err, figure.WriteTable(out, host, figures))
}

// drivers measures one after the other.
func (l *lab) drivers(ctx context.Context, o Options) ([]figure.Figure, error) {
	var figures []figure.Figure
	var errs []error
	for _, d := range l.all {
		if len(o.Drivers) > 0 && !slices.Contains(o.Drivers, d.Name()) {
			continue
		}
		if ctx.Err() != nil {
			errs = append(errs, context.Cause(ctx))
			break
		}
		caps, err := d.Probe(ctx)
		if err != nil {
			why := err.Error()
			if d.Name() == "qemu" && !o.Emulate {
				why += " (--emulate measures it with an emulated processor)"
			}
			figures = append(figures, figure.Skipped(d.Name(), "machines of "+d.Name(), why))
			continue
		}
		s := newSubject(l, o, d, caps)
		if err := s.measure(ctx); err != nil {
			errs = append(errs, fmt.Errorf("driver %s: %w", d.Name(), err))
		}
		figures = append(figures, s.figures()...)
	}
	return figures, errors.Join(errs...)
}
