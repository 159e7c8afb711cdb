package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"hearth/client"
	"hearth/internal/bench/figure"
	"hearth/internal/bench/stock"
)

const (
	burstSize  = 20
	sustained  = 15 * time.Second // of creates one after the other
	burstLimit = 1000             // ms, of row 5

	sustainedTurns = 3               // of sustained
	lead           = 5 * time.Second // before each, in which what was ready is used up
)

// burstFull and burstEmpty are row 5: many creates at once, each used.
func (r *run) burstFull(ctx context.Context) ([]figure.Figure, error) {
	return r.bursts(ctx, "burst of 20, pool full, until all have answered echo", figure.Target{P50: burstLimit})
}

func (r *run) burstEmpty(ctx context.Context) ([]figure.Figure, error) {
	return r.bursts(ctx, "burst of 20, pool empty, until all have answered echo", figure.Target{})
}

func (r *run) bursts(ctx context.Context, name string, t figure.Target) ([]figure.Figure, error) {
	ours := figure.Milliseconds(name)
	overtaken, of := 0, 0
	err := r.times(ctx, r.slow(), func(ctx context.Context, _ int) error {
		r.server.settle(ctx)
		took, ends, err := r.burst(ctx, burstSize)
		if err != nil {
			return err
		}
		ours.Took(took)
		overtaken += overtakes(ends)
		of += len(ends) - 1
		return nil
	})
	f := ours.Figure().Against("5", t)
	f.Note = fmt.Sprintf("no create failed; of %d neighbours in the order of their requests %d ended the other way round", of, overtaken)
	return []figure.Figure{f}, err
}

// burst makes n sandboxes at once and runs echo in each. It returns the time
// until the last has answered, and when each create returned, in the order in
// which the requests were sent.
func (r *run) burst(ctx context.Context, n int) (time.Duration, []time.Duration, error) {
	made := make([]*client.Sandbox, n)
	errs := make([]error, n)
	ends := make([]time.Duration, n)
	began := time.Now()
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			if made[i], errs[i] = r.create(ctx, baseTemplate); errs[i] == nil {
				ends[i] = time.Since(began)
				errs[i] = echo(ctx)(made[i])
			}
		})
	}
	all.Wait()
	took := time.Since(began)
	var gone sync.WaitGroup
	for _, sb := range made {
		if sb != nil {
			gone.Go(func() { r.kill(ctx, sb) })
		}
	}
	gone.Wait()
	return took, ends, errors.Join(errs...)
}

// overtakes counts neighbours of which the later one ended first.
func overtakes(ends []time.Duration) int {
	n := 0
	for i := 1; i < len(ends); i++ {
		if ends[i] < ends[i-1] {
			n++
		}
	}
	return n
}

// sustainedCreates is row 6: creates without pause, on as many threads as there
// are cores, and stock restores in the same way, in turns: the host's speed changes by a
// tenth from one minute to the next.
func (r *run) sustainedCreates(ctx context.Context) ([]figure.Figure, error) {
	var figures []figure.Figure
	for _, template := range []string{baseTemplate, codeTemplate} {
		ours := figure.In("1/s", template+": creates a second, each killed after its first HTTP answer, API")
		refs := r.refs.samples("1/s", "restores a second, likewise")
		var err error
		for turn := 0; turn < sustainedTurns && err == nil; turn++ {
			err = r.sustain(ctx, template, turn, ours, refs)
		}
		f := ours.Figure().Against("6", figure.Target{Times: 3}, sums(refs)...)
		f.Note = fmt.Sprintf("%d at once for %s, %s after they began, in turns; no create failed", runtime.NumCPU(), sustained, lead)
		if err != nil {
			return figures, err
		}
		figures = append(figures, f)
	}
	return figures, nil
}

// sustain is one turn of it; in every other one the references are first.
func (r *run) sustain(ctx context.Context, template string, turn int, ours *figure.Samples, refs []*figure.Samples) error {
	steps := []func() error{func() error {
		rate, err := each(ctx, func(ctx context.Context) error {
			sb, err := r.create(ctx, template)
			if err != nil {
				return err
			}
			defer r.kill(ctx, sb)
			return health(ctx)(sb)
		})
		ours.Add(rate)
		return err
	}}
	for i, p := range r.refs.programs() {
		steps = append(steps, func() error {
			if rate, err := r.stockRate(ctx, origin{p, template}); err != nil {
				refs[i].Skip(err.Error())
			} else {
				refs[i].Add(rate)
			}
			return ctx.Err()
		})
	}
	if turn%2 == 1 {
		slices.Reverse(steps)
	}
	for _, step := range steps {
		r.server.settle(ctx)
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// stockRate prepares machines one at a time, which is not what is measured:
// networks are made in the background by a server, too.
func (r *run) stockRate(ctx context.Context, of origin) (float64, error) {
	if _, err := r.template(ctx, of); err != nil { // not within the time
		return 0, err
	}
	var turn sync.Mutex
	return each(ctx, func(ctx context.Context) (err error) {
		turn.Lock()
		m, err := r.prepare(ctx, of)
		turn.Unlock()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, closeStock(ctx, &turn, m)) }()
		if err := m.Start(ctx); err != nil {
			return err
		}
		return m.Answer(ctx)
	})
}

func closeStock(ctx context.Context, turn *sync.Mutex, m *stock.Machine) error {
	turn.Lock()
	defer turn.Unlock()
	return m.Close(ctx)
}

// each runs f over and over, on every core, and returns how often it ended in a
// second, once the lead is over. The first error ends all.
func each(ctx context.Context, f func(context.Context) error) (float64, error) {
	from := time.Now().Add(lead)
	counts, errs := make([]int, runtime.NumCPU()), make([]error, runtime.NumCPU())
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var all sync.WaitGroup
	for i := range counts {
		all.Go(func() {
			for time.Since(from) < sustained && ctx.Err() == nil {
				step, done := context.WithTimeout(ctx, stepTime)
				errs[i] = f(step)
				done()
				if errs[i] != nil {
					cancel()
					return
				}
				if time.Now().After(from) {
					counts[i]++
				}
			}
		})
	}
	all.Wait()
	n := 0
	for _, c := range counts {
		n += c
	}
	return float64(n) / time.Since(from).Seconds(), errors.Join(errs...)
}
