package builder

import (
	"context"
	"errors"
	"time"

	"hearth/internal/hearth"
	"hearth/internal/store"
)

const pageSize = 100

// Sweep puts away what an earlier process left half-made, in all teams' builds:
// builds that nobody works on become errors, their machines and snapshots go,
// and so do layers that no build has. Call it once, when the node is open and
// before Run or Enqueue.
func (b *Builder) Sweep(ctx context.Context, teams []hearth.TeamID) error {
	if err := b.deps.Images.Sweep(ctx); err != nil {
		return err
	}
	list, err := b.deps.Node.List(ctx)
	if err != nil {
		return err
	}
	for _, i := range list {
		if i.ID.OfBuild() {
			if err := b.deps.Node.Stop(ctx, i.ID, "build interrupted"); err != nil {
				return err
			}
		}
	}
	used := map[string]bool{}
	for _, team := range teams {
		err := b.eachBuild(ctx, team, func(build *hearth.Build) error {
			if build.Status == hearth.BuildWaiting || build.Status == hearth.BuildBuilding {
				return b.abandon(ctx, build)
			}
			for _, l := range build.Layers {
				used[l] = true
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return b.sweepLayers(ctx, used)
}

func (b *Builder) abandon(ctx context.Context, build *hearth.Build) error {
	if err := b.scrap(ctx, build); err != nil {
		return err
	}
	build.Status, build.FinishedAt = hearth.BuildError, time.Now()
	build.Reason = "the build was interrupted because the server died; build the template again"
	build.Layers, build.Warm = nil, nil
	b.deps.Log.Warn("interrupted build put away", "template", build.Template, "build", build.ID)
	return b.deps.Rows.FinishBuild(ctx, build)
}

func (b *Builder) sweepLayers(ctx context.Context, used map[string]bool) error {
	var stale []string
	for info, err := range b.deps.Blobs.List(ctx, layerPrefix) {
		if err != nil {
			return err
		}
		if !used[info.Key] {
			stale = append(stale, info.Key)
		}
	}
	for _, key := range stale {
		if err := b.deps.Blobs.Delete(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

// eachBuild calls do for the builds of a team's templates.
func (b *Builder) eachBuild(ctx context.Context, team hearth.TeamID, do func(*hearth.Build) error) error {
	for page := (store.Page{Limit: pageSize}); ; {
		list, next, err := b.deps.Rows.ListTemplates(ctx, team, page)
		if err != nil {
			return err
		}
		for _, t := range list {
			builds, err := b.deps.Rows.ListBuilds(ctx, t.ID)
			if err != nil {
				return err
			}
			for _, build := range builds {
				if err := do(build); err != nil {
					return err
				}
			}
		}
		if next == "" {
			return nil
		}
		page.Cursor = next
	}
}

// undo removes what a build that failed has made.
func (b *Builder) undo(ctx context.Context, j *job) {
	ctx, cancel := context.WithTimeout(ctx, maxCleanup)
	defer cancel()
	if err := b.scrap(ctx, &j.build); err != nil {
		b.deps.Log.Error("a failed build left something behind; the next start removes it", "build", j.build.ID, "err", err)
	}
}

// scrap removes a build's machine and snapshots. Its layer is whole and may serve
// the next try, or another template of the same content; Sweep removes it if not.
func (b *Builder) scrap(ctx context.Context, build *hearth.Build) error {
	id := hearth.BuildMachineID(build.ID)
	if err := b.deps.Node.Stop(ctx, id, "build failed"); err != nil {
		return err
	}
	return b.dropWarm(ctx, build)
}

// dropSnapshot removes a snapshot, files before row, so that none is forgotten.
func (b *Builder) dropSnapshot(ctx context.Context, id hearth.SnapshotID) error {
	if err := b.deps.Shelf.Remove(ctx, id); err != nil {
		return err
	}
	if err := b.deps.Rows.DeleteSnapshot(ctx, id); err != nil && hearth.KindOf(err) != hearth.NotFound {
		return err
	}
	return nil
}

// retire removes what the template's other builds kept for drivers that this
// node no longer has. Their layers stay: sandboxes may run on them.
func (b *Builder) retire(ctx context.Context, j *job) {
	list, err := b.deps.Rows.ListBuilds(ctx, j.build.Template)
	for _, old := range list {
		if err != nil {
			break
		}
		if old.ID == j.build.ID {
			continue
		}
		for driver, id := range old.Warm {
			snap, serr := b.deps.Rows.Snapshot(ctx, id)
			if serr == nil && snap.Key != b.key(driver) {
				err = errors.Join(err, b.dropSnapshot(ctx, id))
			}
		}
	}
	if err != nil {
		b.deps.Log.Warn("an outdated snapshot was not removed", "template", j.recipe.Name, "err", err)
	}
}
