package builder

import (
	"context"
	"fmt"
	"maps"
	"path"
	"strings"
	"time"

	"hearth/internal/hearth"
	"hearth/internal/image"
	"hearth/internal/node"
)

const (
	stepBase     = "base"
	stepFinalize = "finalize"
)

// layerPrefix begins the blob keys of layers; the rest is their hash.
const layerPrefix = "layers/"

// make does the work of one build. On failure it has removed what it made.
func (b *Builder) make(ctx context.Context, j *job) (err error) {
	j.log.add(Info, stepBase, fmt.Sprintf("Building template %s/%s", j.build.Template, j.build.ID))
	j.build.Status = hearth.BuildBuilding
	if err := b.deps.Rows.UpdateBuild(ctx, &j.build); err != nil {
		return err
	}
	if err := b.configure(ctx, j); err != nil {
		return err
	}
	layer, err := b.rootfs(ctx, j)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			b.undo(context.WithoutCancel(ctx), j)
		}
	}()
	j.build.Layers = []string{layer}
	if b.deps.DriverKey == "" {
		return b.deps.Rows.UpdateBuild(ctx, &j.build)
	}
	j.build.Warm = hearth.NewSnapshotID() // in the row before it exists: a sweep finds it
	if err := b.deps.Rows.UpdateBuild(ctx, &j.build); err != nil {
		return err
	}
	return b.warm(ctx, j)
}

// configure takes over what the source says of its programs; the recipe wins.
func (b *Builder) configure(ctx context.Context, j *job) error {
	src, ok := j.recipe.Source.(image.Configured)
	if !ok {
		return nil
	}
	c, err := src.Config(ctx)
	if err != nil {
		return err
	}
	env := maps.Clone(c.Env)
	maps.Copy(env, j.recipe.Env)
	if err := checkEnv(env); err != nil {
		return err
	}
	j.build.Env = env
	if j.build.User == "" && c.User != "" {
		j.build.User = c.User
	}
	if j.build.Workdir == "" && path.IsAbs(c.Workdir) {
		j.build.Workdir = path.Clean(c.Workdir)
	}
	return nil
}

// rootfs returns the key of the build's layer in the blob store.
func (b *Builder) rootfs(ctx context.Context, j *job) (string, error) {
	if layer := b.reuse(ctx, j); layer != "" {
		j.log.add(Info, stepBase, "CACHED [base] root file system")
		return layer, nil
	}
	img, err := b.deps.Images.Make(ctx, j.recipe.Source, func(e image.Event) { j.log.add(Info, stepBase, describe(e)) })
	if err != nil {
		return "", err
	}
	key := layerPrefix + img.SHA256
	return key, b.deps.Blobs.Adopt(ctx, key, img.Path)
}

// reuse finds a layer of the same image in an earlier build of the template.
func (b *Builder) reuse(ctx context.Context, j *job) string {
	list, err := b.deps.Rows.ListBuilds(ctx, j.build.Template)
	if err != nil {
		return "" // making it anew is always right
	}
	for _, old := range list {
		if old.Status == hearth.BuildReady && strings.HasPrefix(old.Source, j.image+"-") && len(old.Layers) == 1 && b.present(ctx, old.Layers) {
			return old.Layers[0]
		}
	}
	return ""
}

// describe makes a log line of a step's progress: what, how much, how long.
func describe(e image.Event) string {
	s := "[base] " + e.Message
	switch {
	case e.Unit == "bytes":
		s += fmt.Sprintf(", %d MiB", (e.Done+1<<19)>>20)
	case e.Total > 0 && e.Unit != "":
		s += fmt.Sprintf(", %d of %d %s", e.Done, e.Total, e.Unit)
	case e.Done > 0 && e.Unit != "":
		s += fmt.Sprintf(" (%d %s)", e.Done, e.Unit)
	}
	return s + fmt.Sprintf(" [%.1f s]", e.Elapsed.Seconds())
}

// warm boots a machine, waits until its start command is ready, and keeps its
// state as the build's snapshot.
func (b *Builder) warm(ctx context.Context, j *job) error {
	id := hearth.BuildMachineID(j.build.ID)
	token := string(hearth.NewSnapshotID()) // random; Forget takes it out of the snapshot
	if err := b.start(ctx, j, id, token); err != nil {
		return err
	}
	if err := b.prepare(ctx, j, b.deps.Guest(id, token)); err != nil {
		return err
	}
	j.log.add(Info, stepFinalize, "Keeping the state of the running machine")
	snap, err := b.deps.Node.Pause(ctx, id, node.PauseRequest{Into: j.build.Warm, Forget: true})
	if err != nil {
		return err
	}
	snap.Build = j.build.ID
	return b.deps.Rows.CreateSnapshot(ctx, snap)
}

// retryFor is how long a build waits for room on a busy node.
const retryFor = 2 * time.Minute

func (b *Builder) start(ctx context.Context, j *job, id hearth.SandboxID, token string) error {
	now := time.Now()
	req := node.StartRequest{
		Token: token,
		Build: j.build,
		Sandbox: hearth.Sandbox{
			ID: id, Template: j.build.Template, Build: j.build.ID, State: hearth.Creating, Resources: j.build.Resources,
			Env: j.build.Env, CreatedAt: now, StartedAt: now, EndsAt: now.Add(maxBuild), Generation: 1, Launch: 1,
		},
	}
	for wait := time.Second; ; wait *= 2 {
		_, err := b.deps.Node.Start(ctx, req)
		kind := hearth.KindOf(err)
		if err == nil || kind != hearth.ResourceExhausted && kind != hearth.Unavailable || time.Since(now) > retryFor {
			return err
		}
		j.log.add(Info, stepFinalize, "Waiting for room on the node")
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

// prepare runs the start command and waits for the ready command to succeed.
func (b *Builder) prepare(ctx context.Context, j *job, g Guest) error {
	r := j.recipe
	command := func(line string) Command {
		return Command{Line: line, User: j.build.User, Dir: j.build.Workdir, Env: j.build.Env}
	}
	stream, stop := context.WithCancel(ctx) // the start command lives on when its output is no longer read
	defer stop()
	var exited <-chan int
	if r.Start != "" {
		j.log.add(Info, stepFinalize, "Running start command: "+r.Start)
		var err error
		exited, err = g.Start(stream, command(r.Start), func(o Output) { j.log.add(Info, stepFinalize, "[start] ["+o.Stream+"]: "+o.Text) })
		if err != nil {
			return hearth.Wrap(hearth.FailedPrecondition, err, "start command failed: %s", reason(err))
		}
	}
	if r.Ready == "" {
		return nil
	}
	j.log.add(Info, stepFinalize, "Waiting for template to be ready: "+r.Ready)
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, maxReady,
		hearth.Errorf(hearth.DeadlineExceeded, "ready command timed out after %s", maxReady))
	defer cancel()
	var last string
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		exit, err := g.Run(ctx, command(r.Ready), func(o Output) { last = o.Text })
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return hearth.Wrap(hearth.FailedPrecondition, err, "failed to run command '%s': command failed: %s", r.Ready, reason(err))
		}
		if exit == 0 {
			j.log.add(Info, stepFinalize, fmt.Sprintf("Template is ready [%.1f s]", time.Since(began).Seconds()))
			return nil
		}
		if wait == 2*time.Second {
			j.log.add(Debug, stepFinalize, fmt.Sprintf("not ready: exit status %d %s", exit, last))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case code, ok := <-exited:
			timer.Stop()
			if ok && code != 0 {
				return hearth.Errorf(hearth.FailedPrecondition, "start command failed: exit status %d", code)
			}
			exited = nil // it went to the background by itself
		case <-timer.C:
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
