package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"hearth/internal/hearth"
	"hearth/internal/store"
)

const sandboxColumns = `s.id, s.generation, s.launch, s.team, s.template, s.alias, s.build, s.node, s.snapshot,
	s.wanted, s.driver, s.isolation, s.state, s.stop_reason, s.resources_json, s.network_json, s.env_json, s.metadata_json, s.unsecured, s.on_timeout,
	s.auto_resume, s.timeout, s.created_at, s.started_at, s.ends_at, s.head, s.lifecycle_json`

func scanSandbox(row scanner) (*hearth.Sandbox, error) {
	var s hearth.Sandbox
	err := row.Scan(&s.ID, &s.Generation, &s.Launch, &s.Team, &s.Template, &s.Alias, &s.Build, &s.Node, &s.Snapshot,
		&s.Wanted, &s.Driver, &s.Isolation, &s.State, &s.StopReason, fromJSON{&s.Resources}, fromJSON{&s.Network}, fromJSON{&s.Env}, fromJSON{&s.Metadata},
		&s.Open, &s.OnTimeout, &s.AutoResume, &s.Timeout, at{&s.CreatedAt}, at{&s.StartedAt}, at{&s.EndsAt},
		&s.Head, fromJSON{&s.Lifecycle})
	return &s, err
}

// encoded holds the JSON columns of a sandbox.
type encoded struct{ resources, network, env, metadata, lifecycle string }

func encode(s *hearth.Sandbox) (e encoded, err error) {
	if e.resources, err = inJSON(s.Resources); err != nil {
		return e, err
	}
	if e.network, err = inJSON(s.Network); err != nil {
		return e, err
	}
	if e.env, err = inJSON(s.Env); err != nil {
		return e, err
	}
	if e.lifecycle, err = inJSON(s.Lifecycle); err != nil {
		return e, err
	}
	e.metadata, err = inJSON(s.Metadata)
	return e, err
}

// worth says how durable a write of the row must be. See the package comment.
func worth(s *hearth.Sandbox) durability {
	if s.Snapshot != "" && (s.State == hearth.Paused || s.State == hearth.Stopping) {
		return durable
	}
	return volatile
}

// Statements that are kept prepared.
const (
	selectSandbox = `SELECT ` + sandboxColumns + ` FROM sandboxes s WHERE s.id = ?`
	insertSandbox = `INSERT INTO sandboxes (id, generation, launch, team, template, alias, build, node, snapshot,
		wanted, driver, isolation, state, stop_reason, resources_json, network_json, env_json, metadata_json, unsecured, on_timeout,
		auto_resume, timeout, created_at, started_at, ends_at, head, lifecycle_json)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`
	updateSandbox = `UPDATE sandboxes SET generation = ?, launch = ?, template = ?, alias = ?, build = ?, node = ?,
		snapshot = ?, wanted = ?, driver = ?, isolation = ?, state = ?, stop_reason = ?, resources_json = ?, network_json = ?, env_json = ?,
		metadata_json = ?, unsecured = ?, on_timeout = ?, auto_resume = ?, timeout = ?, started_at = ?, ends_at = ?,
		head = ?, lifecycle_json = ?
		WHERE id = ? AND generation = ?`
)

// CreateSandbox implements store.Sandboxes.
func (s *Store) CreateSandbox(ctx context.Context, sb *hearth.Sandbox) error {
	if err := store.CheckText("sandbox", sb); err != nil {
		return err
	}
	if sb.ID == "" || sb.Generation < 1 {
		return hearth.Errorf(hearth.InvalidArgument, "a sandbox needs an ID and a positive generation")
	}
	e, err := encode(sb)
	if err != nil {
		return err
	}
	return s.change(ctx, worth(sb), func(tx *sql.Tx) error {
		_, err := touched(tx.Stmt(s.insertSandbox).Exec(
			sb.ID, sb.Generation, sb.Launch, sb.Team, sb.Template, sb.Alias, sb.Build, sb.Node, sb.Snapshot,
			sb.Wanted, sb.Driver, sb.Isolation, sb.State, sb.StopReason, e.resources, e.network, e.env, e.metadata, sb.Open, sb.OnTimeout,
			sb.AutoResume, int64(sb.Timeout), nanos(sb.CreatedAt), nanos(sb.StartedAt), nanos(sb.EndsAt),
			sb.Head, e.lifecycle))
		if taken(err) {
			return hearth.Wrap(hearth.AlreadyExists, err, "sandbox %q exists already", sb.ID)
		}
		if err != nil {
			return err
		}
		return insertMetadata(tx, sb)
	})
}

func insertMetadata(tx *sql.Tx, sb *hearth.Sandbox) error {
	for k, v := range sb.Metadata {
		_, err := exec(tx, `INSERT INTO sandbox_metadata (sandbox, key, value, started_at) VALUES (?, ?, ?, ?)`,
			sb.ID, k, v, nanos(sb.StartedAt))
		if err != nil {
			return err
		}
	}
	return nil
}

// Sandbox implements store.Sandboxes.
func (s *Store) Sandbox(ctx context.Context, id hearth.SandboxID) (*hearth.Sandbox, error) {
	sb, err := scanSandbox(s.selectSandbox.QueryRowContext(ctx, id))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, hearth.Errorf(hearth.NotFound, "sandbox %q not found", id)
	}
	if err != nil {
		return nil, failed(err, "the metadata store could not be read")
	}
	return sb, nil
}

// updateTries is how often UpdateSandbox tries before it gives up.
const updateTries = 8

// UpdateSandbox implements store.Sandboxes. It reads outside of the write
// transaction, so that change never holds up other writers.
func (s *Store) UpdateSandbox(ctx context.Context, id hearth.SandboxID, change func(*hearth.Sandbox) error) (*hearth.Sandbox, error) {
	for range updateTries {
		sb, err := s.Sandbox(ctx, id)
		if err != nil {
			return nil, err
		}
		before := *sb
		metadata, err := inJSON(sb.Metadata) // now: change may write into the map
		if err != nil {
			return nil, err
		}
		if err := change(sb); err != nil {
			return nil, err
		}
		sb.ID, sb.Team, sb.CreatedAt = before.ID, before.Team, before.CreatedAt
		sb.Generation = before.Generation + 1
		sb.StartedAt, sb.EndsAt = sb.StartedAt.UTC(), sb.EndsAt.UTC()
		if err := store.CheckText("sandbox", sb); err != nil {
			return nil, err
		}
		swapped, err := s.swap(ctx, &before, metadata, sb)
		if err != nil {
			return nil, err
		}
		if swapped {
			return sb, nil
		}
	}
	return nil, hearth.Errorf(hearth.Aborted, "sandbox %q is being changed by others; try again", id)
}

// swap writes after if the row is still before, whose metadata was the given JSON.
func (s *Store) swap(ctx context.Context, before *hearth.Sandbox, metadata string, after *hearth.Sandbox) (bool, error) {
	e, err := encode(after)
	if err != nil {
		return false, err
	}
	var n int64
	err = s.change(ctx, worth(after), func(tx *sql.Tx) (err error) {
		n, err = touched(tx.Stmt(s.updateSandbox).Exec(
			after.Generation, after.Launch, after.Template, after.Alias, after.Build, after.Node,
			after.Snapshot, after.Wanted, after.Driver, after.Isolation, after.State, after.StopReason, e.resources, e.network, e.env,
			e.metadata, after.Open, after.OnTimeout, after.AutoResume, int64(after.Timeout), nanos(after.StartedAt), nanos(after.EndsAt),
			after.Head, e.lifecycle,
			after.ID, before.Generation))
		if err != nil || n == 0 || metadata == e.metadata && before.StartedAt.Equal(after.StartedAt) {
			return err
		}
		if _, err := exec(tx, `DELETE FROM sandbox_metadata WHERE sandbox = ?`, after.ID); err != nil {
			return err
		}
		return insertMetadata(tx, after)
	})
	return n == 1, err
}

// DueSandboxes implements store.Sandboxes.
func (s *Store) DueSandboxes(ctx context.Context, now time.Time, limit int) ([]hearth.SandboxID, error) {
	return collect(ctx, s.read, func(row scanner) (id hearth.SandboxID, err error) {
		err = row.Scan(&id)
		return id, err
	}, `SELECT id FROM sandboxes WHERE state = 'running' AND ends_at <= ? ORDER BY ends_at, id LIMIT ?`, nanos(now), limit)
}

// PurgeSandboxes implements store.Sandboxes.
func (s *Store) PurgeSandboxes(ctx context.Context, before time.Time) error {
	return s.change(ctx, volatile, func(tx *sql.Tx) error {
		_, err := exec(tx, `DELETE FROM sandboxes WHERE state = 'stopped' AND ends_at < ?`, nanos(before))
		return err
	})
}
