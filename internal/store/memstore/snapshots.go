package memstore

import (
	"context"
	"slices"

	"hearth/internal/hearth"
	"hearth/internal/store"
)

// CreateSnapshot implements store.Snapshots.
func (s *Store) CreateSnapshot(_ context.Context, snap *hearth.Snapshot) error {
	if err := store.CheckText("snapshot", snap); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if snap.ID == "" || s.snapshots[snap.ID] != nil {
		return hearth.Errorf(hearth.AlreadyExists, "snapshot %q exists already", snap.ID)
	}
	s.putSnapshot(snap)
	return nil
}

// putSnapshot takes the row's name from whoever has it. The caller holds mu.
func (s *Store) putSnapshot(snap *hearth.Snapshot) {
	if snap.Alias != "" {
		for _, other := range s.snapshots {
			if other.Team == snap.Team && other.Alias == snap.Alias && other.Tag == snap.Tag && other.ID != snap.ID {
				other.Alias, other.Tag = "", ""
			}
		}
	}
	s.snapshots[snap.ID] = copySnapshot(snap)
}

// UpdateSnapshot implements store.Snapshots.
func (s *Store) UpdateSnapshot(_ context.Context, id hearth.SnapshotID, change func(*hearth.Snapshot) error) (*hearth.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.snapshots[id]
	if before == nil {
		return nil, hearth.Errorf(hearth.NotFound, "snapshot '%s' not found", id)
	}
	after := copySnapshot(before)
	if err := change(after); err != nil {
		return nil, err
	}
	after.ID, after.Team, after.Created = before.ID, before.Team, before.Created
	if err := store.CheckText("snapshot", after); err != nil {
		return nil, err
	}
	s.putSnapshot(after)
	return copySnapshot(after), nil
}

// FindSnapshots implements store.Snapshots.
func (s *Store) FindSnapshots(_ context.Context, f store.SnapshotFilter, p store.Page) ([]*hearth.Snapshot, string, error) {
	after, err := start(p, false)
	if err != nil {
		return nil, "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var rows []row[*hearth.Snapshot]
	for _, snap := range s.snapshots {
		if selects(f, snap) {
			rows = append(rows, row[*hearth.Snapshot]{snap.Created, string(snap.ID), copySnapshot(snap)})
		}
	}
	list, next := page(rows, after, p.Size(), false)
	return list, next, nil
}

func selects(f store.SnapshotFilter, snap *hearth.Snapshot) bool {
	return (f.Team == "" || f.Team == snap.Team) && (f.Sandbox == "" || f.Sandbox == snap.Sandbox) &&
		(f.Template == "" || f.Template == snap.Template) && (f.Alias == "" || f.Alias == snap.Alias) && (f.Tag == "" || f.Tag == snap.Tag) &&
		(len(f.Kinds) == 0 || slices.Contains(f.Kinds, snap.Kind)) &&
		(len(f.Statuses) == 0 || slices.Contains(f.Statuses, snap.Status))
}

// SnapshotUses implements store.Snapshots.
func (s *Store) SnapshotUses(_ context.Context, id hearth.SnapshotID) (store.SnapshotUses, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var u store.SnapshotUses
	own := s.snapshots[id]
	for _, sb := range s.sandboxes {
		if sb.State == hearth.Stopped {
			continue
		}
		if sb.Snapshot == id {
			u.Sandboxes++
		}
		if sb.Head == id {
			u.Heirs++
			if own != nil && sb.ID != own.Sandbox {
				u.Others++
			}
		}
	}
	for _, snap := range s.snapshots {
		if snap.After == id {
			u.Heirs++
			if own != nil && snap.Sandbox != own.Sandbox {
				u.Others++
			}
		}
	}
	return u, nil
}

// Snapshot implements store.Snapshots.
func (s *Store) Snapshot(_ context.Context, id hearth.SnapshotID) (*hearth.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	snap := s.snapshots[id]
	if snap == nil {
		return nil, hearth.Errorf(hearth.NotFound, "snapshot '%s' not found", id)
	}
	return copySnapshot(snap), nil
}

// ListSnapshots implements store.Snapshots.
func (s *Store) ListSnapshots(context.Context) ([]*hearth.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var rows []row[*hearth.Snapshot]
	for _, snap := range s.snapshots {
		rows = append(rows, row[*hearth.Snapshot]{snap.Created, string(snap.ID), copySnapshot(snap)})
	}
	list, _ := page(rows, nil, len(rows), true)
	return list, nil
}

// DeleteSnapshot implements store.Snapshots.
func (s *Store) DeleteSnapshot(_ context.Context, id hearth.SnapshotID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.snapshots[id] == nil {
		return hearth.Errorf(hearth.NotFound, "snapshot '%s' not found", id)
	}
	delete(s.snapshots, id)
	return nil
}

func copySnapshot(snap *hearth.Snapshot) *hearth.Snapshot {
	c := *snap
	c.Files = slices.Clone(snap.Files)
	c.Created = snap.Created.UTC()
	return &c
}
