package machines

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"hearth/internal/bench/figure"
	"hearth/internal/bench/gauge"
	"hearth/internal/bench/stock"
	"hearth/internal/driver"
	"hearth/internal/hearth"
)

const (
	warmups    = 1 // before what counts: the first use of anything is slower
	leaveAlone = 4 // a fourth of the host's memory is not for us
)

// subject is one driver and what was measured of it.
type subject struct {
	lab    *lab
	driver driver.Driver
	caps   driver.Capabilities
	size   hearth.Resources
	runs   int
	jobs   int
	clones []int // ascending

	boot, bootStock       *figure.Samples
	whole, wholeBytes     *figure.Samples
	restore, restoreStock *figure.Samples
	clone                 *figure.Samples
	pause, pauseBytes     *figure.Samples
	memory                []figure.Figure
	speed                 []figure.Figure
}

func newSubject(l *lab, o Options, d driver.Driver, caps driver.Capabilities) *subject {
	s := &subject{
		lab: l, driver: d, caps: caps, runs: o.Runs, jobs: min(o.Runs, 5),
		size:   hearth.Resources{VCPUs: 1, MemoryMiB: o.Memory, DiskMiB: diskMiB},
		clones: slices.Compact(slices.Sorted(slices.Values(o.Clones))),

		boot:         figure.Milliseconds("boot to the daemon's first answer"),
		whole:        figure.Milliseconds("freeze and checkpoint of a machine that was booted, synced"),
		wholeBytes:   figure.Mebibytes("what that writes"),
		restore:      figure.Milliseconds("restore of a checkpoint's first machine, to the first answer"),
		clone:        figure.Milliseconds("clone: restore beside others of the checkpoint, to the first answer"),
		pause:        figure.Milliseconds("pause of a clone: freeze and checkpoint, synced"),
		pauseBytes:   figure.Mebibytes("what that writes"),
		bootStock:    figure.Milliseconds(stock.Program{}.Name() + ": run of the same image, to the first answer"),
		restoreStock: figure.Milliseconds(stock.Program{}.Name() + ": restore of the same checkpoint, to the first answer"),
	}
	if caps.Isolation != hearth.UserKernel {
		s.bootStock = figure.Milliseconds("stock QEMU, cold boot of the same kernel to the first line of a program")
		s.restoreStock = s.bootStock
	}
	if caps.Isolation == hearth.EmulatedVM {
		s.runs, s.jobs = max(1, o.Runs/2), min(o.Runs, 3)
	}
	return s
}

// times runs f n times and a few times more beforehand, which do not count, until
// ctx ends or it fails.
func (s *subject) times(ctx context.Context, what string, n int, f func(ctx context.Context, counts bool) error) error {
	for i := range warmups + n {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		s.lab.say("%s: %s, %d of %d", s.driver.Name(), what, i+1, warmups+n)
		step, cancel := context.WithTimeout(ctx, stepTime)
		err := f(step, i >= warmups)
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return nil
}

// measure takes one thing after the other.
func (s *subject) measure(ctx context.Context) error {
	if !s.caps.MemorySnapshot {
		return s.times(ctx, "boot", s.runs, func(ctx context.Context, counts bool) error {
			m, err := s.boots(ctx, counts)
			if err != nil {
				return err
			}
			return m.close(ctx)
		})
	}
	var last *driver.Checkpoint
	err := s.times(ctx, "boot, checkpoint and restore", s.runs, func(ctx context.Context, counts bool) (err error) {
		if last != nil {
			if err := os.RemoveAll(last.Dir); err != nil {
				return err
			}
		}
		last, err = s.generation(ctx, counts)
		return err
	})
	if err != nil {
		return err
	}
	if err := s.native(ctx, last); err != nil {
		return fmt.Errorf("guest speed: %w", err)
	}
	return s.crowd(ctx, last)
}

// boots boots a machine, and what stands beside it.
func (s *subject) boots(ctx context.Context, counts bool) (*machine, error) {
	ref, err := s.stockStart(ctx, nil)
	if err != nil {
		s.bootStock.Skip(err.Error())
	}
	m, took, err := s.start(ctx, nil)
	if err != nil {
		return nil, err
	}
	if counts {
		s.boot.Took(took)
		s.bootStock.Took(ref)
	}
	return m, nil
}

// generation boots a machine, checkpoints it and restores the checkpoint, which
// nothing has ever been restored from.
func (s *subject) generation(ctx context.Context, counts bool) (*driver.Checkpoint, error) {
	m, err := s.boots(ctx, counts)
	if err != nil {
		return nil, err
	}
	c, took, bytes, err := s.checkpoint(ctx, m)
	if err = errors.Join(err, m.close(ctx)); err != nil {
		return nil, err
	}
	r, restored, err := s.start(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := r.close(ctx); err != nil {
		return nil, err
	}
	if counts {
		s.whole.Took(took)
		s.wholeBytes.Bytes(bytes)
		s.restore.Took(restored)
	}
	if s.caps.Isolation != hearth.UserKernel {
		return c, nil // plain QEMU has nothing to restore
	}
	ref, err := s.stockStart(ctx, c)
	switch {
	case err != nil:
		s.restoreStock.Skip(err.Error())
	case counts:
		s.restoreStock.Took(ref)
	}
	return c, nil
}

// checkpoint freezes a machine and writes it to a new directory. The machine
// stays frozen.
func (s *subject) checkpoint(ctx context.Context, m *machine) (c *driver.Checkpoint, took time.Duration, bytes int64, err error) {
	dir, err := os.MkdirTemp(s.lab.dir, "checkpoint-")
	if err != nil {
		return nil, 0, 0, err
	}
	began := time.Now()
	if err = m.Freeze(ctx); err == nil {
		c, err = m.Checkpoint(ctx, dir)
	}
	if err == nil {
		err = synced(dir)
	}
	took = time.Since(began)
	if err == nil {
		bytes, err = written(dir)
	}
	return c, took, bytes, err
}

// crowd makes clones of a checkpoint, as many as are to be alive at once, reads
// what they hold, and pauses some of them. A clone is frozen once it has
// answered: otherwise the earlier ones would take processors from the later.
func (s *subject) crowd(ctx context.Context, from *driver.Checkpoint) (err error) {
	var list []*machine
	defer func() {
		s.lab.say("%s: ending %d clones", s.driver.Name(), len(list))
		for _, m := range list {
			err = errors.Join(err, m.close(ctx))
		}
	}()
	before := gauge.Memory("MemAvailable")
	for _, n := range s.clones {
		s.lab.say("%s: %d clones", s.driver.Name(), n)
		for len(list) < n && gauge.Memory("MemAvailable") > gauge.Memory("MemTotal")/leaveAlone {
			m, err := s.oneMore(ctx, from, len(list) > 0)
			if err != nil {
				return err
			}
			list = append(list, m)
		}
		if err := s.held(list, n, before); err != nil {
			return err
		}
	}
	return s.pauses(ctx, list)
}

func (s *subject) oneMore(ctx context.Context, from *driver.Checkpoint, counts bool) (*machine, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	m, took, err := s.start(ctx, from)
	if err != nil {
		return nil, err
	}
	if counts {
		s.clone.Took(took)
	}
	if err := m.Freeze(ctx); err != nil {
		return nil, errors.Join(err, m.close(ctx))
	}
	return m, nil
}

// held reads what each of the clones holds, and what the host has less of since
// there were none.
func (s *subject) held(list []*machine, wanted int, before int64) error {
	each := figure.Mebibytes(fmt.Sprintf("memory of a clone, %d alive", len(list)))
	for _, m := range list {
		n, err := gauge.Held(m.group())
		if err != nil {
			return err
		}
		each.Bytes(n)
	}
	host := figure.Mebibytes("what the host has less of, per clone")
	if len(list) > 0 {
		host.Bytes(max(0, before-gauge.Memory("MemAvailable")) / int64(len(list)))
	}
	f := each.Figure()
	f.Reference = append(f.Reference, host.Figure())
	f.Note = "usage of the control group less page cache, each frozen after its first answer; beside it MemAvailable, whatever else the host did"
	if len(list) < wanted {
		f.Note = fmt.Sprintf("%d alive, not %d: memory is short; %s", len(list), wanted, f.Note)
	}
	s.memory = append(s.memory, f)
	return nil
}

// pauses lets clones run on for as long as it takes to use them, and pauses them.
func (s *subject) pauses(ctx context.Context, list []*machine) error {
	if len(list) <= warmups {
		s.pause.Skip("there are too few clones")
		s.pauseBytes.Skip("there are too few clones")
		return nil
	}
	return s.times(ctx, "pause of a clone", min(s.runs, len(list)-warmups), func(ctx context.Context, counts bool) error {
		m := list[0]
		list = list[1:]
		if err := m.Thaw(ctx); err != nil {
			return err
		}
		if err := m.unseal(ctx); err != nil {
			return err
		}
		c, took, bytes, err := s.checkpoint(ctx, m)
		if err != nil {
			return err
		}
		if counts {
			s.pause.Took(took)
			s.pauseBytes.Bytes(bytes)
		}
		return errors.Join(os.RemoveAll(c.Dir), m.close(ctx))
	})
}

// stockStart measures what stands beside a start: plain QEMU's boot of the same
// kernel, or gVisor's own command line, to the first answer.
func (s *subject) stockStart(ctx context.Context, from *driver.Checkpoint) (took time.Duration, err error) {
	if s.caps.Isolation != hearth.UserKernel {
		return s.lab.plainQEMU(ctx, s.caps.Isolation, s.size.MemoryMiB)
	}
	m, err := s.lab.stock.Prepare(ctx, stock.Template{Resources: s.size, Layer: s.lab.layer, From: from})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, m.Close(ctx)) }()
	began := time.Now()
	if err := m.Start(ctx); err != nil {
		return 0, err
	}
	if err := m.Answer(ctx); err != nil {
		return 0, err
	}
	return time.Since(began), nil
}

// figures sums up, in the order of a machine's life.
func (s *subject) figures() []figure.Figure {
	row := s.driver.Name()
	boot, restore := s.bootStock.Figure(), s.restoreStock.Figure()
	list := []figure.Figure{s.boot.Figure().Against(row, figure.Target{}, boot)}
	list[0].Note = fmt.Sprintf("%s; %d MiB, 1 vCPU, %s", s.caps.Isolation.Words(), s.size.MemoryMiB, s.caps.Key)
	if !s.caps.MemorySnapshot {
		return list
	}
	list = append(list,
		s.whole.Figure(), s.wholeBytes.Figure(),
		s.restore.Figure().Against(row, figure.Target{}, restore),
		s.clone.Figure().Against(row, figure.Target{}, restore),
		s.pause.Figure(), s.pauseBytes.Figure(),
	)
	list = slices.Concat(list, s.memory, s.speed)
	for i := range list {
		list[i].Row = row
	}
	return list
}
