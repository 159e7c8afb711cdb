package memstore

import (
	"context"
	"slices"
	"strings"

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
	s.snapshots[snap.ID] = copySnapshot(snap)
	return nil
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

// CreateTeam implements store.Teams.
func (s *Store) CreateTeam(_ context.Context, t *hearth.Team) error {
	if err := store.CheckText("team", t); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.ID == "" || s.teams[t.ID] != nil {
		return hearth.Errorf(hearth.AlreadyExists, "team %q exists already", t.ID)
	}
	for _, other := range s.teams {
		if other.Slug == t.Slug {
			return hearth.Errorf(hearth.AlreadyExists, "the team slug %q is taken", t.Slug)
		}
	}
	c := *t
	s.teams[t.ID] = &c
	return nil
}

// Team implements store.Teams.
func (s *Store) Team(_ context.Context, id hearth.TeamID) (*hearth.Team, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.team(id)
}

func (s *Store) team(id hearth.TeamID) (*hearth.Team, error) {
	t := s.teams[id]
	if t == nil {
		return nil, hearth.Errorf(hearth.NotFound, "team '%s' not found", id)
	}
	c := *t
	return &c, nil
}

// ListTeams implements store.Teams.
func (s *Store) ListTeams(context.Context) ([]*hearth.Team, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*hearth.Team
	for _, t := range s.teams {
		c := *t
		list = append(list, &c)
	}
	slices.SortFunc(list, func(a, b *hearth.Team) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return list, nil
}

// CreateAPIKey implements store.Teams.
func (s *Store) CreateAPIKey(_ context.Context, k *hearth.APIKey) error {
	if err := store.CheckText("api key", k); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.team(k.Team); err != nil {
		return err
	}
	for _, other := range s.keys {
		if other.ID == k.ID || other.Hash == k.Hash {
			return hearth.Errorf(hearth.AlreadyExists, "the API key exists already")
		}
	}
	c := *k
	s.keys[k.ID] = &c
	return nil
}

// TeamByKeyHash implements store.Teams.
func (s *Store) TeamByKeyHash(_ context.Context, hash string) (*hearth.Team, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.keys {
		if k.Hash == hash {
			return s.team(k.Team)
		}
	}
	return nil, hearth.Errorf(hearth.NotFound, "API key not found")
}
