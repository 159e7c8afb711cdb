package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"hearth/client"
	"hearth/internal/bench/figure"
	"hearth/internal/bench/stock"
)

// This file measures what keeps, copies and takes back a sandbox: rows 10 to 12.

// pauses is row 10.
func (r *run) pauses(ctx context.Context) ([]figure.Figure, error) {
	ours := figure.Milliseconds("pause of a code interpreter that has run a cell, API")
	ref := samples(r.refs.first, "ms", "checkpoint of the same")
	err := r.times(ctx, r.slow()+1, func(ctx context.Context, i int) error {
		r.server.settle(ctx)
		err := r.within(ctx, codeTemplate, func(sb *client.Sandbox) error {
			if err := cell(ctx)(sb); err != nil {
				return err
			}
			r.server.settle(ctx)
			began := time.Now()
			err := sb.Pause(ctx)
			if i > 0 {
				ours.Took(time.Since(began))
			}
			return err
		})
		if err != nil || i == 0 || ref.Skips() {
			return err
		}
		took, err := r.stockCheckpoint(ctx, codeTemplate, func(m *stock.Machine) error { return stockCell(ctx, m) })
		if err != nil {
			ref.Skip(err.Error())
			return ctx.Err()
		}
		ref.Took(took)
		return nil
	})
	return []figure.Figure{ours.Figure().Against("10", figure.Target{Ratio: 1.1}, ref.Figure())}, err
}

// stockCheckpoint measures a checkpoint of a stock machine that has done some work.
func (r *run) stockCheckpoint(ctx context.Context, template string, work func(*stock.Machine) error) (took time.Duration, err error) {
	m, err := r.prepare(ctx, origin{r.refs.first, template})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, m.Close(ctx)) }()
	if err := errors.Join(m.Start(ctx), m.Unseal(ctx), work(m)); err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp(r.dir, "checkpoint-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	r.server.settle(ctx)
	began := time.Now()
	err = m.Checkpoint(ctx, dir)
	return time.Since(began), err
}

const (
	forkCount = 10
	// gapCode runs in a sandbox and prints the longest time for which it did not
	// get to run, in ms.
	gapCode = `import time
last = time.monotonic(); worst = 0.0; until = last + %d
while last < until:
    time.sleep(0.001)
    now = time.monotonic()
    worst, last = max(worst, now - last), now
print(worst * 1000)
`
	gapSeconds = 8
)

// forks is row 11.
func (r *run) forks(ctx context.Context) ([]figure.Figure, error) {
	stop := figure.Milliseconds(fmt.Sprintf("fork into %d: how long the parent stands still", forkCount))
	stopRef := samples(r.refs.first, "ms", "checkpoint of the same")
	all := figure.Milliseconds(fmt.Sprintf("fork into %d: until all have answered echo, API", forkCount))
	allRef := samples(r.refs.first, "ms", "restore to the first HTTP answer")
	err := r.times(ctx, r.slow()+1, func(ctx context.Context, i int) error {
		r.server.settle(ctx)
		gap, took, err := r.fork(ctx)
		if err != nil || i == 0 {
			return err
		}
		stop.Took(gap)
		all.Took(took)
		r.restored(ctx, allRef, origin{r.refs.first, baseTemplate}, func(m *stock.Machine) error { return m.Answer(ctx) })
		if stopRef.Skips() {
			return ctx.Err()
		}
		took, err = r.stockCheckpoint(ctx, baseTemplate, func(*stock.Machine) error { return nil })
		if err != nil {
			stopRef.Skip(err.Error())
			return ctx.Err()
		}
		stopRef.Took(took)
		return nil
	})
	return []figure.Figure{
		stop.Figure().Against("11", figure.Target{Ratio: 1.2}, stopRef.Figure()),
		all.Figure().Against("11", figure.Target{Ratio: 12}, allRef.Figure()),
	}, err
}

// fork forks a sandbox that measures its own standstill, and uses every fork.
func (r *run) fork(ctx context.Context) (gap, took time.Duration, err error) {
	err = r.within(ctx, baseTemplate, func(sb *client.Sandbox) error {
		if _, err := sb.Files.Write(ctx, "/tmp/gap.py", strings.NewReader(fmt.Sprintf(gapCode, gapSeconds))); err != nil {
			return err
		}
		var out strings.Builder
		watch, err := sb.Commands.Start(ctx, "python3 /tmp/gap.py", client.RunOptions{Stdout: &out, Stderr: &out})
		if err != nil {
			return err
		}
		if err := rest(ctx, time.Second); err != nil { // the interpreter has started by then
			return err
		}
		began := time.Now()
		forks, err := r.server.client.Fork(ctx, sb.ID, forkCount, life)
		if err != nil {
			return err
		}
		errs := make([]error, len(forks))
		var each sync.WaitGroup
		for i, f := range forks {
			if errs[i] = f.Err; f.Err != nil {
				continue
			}
			defer r.kill(ctx, f.Sandbox)
			each.Go(func() { errs[i] = echo(ctx)(f.Sandbox) })
		}
		each.Wait()
		took = time.Since(began)
		if err := errors.Join(errs...); err != nil {
			return err
		}
		res, err := watch.Wait()
		if err != nil {
			return err
		}
		ms, err := strconv.ParseFloat(strings.TrimSpace(out.String()), 64)
		if err != nil {
			err = fmt.Errorf("the parent's own measurement ended with %d, %q: %w", res.ExitCode, out.String(), errUnexpected)
		}
		gap = time.Duration(ms * float64(time.Millisecond))
		return err
	})
	return gap, took, err
}

// rollbacks is row 12.
func (r *run) rollbacks(ctx context.Context) ([]figure.Figure, error) {
	back := figure.Milliseconds("rollback of a sandbox to a snapshot, until it has answered echo, API")
	resume := figure.Milliseconds("resume of the same from a pause, likewise")
	err := r.times(ctx, r.slow()+1, func(ctx context.Context, i int) error {
		return r.within(ctx, baseTemplate, func(sb *client.Sandbox) error {
			c := r.server.client
			snap, err := c.Snapshot(ctx, sb.ID, "")
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, c.DeleteSnapshot(context.WithoutCancel(ctx), snap.ID)) }()
			r.server.settle(ctx)
			began := time.Now()
			if sb, err = c.Rollback(ctx, sb.ID, snap.ID); err != nil {
				return err
			}
			if err := echo(ctx)(sb); err != nil {
				return err
			}
			rolled := time.Since(began)
			if err := sb.Pause(ctx); err != nil {
				return err
			}
			r.server.settle(ctx)
			began = time.Now()
			if sb, err = c.Connect(ctx, sb.ID, life); err != nil {
				return err
			}
			if err := echo(ctx)(sb); err != nil {
				return err
			}
			if i > 0 {
				back.Took(rolled)
				resume.Took(time.Since(began))
			}
			return err
		})
	})
	return []figure.Figure{back.Figure().Against("12", figure.Target{Ratio: 1.2}, resume.Figure())}, err
}
