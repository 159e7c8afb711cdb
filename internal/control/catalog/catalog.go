// Package catalog finds what sandboxes are made of: templates, their builds, and
// the warm snapshots of these.
package catalog

import (
	"context"
	"log/slog"

	"hearth/internal/control/wish"
	"hearth/internal/hearth"
)

// metadata is the part of store.Store that a catalog reads.
type metadata interface {
	ResolveTemplate(ctx context.Context, team hearth.TeamID, nameOrID string) (*hearth.Template, *hearth.Build, error)
	ListBuilds(ctx context.Context, template hearth.TemplateID) ([]*hearth.Build, error)
	Snapshot(ctx context.Context, id hearth.SnapshotID) (*hearth.Snapshot, error)
}

// Deps is what a catalog is made of.
type Deps struct {
	Store metadata
	Log   *slog.Logger
}

// Catalog is all templates.
type Catalog struct{ deps Deps }

// New returns a catalog. It reads nothing.
func New(d Deps) *Catalog { return &Catalog{d} }

func missing(err error) bool { return err != nil && hearth.KindOf(err) == hearth.NotFound }

// Resolve finds what a template reference names and what can be started of it.
func (c *Catalog) Resolve(ctx context.Context, team hearth.TeamID, ref wish.Ref) (*hearth.Template, *hearth.Build, error) {
	t, b, err := c.deps.Store.ResolveTemplate(ctx, team, ref.Name)
	if missing(err) {
		return nil, nil, hearth.Errorf(hearth.NotFound, "template '%s' not found", ref.Name)
	}
	if err != nil && hearth.KindOf(err) == hearth.FailedPrecondition && t != nil {
		return nil, nil, c.unbuilt(ctx, t, ref)
	}
	if err != nil {
		return nil, nil, err
	}
	if ref.Tag != "" {
		return nil, nil, hearth.Errorf(hearth.NotFound, "tag '%s' does not exist for template '%s'", ref.Tag, ref.Name)
	}
	return t, b, nil
}

// unbuilt says why a template without a ready build has none.
func (c *Catalog) unbuilt(ctx context.Context, t *hearth.Template, ref wish.Ref) error {
	list, err := c.deps.Store.ListBuilds(ctx, t.ID)
	if err != nil {
		return err
	}
	if len(list) == 0 { // one that an import brings, or whose first build has not begun
		return hearth.Errorf(hearth.Unavailable, "template '%s' has no build yet", ref.Name)
	}
	if list[0].Status == hearth.BuildError {
		return hearth.Errorf(hearth.FailedPrecondition, "template '%s' could not be built: %s", ref.Name, list[0].Reason)
	}
	return hearth.Errorf(hearth.Unavailable, "template '%s' is being built", ref.Name)
}

// Warm is the snapshot that a build's sandboxes start from on a driver, nil if
// there is none: then they boot and run the build's commands.
func (c *Catalog) Warm(ctx context.Context, b *hearth.Build, driver string) (*hearth.Snapshot, error) {
	id := b.Warm[driver]
	if id == "" {
		return nil, nil
	}
	s, err := c.deps.Store.Snapshot(ctx, id)
	if missing(err) {
		c.deps.Log.Warn("a build's warm snapshot is missing, booting instead", "build", b.ID, "snapshot", id)
		return nil, nil
	}
	return s, err
}
