package code

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"hearth/internal/hearth"
)

// executor is a context as users see it: an id, a language, a directory, and the
// kernel that runs its cells, which may be replaced by another.
type executor struct {
	service  *Service
	id       string
	language string // as reported
	cwd      string
	spec     kernelSpec

	// turn holds a token while the kernel is being looked at, started or replaced.
	// Executions hold the kernel's own token instead, so that a restart need not
	// wait for a cell.
	turn    chan struct{}
	k       *kernel // guarded by turn
	removed bool    // guarded by turn
}

func (s *Service) newExecutor(language string, spec kernelSpec, cwd string) *executor {
	return &executor{
		service: s, id: newID(), language: language, cwd: cwd, spec: spec, turn: make(chan struct{}, 1),
	}
}

// ensure returns the context's kernel, starting one when there is none or it has
// died. The start goes on when ctx ends.
func (e *executor) ensure(ctx context.Context) (*kernel, error) {
	select {
	case e.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-e.turn }()
	return e.started()
}

// started needs the turn.
func (e *executor) started() (*kernel, error) {
	if e.removed {
		return nil, hearth.Errorf(hearth.NotFound, "Context %s not found", e.id)
	}
	if e.k != nil && e.k.alive() {
		return e.k, nil
	}
	s := e.service
	k, err := s.startKernel(s.life, e.spec, s.opts.Home)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(s.life, startTime)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { k.kill(errRemoved) })
	err = e.settle(ctx, k)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		k.shutdown(errRemoved)
		return nil, err
	}
	e.k = k
	return k, nil
}

// settle takes a new kernel to the context's directory and environment.
func (e *executor) settle(ctx context.Context, k *kernel) error {
	c := cell{orders: orders{Cwd: e.cwd}}
	if !k.spec.prepared {
		d, ok := dialectOf(k.spec.Name)
		if !ok {
			return nil
		}
		c = cell{code: d.chdir(e.cwd)}
	}
	return e.service.quietly(ctx, k, c)
}

// restart replaces the kernel. What runs in the old one ends with ContextRestarting.
func (e *executor) restart(ctx context.Context) error {
	select {
	case e.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-e.turn }()
	if e.k != nil {
		e.k.shutdown(errRestarted)
	}
	_, err := e.started()
	return err
}

// remove ends the context for good.
func (e *executor) remove(cause error) {
	e.turn <- struct{}{}
	defer func() { <-e.turn }()
	e.removed = true
	if e.k != nil {
		e.k.shutdown(cause)
	}
}

// execute runs a user's code with extra variables and emits everything up to and
// including the end of the execution.
func (e *executor) execute(ctx context.Context, code string, env map[string]string, out sink) {
	k, err := e.acquire(ctx, out)
	if err == nil {
		err = e.service.perform(ctx, k, cell{code: code, orders: orders{Env: env}}, out)
	}
	if err != nil && ctx.Err() == nil {
		_ = out.emit(endedEvent(k, err))
	}
	_ = out.emit(endEvent())
	if k != nil {
		e.service.cleanUp(k, env)
		<-k.busy
	}
}

// acquire waits for the context's kernel to be free and takes its token.
func (e *executor) acquire(ctx context.Context, out sink) (*kernel, error) {
	silence := time.NewTicker(silenceTime)
	defer silence.Stop()
	for {
		k, err := e.ensure(ctx)
		if err != nil {
			return nil, err
		}
		for waiting := true; waiting; {
			select {
			case k.busy <- struct{}{}:
				if k.alive() {
					return k, nil
				}
				<-k.busy
				waiting = false
			case <-k.stop:
				waiting = false
			case <-silence.C:
				if err := out.emit(keepalive()); err != nil {
					return nil, err
				}
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
	}
}

// endedEvent is the error event of an execution whose kernel is gone.
func endedEvent(k *kernel, err error) any {
	name, detail := "UnexpectedEndOfExecution", ""
	switch {
	case errors.Is(err, errRestarted):
		name = "ContextRestarting"
	case errors.Is(err, errKernelDied) && k != nil:
		select {
		case <-k.done:
		case <-time.After(shutdownTime):
		}
		if exit, _ := k.end(); exit != "" {
			detail = "The kernel ended: " + exit
		}
	}
	return errorEvent(name, message0(err), detail)
}

// perform runs a cell after the kernel has been brought to the current
// environment. The caller holds k.busy.
func (s *Service) perform(ctx context.Context, k *kernel, c cell, out sink) error {
	env := s.environment()
	if k.spec.prepared {
		if k.epoch != env.epoch {
			c.orders.Epoch, c.orders.Globals = env.epoch, env.values
		}
		done, err := k.run(ctx, c, out)
		if err == nil && done.answered && done.name != "KeyboardInterrupt" { // else it may not have come to our orders

			k.epoch = env.epoch
		}
		return err
	}
	if err := s.translate(k, env, c.orders.Env); err != nil {
		return err
	}
	_, err := k.run(ctx, c, out)
	return err
}

// translate brings a kernel that does not read our metadata to env, with extra
// variables on top, by code in its own language.
func (s *Service) translate(k *kernel, env environment, extra map[string]string) error {
	d, ok := dialectOf(k.spec.Name)
	if !ok {
		return nil
	}
	var lines []string
	if k.epoch != env.epoch {
		stale := maps.Clone(k.applied)
		maps.DeleteFunc(stale, func(name, _ string) bool { _, ok := env.values[name]; return ok })
		lines = slices.Concat(d.restore(stale, nil), d.cover(env.values))
		if d.reseed != "" {
			lines = append(lines, d.reseed)
		}
	}
	lines = append(lines, d.cover(extra)...)
	if len(lines) == 0 {
		return nil
	}
	if err := s.silently(s.life, k, strings.Join(lines, "\n")); err != nil {
		return err
	}
	k.epoch, k.applied = env.epoch, env.values
	return nil
}

// cleanUp takes the variables of one execution back where the kernel did not do it.
// The caller holds k.busy.
func (s *Service) cleanUp(k *kernel, extra map[string]string) {
	if k.spec.prepared || len(extra) == 0 || !k.alive() {
		return
	}
	if d, ok := dialectOf(k.spec.Name); ok {
		if err := s.silently(s.life, k, strings.Join(d.restore(extra, k.applied), "\n")); err != nil {
			s.opts.Log.Debug("environment of a cell not taken back", "err", err)
		}
	}
}

// silently runs code that the user does not see. The caller holds k.busy.
func (s *Service) silently(ctx context.Context, k *kernel, code string) error {
	done, err := k.run(ctx, cell{code: code, silent: true}, nowhere{})
	if err == nil && done.failed {
		err = hearth.Errorf(hearth.Unavailable, "preparing the kernel failed: %s: %s", done.name, clip(done.value))
	}
	return err
}

// quietly runs a silent cell in the current environment, waiting for its turn.
func (s *Service) quietly(ctx context.Context, k *kernel, c cell) error {
	select {
	case k.busy <- struct{}{}:
	case <-k.stop:
		_, cause := k.end()
		return cause
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-k.busy }()
	if !k.spec.prepared {
		return s.silently(ctx, k, c.code)
	}
	env := s.environment()
	c.silent, c.orders.Epoch, c.orders.Globals = true, env.epoch, env.values
	done, err := k.run(ctx, c, nowhere{})
	if err != nil {
		return err
	}
	if done.failed {
		return hearth.Errorf(hearth.Unavailable, "preparing the kernel failed: %s: %s", done.name, clip(done.value))
	}
	k.epoch = env.epoch
	return nil
}

// nowhere is a sink for output that nobody reads.
type nowhere struct{}

func (nowhere) emit(any) error { return nil }
