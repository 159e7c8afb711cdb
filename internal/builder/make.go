package builder

import (
	"context"
	"fmt"
	"maps"
	"path"
	"strings"

	"hearth/internal/hearth"
	"hearth/internal/image"
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
	return b.makeWarm(ctx, j)
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
	if _, err := b.deps.Shelf.Layers(ctx, []string{key}); hearth.KindOf(err) == hearth.FailedPrecondition {
		if err := b.deps.Blobs.Delete(ctx, key); err != nil { // damaged, or not there: Adopt would leave it alone
			return "", err
		}
	}
	return key, b.deps.Blobs.Adopt(ctx, key, img.Path)
}

// reuse finds a layer of the same image, undamaged, in an earlier build of the template.
func (b *Builder) reuse(ctx context.Context, j *job) string {
	list, err := b.deps.Rows.ListBuilds(ctx, j.build.Template)
	if err != nil {
		return "" // making it anew is always right
	}
	for _, old := range list {
		if old.Status != hearth.BuildReady || !strings.HasPrefix(old.Source, j.image+"-") || len(old.Layers) != 1 {
			continue
		}
		if _, err := b.deps.Shelf.Layers(ctx, old.Layers); err == nil {
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
