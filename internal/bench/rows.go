package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"hearth/client"
	"hearth/internal/bench/figure"
	"hearth/internal/bench/stock"
	"hearth/internal/guest"
)

// What sandboxes are asked, and have to answer.
const (
	echoLine   = "echo 42"
	cellCode   = "6*7"
	cellResult = "42"
	life       = 10 * time.Minute // of a sandbox, should we not kill it
)

func (r *run) create(ctx context.Context, template string) (*client.Sandbox, error) {
	return r.server.client.Create(ctx, client.CreateOptions{Template: template, Timeout: life})
}

// kill ends a sandbox. One that cannot be killed ends with its server.
func (r *run) kill(ctx context.Context, sb *client.Sandbox) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	if err := sb.Kill(ctx); err != nil && !client.NotFound(err) {
		r.say("sandbox %s is left to the server: %v", sb.ID, err)
	}
}

// warmups are runs before those that count: the first uses of anything are slower.
const warmups = 2

// sandboxed measures from a create to what work returns, once the server is at
// rest. It reports whether the machine came from a pool.
func (r *run) sandboxed(ctx context.Context, template string, work func(*client.Sandbox) error) (took time.Duration, pooled bool, err error) {
	r.server.settle(ctx)
	ready := r.server.ready()
	began := time.Now()
	sb, err := r.create(ctx, template)
	if err != nil {
		return 0, false, err
	}
	defer r.kill(ctx, sb)
	if err := work(sb); err != nil {
		return 0, false, err
	}
	took = time.Since(began)
	m, err := r.server.of(sb.ID)
	return took, ready[m.Handle.ID], err
}

func echo(ctx context.Context) func(*client.Sandbox) error {
	return func(sb *client.Sandbox) error {
		res, err := sb.Commands.Run(ctx, echoLine, client.RunOptions{})
		if err == nil && strings.TrimSpace(res.Stdout) != "42" {
			err = fmt.Errorf("echo: %q: %w", res.Stdout, errUnexpected)
		}
		return err
	}
}

// hits says what the figure of a pool means.
func hits(pooled, of int) string {
	return fmt.Sprintf("one at a time, each with the pool filled and the host at rest; %d of %d creates were served by it", pooled, of)
}

// createEcho is row 1.
func (r *run) createEcho(ctx context.Context) ([]figure.Figure, error) {
	ours := figure.Milliseconds("create to the output of echo, API")
	runc, runsc := figure.Milliseconds("runc run true"), samples(r.refs.first, "ms", "run true")
	bundle, err := r.trueBundle()
	if err != nil {
		return nil, err
	}
	if _, err := exec.LookPath("runc"); err != nil {
		runc.Skip("runc is not installed")
	}
	served := 0
	err = r.times(ctx, r.opts.Runs+warmups, func(ctx context.Context, i int) error {
		took, pooled, err := r.sandboxed(ctx, baseTemplate, echo(ctx))
		if err != nil || i < warmups {
			return err
		}
		if ours.Took(took); pooled {
			served++
		}
		id := fmt.Sprintf("bench-%d-true-%d", os.Getpid(), i)
		r.server.settle(ctx)
		r.contain(ctx, runc, bundle, id, "runc")
		r.contain(ctx, runsc, bundle, id, r.refs.first.Path(), "runsc", "--root="+r.runscRoot(), "--network=none", "--ignore-cgroups")
		return ctx.Err()
	})
	f := ours.Figure().Against("1", figure.Target{P50: 25, P99: 100}, runc.Figure(), runsc.Figure())
	f.Note = hits(served, f.Runs)
	return []figure.Figure{f}, err
}

// contain measures a run of a bundle by an OCI runtime that this host may lack
// the means for: at the first failure the figure is left out.
func (r *run) contain(ctx context.Context, s *figure.Samples, bundle, id string, runtime ...string) {
	if s.Skips() {
		return
	}
	began := time.Now()
	err := stock.Quiet(ctx, runtime[0], append(runtime[1:len(runtime):len(runtime)], "run", "--bundle", bundle, id)...)
	if err == nil {
		s.Took(time.Since(began))
		return
	}
	s.Skip(err.Error())
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	if exec.CommandContext(clean, runtime[0], append(runtime[1:len(runtime):len(runtime)], "delete", "--force", id)...).Run() != nil {
		r.say("container %s may be left", id)
	}
}

// trueBundle writes an OCI bundle that runs true with the host's programs.
func (r *run) trueBundle() (string, error) {
	dir := filepath.Join(r.dir, "true")
	var mounts strings.Builder
	for _, d := range []string{"/usr", "/bin", "/lib", "/lib64"} {
		if _, err := os.Stat(d); err != nil {
			continue
		}
		if err := os.MkdirAll(filepath.Join(dir, "rootfs", d), 0o755); err != nil {
			return "", err
		}
		fmt.Fprintf(&mounts, `,{"destination":%q,"type":"bind","source":%q,"options":["rbind","ro"]}`, d, d)
	}
	for _, d := range []string{"proc", "dev"} {
		if err := os.MkdirAll(filepath.Join(dir, "rootfs", d), 0o755); err != nil {
			return "", err
		}
	}
	spec := `{"ociVersion":"1.0.2","root":{"path":"rootfs","readonly":true},
		"process":{"user":{"uid":0,"gid":0},"args":["/usr/bin/true"],"env":["PATH=/usr/bin:/bin"],"cwd":"/"},
		"mounts":[{"destination":"/proc","type":"proc","source":"proc"}` + mounts.String() + `],
		"linux":{"namespaces":[{"type":"pid"},{"type":"mount"},{"type":"ipc"},{"type":"uts"},{"type":"network"}]}}`
	return dir, os.WriteFile(filepath.Join(dir, "config.json"), []byte(spec), 0o600)
}

// cell runs the first cell of a sandbox.
func cell(ctx context.Context) func(*client.Sandbox) error {
	return func(sb *client.Sandbox) error {
		res, err := sb.Code.Run(ctx, cellCode, client.CodeOptions{})
		if err == nil && res.Text() != cellResult {
			err = fmt.Errorf("first cell: %q: %w", res.Text(), errUnexpected)
		}
		return err
	}
}

// firstCell is row 3.
func (r *run) firstCell(ctx context.Context) ([]figure.Figure, error) {
	ours := figure.Milliseconds("create to the result of the first cell, API")
	ref := samples(r.refs.first, "ms", "restore to the first cell")
	served, every := 0, max(r.opts.Runs/r.slow(), 1)
	err := r.times(ctx, r.opts.Runs+warmups, func(ctx context.Context, i int) error {
		took, pooled, err := r.sandboxed(ctx, codeTemplate, cell(ctx))
		if err != nil || i < warmups {
			return err
		}
		if ours.Took(took); pooled {
			served++
		}
		if i%every == 0 {
			r.restored(ctx, ref, origin{r.refs.first, codeTemplate}, func(m *stock.Machine) error {
				return errors.Join(m.Unseal(ctx), stockCell(ctx, m))
			})
		}
		return ctx.Err()
	})
	f := ours.Figure().Against("3", figure.Target{P50: 120}, ref.Figure())
	f.Note = hits(served, f.Runs)
	return []figure.Figure{f}, err
}

// restored measures a stock restore to what work returns. The first failure
// leaves the figure out.
func (r *run) restored(ctx context.Context, s *figure.Samples, of origin, work func(*stock.Machine) error) {
	if s.Skips() {
		return
	}
	if err := r.restoredOnce(ctx, s, of, work); err != nil {
		s.Skip(err.Error())
	}
}

func (r *run) restoredOnce(ctx context.Context, s *figure.Samples, of origin, work func(*stock.Machine) error) (err error) {
	m, err := r.prepare(ctx, of)
	if err != nil {
		return err
	}
	r.server.settle(ctx)
	defer func() { err = errors.Join(err, m.Close(ctx)) }()
	began := time.Now()
	if err := m.Start(ctx); err != nil {
		return err
	}
	if err := work(m); err != nil {
		return err
	}
	s.Took(time.Since(began))
	return nil
}

// emptyPool is row 4.
func (r *run) emptyPool(ctx context.Context) ([]figure.Figure, error) {
	var figures []figure.Figure
	for _, t := range []struct {
		template string
		target   figure.Target
	}{{baseTemplate, figure.Target{Ratio: 0.6}}, {codeTemplate, figure.Target{Ratio: 0.4}}} {
		blank := 0
		ours := figure.Milliseconds("pool empty, " + t.template + ", create to the first HTTP answer, API")
		refs := r.refs.samples("ms", "restore to the first HTTP answer")
		err := r.times(ctx, r.slow()+1, func(ctx context.Context, i int) error {
			took, _, err := r.sandboxed(ctx, t.template, func(sb *client.Sandbox) error {
				if i > 0 && restoredIntoBlank(sb) {
					blank++
				}
				return health(ctx)(sb)
			})
			if err != nil || i < 1 {
				return err
			}
			ours.Took(took)
			for n, p := range r.refs.programs() {
				r.restored(ctx, refs[n], origin{p, t.template}, func(m *stock.Machine) error { return m.Answer(ctx) })
			}
			return ctx.Err()
		})
		f := ours.Figure().Against("4", t.target, sums(refs)...)
		f.Note = fmt.Sprintf("one at a time, with %d machines without a state (node.blanks) behind the empty pool; %d of %d creates were restored into one", r.server.cfg.Node.Blanks, blank, f.Runs)
		figures = append(figures, f)
		if err != nil {
			return figures, err
		}
	}
	return figures, nil
}

// restoredIntoBlank says, by the server's own account, whether a blank was there.
func restoredIntoBlank(sb *client.Sandbox) bool {
	return slices.ContainsFunc(sb.Timing, func(t client.Timing) bool { return t.Name == "agent.restore" })
}

// health asks the daemon whether it is well, through the edge.
func health(ctx context.Context) func(*client.Sandbox) error {
	return func(sb *client.Sandbox) error {
		resp, err := sb.Request(ctx, http.MethodGet, guest.Port, "/health", nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode >= 300 {
			return fmt.Errorf("health: %s: %w", resp.Status, errUnexpected)
		}
		return nil
	}
}
