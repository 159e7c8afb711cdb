package memstore

import (
	"context"
	"slices"
	"strings"

	"hearth/internal/hearth"
	"hearth/internal/store"
)

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
