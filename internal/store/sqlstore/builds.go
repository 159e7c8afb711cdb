package sqlstore

import (
	"context"
	"database/sql"
	"errors"

	"hearth/internal/hearth"
	"hearth/internal/store"
)

const buildColumns = `id, template, status, reason, source, resources_json, driver, layers_json, warm_json,
	start_line, ready_line, env_json, username, workdir, created_at, finished_at`

func scanBuild(row scanner) (*hearth.Build, error) {
	var b hearth.Build
	err := row.Scan(&b.ID, &b.Template, &b.Status, &b.Reason, &b.Source, fromJSON{&b.Resources}, &b.Driver, fromJSON{&b.Layers},
		fromJSON{&b.Warm}, &b.Start, &b.Ready, fromJSON{&b.Env}, &b.User, &b.Workdir, at{&b.CreatedAt}, at{&b.FinishedAt})
	return &b, err
}

// buildJSON holds the JSON columns of a build.
type buildJSON struct{ resources, layers, warm, env string }

func encodeBuild(b *hearth.Build) (e buildJSON, err error) {
	if e.resources, err = inJSON(b.Resources); err != nil {
		return e, err
	}
	if e.layers, err = inJSON(b.Layers); err != nil {
		return e, err
	}
	if e.warm, err = inJSON(b.Warm); err != nil {
		return e, err
	}
	e.env, err = inJSON(b.Env)
	return e, err
}

// CreateBuild implements store.Templates.
func (s *Store) CreateBuild(ctx context.Context, b *hearth.Build) error {
	if err := store.CheckText("build", b); err != nil {
		return err
	}
	e, err := encodeBuild(b)
	if err != nil {
		return err
	}
	return s.change(ctx, durable, func(tx *sql.Tx) error {
		_, err := exec(tx, `INSERT INTO builds (`+buildColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			b.ID, b.Template, b.Status, b.Reason, b.Source, e.resources, b.Driver, e.layers, e.warm,
			b.Start, b.Ready, e.env, b.User, b.Workdir, nanos(b.CreatedAt), nanos(b.FinishedAt))
		if taken(err) {
			return hearth.Wrap(hearth.AlreadyExists, err, "build %q exists already", b.ID)
		}
		if dangling(err) {
			return hearth.Wrap(hearth.NotFound, err, "template '%s' not found", b.Template)
		}
		return err
	})
}

// Build implements store.Templates.
func (s *Store) Build(ctx context.Context, id hearth.BuildID) (*hearth.Build, error) {
	return oneBuild(ctx, s.read, id)
}

func oneBuild(ctx context.Context, q querier, id hearth.BuildID) (*hearth.Build, error) {
	b, err := scanBuild(q.QueryRowContext(ctx, `SELECT `+buildColumns+` FROM builds WHERE id = ?`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, hearth.Errorf(hearth.NotFound, "build '%s' not found", id)
	}
	if err != nil {
		return nil, failed(err, "the metadata store could not be read")
	}
	return b, nil
}

// ListBuilds implements store.Templates.
func (s *Store) ListBuilds(ctx context.Context, template hearth.TemplateID) ([]*hearth.Build, error) {
	return collect(ctx, s.read, scanBuild, `SELECT `+buildColumns+` FROM builds
		WHERE template = ? ORDER BY created_at DESC, id DESC`, template)
}

// UpdateBuild implements store.Templates.
func (s *Store) UpdateBuild(ctx context.Context, b *hearth.Build) error {
	if store.Finished(b.Status) {
		return hearth.Errorf(hearth.InvalidArgument, "build status %q is final: finish the build instead", b.Status)
	}
	return s.change(ctx, durable, func(tx *sql.Tx) error {
		_, err := writeBuild(ctx, tx, b)
		return err
	})
}

// FinishBuild implements store.Templates.
func (s *Store) FinishBuild(ctx context.Context, b *hearth.Build) error {
	if !store.Finished(b.Status) {
		return hearth.Errorf(hearth.InvalidArgument, "build status %q is not final", b.Status)
	}
	return s.change(ctx, durable, func(tx *sql.Tx) error {
		old, err := writeBuild(ctx, tx, b)
		if err != nil || b.Status != hearth.BuildReady {
			return err
		}
		_, err = exec(tx, `UPDATE templates SET build = ?, updated_at = ? WHERE id = ? AND NOT EXISTS
			(SELECT 1 FROM builds b WHERE b.id = templates.build AND b.created_at > ?)`,
			b.ID, nanos(b.FinishedAt), old.Template, nanos(old.CreatedAt))
		return err
	})
}

// writeBuild replaces an unfinished build's row and returns what it was; what it
// belongs to and when it was created stay as they were.
func writeBuild(ctx context.Context, tx *sql.Tx, b *hearth.Build) (*hearth.Build, error) {
	if err := store.CheckText("build", b); err != nil {
		return nil, err
	}
	e, err := encodeBuild(b)
	if err != nil {
		return nil, err
	}
	old, err := oneBuild(context.WithoutCancel(ctx), tx, b.ID)
	if err != nil {
		return nil, err
	}
	n, err := exec(tx, `UPDATE builds SET status = ?, reason = ?, source = ?, resources_json = ?, driver = ?, layers_json = ?,
		warm_json = ?, start_line = ?, ready_line = ?, env_json = ?, username = ?, workdir = ?, finished_at = ?
		WHERE id = ? AND status NOT IN ('ready', 'error')`,
		b.Status, b.Reason, b.Source, e.resources, b.Driver, e.layers, e.warm, b.Start, b.Ready, e.env,
		b.User, b.Workdir, nanos(b.FinishedAt), b.ID)
	if err == nil && n == 0 {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "build '%s' is finished", b.ID)
	}
	return old, err
}
