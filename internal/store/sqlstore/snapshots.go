package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"strings"

	"hearth/internal/hearth"
	"hearth/internal/store"
)

const snapshotColumns = `id, build, parent, base, driver, host_key, memory, files_json, created_at,
	sandbox, team, template, alias, tag, kind, status, after, resources_json, step, label, reason`

func scanSnapshot(row scanner) (*hearth.Snapshot, error) {
	var s hearth.Snapshot
	err := row.Scan(&s.ID, &s.Build, &s.Parent, &s.Base, &s.Driver, &s.Key, &s.Memory, fromJSON{&s.Files}, at{&s.Created},
		&s.Sandbox, &s.Team, &s.Template, &s.Alias, &s.Tag, &s.Kind, &s.Status, &s.After, fromJSON{&s.Resources},
		&s.Step, &s.Label, &s.Reason)
	return &s, err
}

// snapshotValues are the values of snapshotColumns, in order.
func snapshotValues(snap *hearth.Snapshot) ([]any, error) {
	files, err := inJSON(snap.Files)
	if err != nil {
		return nil, err
	}
	resources, err := inJSON(snap.Resources)
	if err != nil {
		return nil, err
	}
	return []any{
		snap.ID, snap.Build, snap.Parent, snap.Base, snap.Driver, snap.Key, snap.Memory, files, nanos(snap.Created),
		snap.Sandbox, snap.Team, snap.Template, snap.Alias, snap.Tag, snap.Kind, snap.Status, snap.After, resources,
		snap.Step, snap.Label, snap.Reason,
	}, nil
}

// insertSnapshot writes a new row, whose name it takes from whoever has it.
func insertSnapshot(tx *sql.Tx, snap *hearth.Snapshot) error {
	values, err := snapshotValues(snap)
	if err != nil {
		return err
	}
	if snap.Alias != "" {
		_, err := exec(tx, `UPDATE snapshots SET alias = '', tag = '' WHERE team = ? AND alias = ? AND tag = ? AND id <> ?`,
			snap.Team, snap.Alias, snap.Tag, snap.ID)
		if err != nil {
			return err
		}
	}
	_, err = exec(tx, `INSERT INTO snapshots (`+snapshotColumns+`) VALUES (?`+strings.Repeat(", ?", len(values)-1)+`)`, values...)
	if taken(err) {
		return hearth.Wrap(hearth.AlreadyExists, err, "snapshot %q exists already", snap.ID)
	}
	return err
}

// CreateSnapshot implements store.Snapshots.
func (s *Store) CreateSnapshot(ctx context.Context, snap *hearth.Snapshot) error {
	if err := store.CheckText("snapshot", snap); err != nil {
		return err
	}
	return s.change(ctx, durable, func(tx *sql.Tx) error { return insertSnapshot(tx, snap) })
}

// UpdateSnapshot implements store.Snapshots.
func (s *Store) UpdateSnapshot(ctx context.Context, id hearth.SnapshotID, change func(*hearth.Snapshot) error) (*hearth.Snapshot, error) {
	var out *hearth.Snapshot
	err := s.change(ctx, durable, func(tx *sql.Tx) error {
		snap, err := scanSnapshot(tx.QueryRow(`SELECT `+snapshotColumns+` FROM snapshots WHERE id = ?`, id))
		if errors.Is(err, sql.ErrNoRows) {
			return noSnapshot(id)
		}
		if err != nil {
			return failed(err, "the metadata store could not be read")
		}
		before := *snap
		if err := change(snap); err != nil {
			return err
		}
		snap.ID, snap.Team, snap.Created = before.ID, before.Team, before.Created
		if err := store.CheckText("snapshot", snap); err != nil {
			return err
		}
		if _, err := exec(tx, `DELETE FROM snapshots WHERE id = ?`, id); err != nil {
			return err
		}
		out = snap
		return insertSnapshot(tx, snap)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// FindSnapshots implements store.Snapshots.
func (s *Store) FindSnapshots(ctx context.Context, f store.SnapshotFilter, p store.Page) ([]*hearth.Snapshot, string, error) {
	w := &where{}
	for _, c := range []struct{ column, value string }{
		{"team", string(f.Team)}, {"sandbox", string(f.Sandbox)}, {"template", string(f.Template)}, {"alias", f.Alias}, {"tag", f.Tag},
	} {
		if c.value != "" {
			w.and(c.column+" = ?", c.value)
		}
	}
	oneOf(w, "kind", f.Kinds)
	oneOf(w, "status", f.Statuses)
	if p.Cursor != "" {
		pos, err := position(p.Cursor, false)
		if err != nil {
			return nil, "", err
		}
		w.and("(created_at, id) < (?, ?)", nanos(pos.At), pos.ID)
	}
	list, err := collect(ctx, s.read, scanSnapshot, `SELECT `+snapshotColumns+` FROM snapshots`+w.String()+
		` ORDER BY created_at DESC, id DESC LIMIT ?`, append(w.args, p.Size()+1)...)
	if err != nil || len(list) <= p.Size() {
		return list, "", err
	}
	list = list[:p.Size()]
	last := list[len(list)-1]
	return list, store.Position{At: last.Created, ID: string(last.ID)}.Cursor(), nil
}

// oneOf selects rows whose column has one of the values; of none, all rows.
func oneOf[T ~string](w *where, column string, values []T) {
	if len(values) == 0 {
		return
	}
	args := make([]any, len(values))
	for i, v := range values {
		args[i] = string(v)
	}
	w.and(column+" IN (?"+strings.Repeat(", ?", len(args)-1)+")", args...)
}

// SnapshotUses implements store.Snapshots.
func (s *Store) SnapshotUses(ctx context.Context, id hearth.SnapshotID) (store.SnapshotUses, error) {
	var u store.SnapshotUses
	err := s.read.QueryRowContext(ctx, `SELECT
		(SELECT COUNT(*) FROM sandboxes WHERE snapshot = ? AND snapshot <> '' AND state <> 'stopped'),
		(SELECT COUNT(*) FROM sandboxes WHERE head = ? AND head <> '' AND state <> 'stopped') +
		(SELECT COUNT(*) FROM snapshots WHERE after = ? AND after <> ''),
		(SELECT COUNT(*) FROM sandboxes b, snapshots s WHERE s.id = ? AND b.head = s.id AND b.head <> '' AND b.state <> 'stopped' AND b.id <> s.sandbox) +
		(SELECT COUNT(*) FROM snapshots n, snapshots s WHERE s.id = ? AND n.after = s.id AND n.after <> '' AND n.sandbox <> s.sandbox)`,
		id, id, id, id, id).Scan(&u.Sandboxes, &u.Heirs, &u.Others)
	if err != nil {
		return u, failed(err, "the metadata store could not be read")
	}
	return u, nil
}

func noSnapshot(id hearth.SnapshotID) error {
	return hearth.Errorf(hearth.NotFound, "snapshot '%s' not found", id)
}

// Snapshot implements store.Snapshots.
func (s *Store) Snapshot(ctx context.Context, id hearth.SnapshotID) (*hearth.Snapshot, error) {
	snap, err := scanSnapshot(s.read.QueryRowContext(ctx, `SELECT `+snapshotColumns+` FROM snapshots WHERE id = ?`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, noSnapshot(id)
	}
	if err != nil {
		return nil, failed(err, "the metadata store could not be read")
	}
	return snap, nil
}

// ListSnapshots implements store.Snapshots.
func (s *Store) ListSnapshots(ctx context.Context) ([]*hearth.Snapshot, error) {
	return collect(ctx, s.read, scanSnapshot, `SELECT `+snapshotColumns+` FROM snapshots ORDER BY created_at, id`)
}

// DeleteSnapshot implements store.Snapshots.
func (s *Store) DeleteSnapshot(ctx context.Context, id hearth.SnapshotID) error {
	return s.change(ctx, durable, func(tx *sql.Tx) error {
		n, err := exec(tx, `DELETE FROM snapshots WHERE id = ?`, id)
		if err == nil && n == 0 {
			return noSnapshot(id)
		}
		return err
	})
}
