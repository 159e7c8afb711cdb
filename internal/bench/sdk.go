package bench

import (
	"context"
	_ "embed" // the scripts
	"fmt"

	"hearth/internal/bench/figure"
	"hearth/internal/bench/official"
)

// officialSDKs is row 2.
func (r *run) officialSDKs(ctx context.Context) ([]figure.Figure, error) {
	stub, err := official.NewStub()
	if err != nil {
		return nil, err
	}
	defer stub.Close()
	var figures []figure.Figure
	for _, l := range []struct {
		name string
		find official.Find
	}{{"JavaScript", official.JavaScript}, {"Python", official.Python}} {
		name := "Sandbox.create and commands.run, official " + l.name + " SDK"
		f, err := r.sdk(ctx, name, stub, l.find)
		if ctx.Err() != nil {
			return figures, context.Cause(ctx)
		}
		if err != nil {
			f = figure.Skipped("2", name, err.Error())
		}
		figures = append(figures, f)
	}
	return figures, nil
}

// sdk measures one SDK against the server, in turn with the same against a stub.
func (r *run) sdk(ctx context.Context, name string, stub *official.Stub, find official.Find) (figure.Figure, error) {
	ours, ref := figure.Milliseconds(name), figure.Milliseconds("the same against a stub that answers at once")
	real, err := official.Start(ctx, r.dir, find, append(plainEnviron(), r.server.environ()...))
	if err != nil {
		return figure.Figure{}, err
	}
	defer real.Close()
	empty, err := official.Start(ctx, r.dir, find, append(plainEnviron(), stub.Environ()...))
	if err != nil {
		return figure.Figure{}, err
	}
	defer empty.Close()
	served := 0
	err = r.times(ctx, r.opts.Runs+warmups, func(ctx context.Context, i int) error {
		r.server.settle(ctx)
		ready := r.server.ready()
		took, err := real.Once(ctx, func(sandbox string) {
			if m, err := r.server.of(sandbox); err == nil && i >= warmups && ready[m.Handle.ID] {
				served++
			}
		})
		if err != nil {
			return err
		}
		r.server.settle(ctx)
		alone, err := empty.Once(ctx, func(string) {})
		if err != nil {
			return fmt.Errorf("against the stub: %w", err)
		}
		if i >= warmups {
			ours.Took(took)
			ref.Took(alone)
		}
		return nil
	})
	f := ours.Figure().Against("2", figure.Target{P50: 60}, ref.Figure())
	f.Note = real.SDK + "; " + hits(served, f.Runs)
	return f, err
}
