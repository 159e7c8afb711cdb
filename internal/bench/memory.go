package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"time"

	"hearth/client"
	"hearth/internal/bench/figure"
	"hearth/internal/bench/gauge"
	"hearth/internal/bench/stock"
	"hearth/internal/guest"
)

const (
	idleTime   = 2 * time.Second // after the last sandbox was made
	stockIdle  = 5               // stock machines that are measured
	leaveAlone = 4               // a fourth of the host's memory is not for us
)

// idleMemory is row 8.
func (r *run) idleMemory(ctx context.Context) ([]figure.Figure, error) {
	var figures []figure.Figure
	for _, t := range []struct {
		template string
		target   figure.Target
	}{{baseTemplate, figure.Target{P50: 16}}, {codeTemplate, figure.Target{P50: 45}}} {
		ours, note, err := r.idle(ctx, t.template)
		if err != nil {
			return figures, err
		}
		ref := samples(r.refs.first, "MiB", "restored")
		if err := r.idleStock(ctx, ref, t.template); err != nil {
			ref.Skip(err.Error())
		}
		f := ours.Figure().Against("8", t.target, ref.Figure())
		f.Note = note
		figures = append(figures, f)
	}
	return figures, nil
}

// idle reads what each of many sandboxes holds that have nothing to do.
func (r *run) idle(ctx context.Context, template string) (*figure.Samples, string, error) {
	s := figure.Mebibytes("idle memory of a sandbox, " + template)
	note := ""
	err := r.alive(ctx, template, r.opts.Sandboxes, nil, func(list []*client.Sandbox, why string) error {
		note = why
		if err := rest(ctx, idleTime); err != nil {
			return err
		}
		r.server.settle(ctx)
		for _, sb := range list {
			m, err := r.server.of(sb.ID)
			if err != nil {
				return err
			}
			n, err := gauge.Held(filepath.Join(r.server.cfg.Node.Cgroup, m.Handle.ID))
			if err != nil {
				return err
			}
			s.Bytes(n)
		}
		return nil
	})
	return s, note + "; usage of the cgroup less the page cache", err
}

// alive makes up to n sandboxes, as many as there is memory for, uses each, if
// there is a use, and hands them over. They are killed in the end.
func (r *run) alive(ctx context.Context, template string, n int, use func(context.Context, *client.Sandbox) error, then func(list []*client.Sandbox, note string) error) error {
	var list []*client.Sandbox
	defer func() {
		for _, sb := range list {
			r.kill(ctx, sb)
		}
	}()
	r.server.settle(ctx)
	why := ""
	err := r.times(ctx, n, func(ctx context.Context, _ int) error {
		if gauge.Memory("MemAvailable") < gauge.Memory("MemTotal")/leaveAlone {
			why = "memory is short"
			return errShort
		}
		sb, err := r.create(ctx, template)
		if e, ok := errors.AsType[*client.Error](err); ok && e.Status == http.StatusTooManyRequests && len(list) > 0 {
			why = "the server takes no more"
			return errShort
		}
		if err != nil {
			return err
		}
		list = append(list, sb)
		if use != nil {
			return use(ctx, sb)
		}
		return nil
	})
	if err != nil && !errors.Is(err, errShort) {
		return err
	}
	note := fmt.Sprintf("%d alive at once", len(list))
	if why != "" {
		note = fmt.Sprintf("%d alive at once, not %d: %s", len(list), n, why)
	}
	return then(list, note)
}

// aliveAtOnce is row 8b: code interpreters, each of which has run a cell.
func (r *run) aliveAtOnce(ctx context.Context) ([]figure.Figure, error) {
	const enough = 330
	s := figure.In("alive", "code interpreters alive at once, each having answered a cell")
	note := ""
	err := r.alive(ctx, codeTemplate, enough, func(ctx context.Context, sb *client.Sandbox) error { return cell(ctx)(sb) },
		func(list []*client.Sandbox, why string) error {
			note = why + "; all answered another one afterwards"
			for _, sb := range list {
				if err := cell(ctx)(sb); err != nil {
					return err
				}
			}
			s.Add(float64(len(list)))
			return nil
		})
	f := s.Figure().Against("8b", figure.Target{Least: 300})
	f.Note = note
	return []figure.Figure{f}, err
}

// idleCPU is row 9.
func (r *run) idleCPU(ctx context.Context) ([]figure.Figure, error) {
	const many, over = 50, 10 * time.Second
	live := figure.In("% of a core", fmt.Sprintf("idle CPU of %d sandboxes together", many))
	pooled := figure.In("% of a core", "idle CPU of the pools' machines together")
	note := ""
	measure := func(s *figure.Samples, ids []string) error {
		before, err := r.cpu(ids)
		if err != nil {
			return err
		}
		began := time.Now()
		if err := rest(ctx, over); err != nil {
			return err
		}
		after, err := r.cpu(ids)
		s.Add(100 * float64(after-before) / float64(time.Since(began)))
		return err
	}
	err := r.alive(ctx, baseTemplate, many, nil, func(list []*client.Sandbox, why string) error {
		note = fmt.Sprintf("%s; over %s", why, over)
		r.server.settle(ctx)
		var ids []string
		for _, sb := range list {
			m, err := r.server.of(sb.ID)
			if err != nil {
				return err
			}
			ids = append(ids, m.Handle.ID)
		}
		if err := rest(ctx, idleTime); err != nil {
			return err
		}
		return errors.Join(measure(live, ids), measure(pooled, slices.Collect(maps.Keys(r.server.ready()))))
	})
	f := live.Figure().Against("9", figure.Target{P50: 5})
	f.Note = note
	return []figure.Figure{f, pooled.Figure().Against("9", figure.Target{P50: 0.1})}, err
}

// cpu is what machines have used in all.
func (r *run) cpu(machines []string) (time.Duration, error) {
	var sum time.Duration
	for _, id := range machines {
		d, err := gauge.CPU(filepath.Join(r.server.cfg.Node.Cgroup, id))
		if err != nil {
			return 0, err
		}
		sum += d
	}
	return sum, nil
}

var errShort = errors.New("there is no room for more sandboxes")

func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// idleStock does the same with a few stock machines.
func (r *run) idleStock(ctx context.Context, s *figure.Samples, template string) (err error) {
	var alive []*stock.Machine
	defer func() {
		for _, m := range alive {
			err = errors.Join(err, m.Close(ctx))
		}
	}()
	for range stockIdle {
		m, err := r.prepare(ctx, origin{r.refs.first, template})
		if err != nil {
			return err
		}
		alive = append(alive, m)
		if err := m.Start(ctx); err != nil {
			return err
		}
		if err := m.Unseal(ctx); err != nil {
			return err
		}
		if template == codeTemplate {
			if _, err := m.Do(ctx, "GET", guest.CodePort, "/health", nil); err != nil {
				return err
			}
		}
	}
	if err := rest(ctx, idleTime); err != nil {
		return err
	}
	for _, m := range alive {
		n, err := gauge.Held(m.Group())
		if err != nil {
			return err
		}
		s.Bytes(n)
	}
	return nil
}
