package sqlstore

import (
	"context"
	"database/sql"
	"errors"

	"hearth/internal/hearth"
	"hearth/internal/store"
)

func scanTeam(row scanner) (*hearth.Team, error) {
	var t hearth.Team
	err := row.Scan(&t.ID, &t.Name, &t.Slug)
	return &t, err
}

// CreateTeam implements store.Teams.
func (s *Store) CreateTeam(ctx context.Context, t *hearth.Team) error {
	if err := store.CheckText("team", t); err != nil {
		return err
	}
	return s.change(ctx, durable, func(tx *sql.Tx) error {
		_, err := exec(tx, `INSERT INTO teams (id, name, slug) VALUES (?, ?, ?)`, t.ID, t.Name, t.Slug)
		if taken(err) {
			return hearth.Wrap(hearth.AlreadyExists, err, "the team %q or its slug %q exists already", t.ID, t.Slug)
		}
		return err
	})
}

// team reads the one team that a query finds.
func (s *Store) team(ctx context.Context, missing, query string, args ...any) (*hearth.Team, error) {
	t, err := scanTeam(s.read.QueryRowContext(ctx, query, args...))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, hearth.Errorf(hearth.NotFound, "%s not found", missing)
	}
	if err != nil {
		return nil, failed(err, "the metadata store could not be read")
	}
	return t, nil
}

// Team implements store.Teams.
func (s *Store) Team(ctx context.Context, id hearth.TeamID) (*hearth.Team, error) {
	return s.team(ctx, "team '"+string(id)+"'", `SELECT id, name, slug FROM teams WHERE id = ?`, id)
}

// ListTeams implements store.Teams.
func (s *Store) ListTeams(ctx context.Context) ([]*hearth.Team, error) {
	return collect(ctx, s.read, scanTeam, `SELECT id, name, slug FROM teams ORDER BY id`)
}

// CreateAPIKey implements store.Teams.
func (s *Store) CreateAPIKey(ctx context.Context, k *hearth.APIKey) error {
	if err := store.CheckText("api key", k); err != nil {
		return err
	}
	return s.change(ctx, durable, func(tx *sql.Tx) error {
		_, err := exec(tx, `INSERT INTO api_keys (id, team, name, hash, mask, created_at) VALUES (?, ?, ?, ?, ?, ?)`,
			k.ID, k.Team, k.Name, k.Hash, k.Mask, nanos(k.CreatedAt))
		if taken(err) {
			return hearth.Wrap(hearth.AlreadyExists, err, "the API key exists already")
		}
		if dangling(err) {
			return hearth.Wrap(hearth.NotFound, err, "team '%s' not found", k.Team)
		}
		return err
	})
}

// TeamByKeyHash implements store.Teams.
func (s *Store) TeamByKeyHash(ctx context.Context, hash string) (*hearth.Team, error) {
	return s.team(ctx, "API key", `SELECT t.id, t.name, t.slug FROM api_keys k CROSS JOIN teams t
		WHERE k.hash = ? AND t.id = k.team`, hash)
}
