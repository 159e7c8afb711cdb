package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	"hearth/client"
	"hearth/internal/bench/figure"
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
		ref := figure.Mebibytes("stock gVisor restore of the same checkpoint")
		if err := r.idleStock(ctx, ref, t.template); err != nil {
			ref.Skip(err.Error())
		}
		f := ours.Figure().Against("8", t.target, ref.Figure())
		f.Note = note
		figures = append(figures, f)
	}
	return figures, nil
}

// idle keeps sandboxes alive, as many as were asked for and there is memory
// for, and reads what each holds.
func (r *run) idle(ctx context.Context, template string) (*figure.Samples, string, error) {
	s := figure.Mebibytes("idle memory of a sandbox, " + template)
	var alive []*client.Sandbox
	defer func() {
		for _, sb := range alive {
			r.kill(ctx, sb)
		}
	}()
	r.server.settle(ctx)
	note := ""
	err := r.times(ctx, r.opts.Sandboxes, func(ctx context.Context, i int) error {
		if memInfo("MemAvailable") < memInfo("MemTotal")/leaveAlone {
			note = fmt.Sprintf("%d sandboxes were kept alive, not %d: memory is short; ", len(alive), r.opts.Sandboxes)
			return errShort
		}
		sb, err := r.create(ctx, template)
		if e, ok := errors.AsType[*client.Error](err); ok && e.Status == http.StatusTooManyRequests && len(alive) > 0 {
			note = fmt.Sprintf("%d sandboxes were kept alive, not %d: the server takes no more; ", len(alive), r.opts.Sandboxes)
			return errShort
		}
		if err == nil {
			alive = append(alive, sb)
		}
		return err
	})
	if err != nil && !errors.Is(err, errShort) {
		return s, note, err
	}
	if err := rest(ctx); err != nil {
		return s, note, err
	}
	r.server.settle(ctx)
	for _, sb := range alive {
		m, err := r.server.of(sb.ID)
		if err != nil {
			return s, note, err
		}
		n, err := cgroupMemory(filepath.Join(r.server.cfg.Node.Cgroup, m.Handle.ID))
		if err != nil {
			return s, note, err
		}
		s.Bytes(n)
	}
	return s, note + fmt.Sprintf("%d alive at once; usage of the cgroup less the page cache", len(alive)), nil
}

var errShort = errors.New("there is no room for more sandboxes")

func rest(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(idleTime):
		return nil
	}
}

// idleStock does the same with a few stock machines.
func (r *run) idleStock(ctx context.Context, s *figure.Samples, template string) (err error) {
	w, err := r.learn(ctx, template)
	if err != nil {
		return err
	}
	var alive []*stock.Machine
	defer func() {
		for _, m := range alive {
			err = errors.Join(err, m.Close(ctx))
		}
	}()
	for range stockIdle {
		m, err := r.stock.Prepare(ctx, w)
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
	if err := rest(ctx); err != nil {
		return err
	}
	for _, m := range alive {
		n, err := cgroupMemory(m.Group())
		if err != nil {
			return err
		}
		s.Bytes(n)
	}
	return nil
}
