package bench

import (
	"context"
	"errors"
	"os"
	"time"

	"hearth/client"
	"hearth/internal/bench/figure"
)

// This file measures what keeps, copies and takes back a sandbox: rows 10 to 12.

// pauses is row 10.
func (r *run) pauses(ctx context.Context) ([]figure.Figure, error) {
	ours := figure.Milliseconds("pause of a code interpreter that has run a cell, API")
	ref := figure.Milliseconds("stock gVisor checkpoint of the same")
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
		took, err := r.stockCheckpoint(ctx)
		if err != nil {
			ref.Skip(err.Error())
			return ctx.Err()
		}
		ref.Took(took)
		return nil
	})
	return []figure.Figure{ours.Figure().Against("10", figure.Target{Ratio: 1.1}, ref.Figure())}, err
}

func (r *run) stockCheckpoint(ctx context.Context) (took time.Duration, err error) {
	w, err := r.learn(ctx, codeTemplate)
	if err != nil {
		return 0, err
	}
	m, err := r.stock.Prepare(ctx, w)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, m.Close(ctx)) }()
	if err := errors.Join(m.Start(ctx), m.Unseal(ctx), stockCell(ctx, m)); err != nil {
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
