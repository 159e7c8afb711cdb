package sqlstore

import (
	"context"
	"database/sql"
	"errors"

	"hearth/internal/hearth"
	"hearth/internal/store"
)

const snapshotColumns = `id, build, parent, base, driver, host_key, memory, files_json, created_at`

func scanSnapshot(row scanner) (*hearth.Snapshot, error) {
	var s hearth.Snapshot
	err := row.Scan(&s.ID, &s.Build, &s.Parent, &s.Base, &s.Driver, &s.Key, &s.Memory, fromJSON{&s.Files}, at{&s.Created})
	return &s, err
}

// CreateSnapshot implements store.Snapshots.
func (s *Store) CreateSnapshot(ctx context.Context, snap *hearth.Snapshot) error {
	if err := store.CheckText("snapshot", snap); err != nil {
		return err
	}
	files, err := inJSON(snap.Files)
	if err != nil {
		return err
	}
	return s.change(ctx, durable, func(tx *sql.Tx) error {
		_, err := exec(tx, `INSERT INTO snapshots (`+snapshotColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			snap.ID, snap.Build, snap.Parent, snap.Base, snap.Driver, snap.Key, snap.Memory, files, nanos(snap.Created))
		if taken(err) {
			return hearth.Wrap(hearth.AlreadyExists, err, "snapshot %q exists already", snap.ID)
		}
		return err
	})
}

// Snapshot implements store.Snapshots.
func (s *Store) Snapshot(ctx context.Context, id hearth.SnapshotID) (*hearth.Snapshot, error) {
	snap, err := scanSnapshot(s.read.QueryRowContext(ctx, `SELECT `+snapshotColumns+` FROM snapshots WHERE id = ?`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, hearth.Errorf(hearth.NotFound, "snapshot '%s' not found", id)
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
			return hearth.Errorf(hearth.NotFound, "snapshot '%s' not found", id)
		}
		return err
	})
}
