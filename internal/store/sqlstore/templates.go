package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"strings"

	"hearth/internal/hearth"
	"hearth/internal/store"
)

const templateColumns = `t.id, t.team, t.public, t.build, t.created_at, t.updated_at`

func scanTemplate(row scanner) (*hearth.Template, error) {
	var t hearth.Template
	err := row.Scan(&t.ID, &t.Team, &t.Public, &t.Build, at{&t.CreatedAt}, at{&t.UpdatedAt})
	return &t, err
}

// CreateTemplate implements store.Templates.
func (s *Store) CreateTemplate(ctx context.Context, t *hearth.Template) error {
	if err := store.CheckText("template", t); err != nil {
		return err
	}
	return s.change(ctx, durable, func(tx *sql.Tx) error {
		_, err := exec(tx, `INSERT INTO templates (id, team, public, build, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?)`,
			t.ID, t.Team, t.Public, t.Build, nanos(t.CreatedAt), nanos(t.UpdatedAt))
		if taken(err) {
			return hearth.Wrap(hearth.AlreadyExists, err, "template %q exists already", t.ID)
		}
		if err != nil {
			return err
		}
		for i, alias := range t.Aliases {
			_, err := exec(tx, `INSERT INTO template_aliases (team, alias, template, rank) VALUES (?, ?, ?, ?)`, t.Team, alias, t.ID, i)
			if taken(err) {
				return hearth.Wrap(hearth.AlreadyExists, err, "the name %q is taken", alias)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// ResolveTemplate implements store.Templates.
func (s *Store) ResolveTemplate(ctx context.Context, team hearth.TeamID, nameOrID string) (*hearth.Template, *hearth.Build, error) {
	query := `SELECT ` + templateColumns + `, 0 AS rank FROM templates t
			WHERE t.id = ? AND (t.team = ? OR t.public)
		UNION ALL
		SELECT ` + templateColumns + `, CASE WHEN t.team = ? THEN 1 ELSE 2 END AS rank
			FROM template_aliases a CROSS JOIN templates t
			WHERE a.alias = ? AND t.id = a.template AND (t.team = ? OR t.public)
		ORDER BY rank, created_at, id LIMIT 1`
	args := []any{nameOrID, team, team, nameOrID, team}
	if slug, alias, spaced := strings.Cut(nameOrID, "/"); spaced {
		query = `SELECT ` + templateColumns + `, 0 AS rank FROM teams o CROSS JOIN template_aliases a CROSS JOIN templates t
			WHERE o.slug = ? AND a.team = o.id AND a.alias = ? AND t.id = a.template AND (t.team = ? OR t.public)`
		args = []any{slug, alias, team}
	}
	var t hearth.Template
	var rank int
	err := s.read.QueryRowContext(ctx, query, args...).
		Scan(&t.ID, &t.Team, &t.Public, &t.Build, at{&t.CreatedAt}, at{&t.UpdatedAt}, &rank)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil, hearth.Errorf(hearth.NotFound, "template '%s' not found", nameOrID)
	}
	if err != nil {
		return nil, nil, failed(err, "the metadata store could not be read")
	}
	if err := s.addAliases(ctx, &t); err != nil {
		return nil, nil, err
	}
	if t.Build == "" {
		return &t, nil, hearth.Errorf(hearth.FailedPrecondition, "template '%s' has no ready build", nameOrID)
	}
	b, err := s.Build(ctx, t.Build)
	if err != nil {
		return nil, nil, err
	}
	return &t, b, nil
}

// addAliases fills in the names of templates.
func (s *Store) addAliases(ctx context.Context, list ...*hearth.Template) error {
	if len(list) == 0 {
		return nil
	}
	byID := make(map[hearth.TemplateID]*hearth.Template, len(list))
	args := make([]any, 0, len(list))
	for _, t := range list {
		byID[t.ID] = t
		args = append(args, t.ID)
	}
	rows, err := s.read.QueryContext(ctx, `SELECT template, alias FROM template_aliases
		WHERE template IN (?`+strings.Repeat(", ?", len(args)-1)+`) ORDER BY template, rank`, args...)
	if err != nil {
		return failed(err, "the metadata store could not be read")
	}
	defer rows.Close()
	for rows.Next() {
		var id hearth.TemplateID
		var alias string
		if err := rows.Scan(&id, &alias); err != nil {
			return failed(err, "the metadata store could not be read")
		}
		byID[id].Aliases = append(byID[id].Aliases, alias)
	}
	if err := rows.Err(); err != nil {
		return failed(err, "the metadata store could not be read")
	}
	return nil
}

// template reads the one template that a query finds.
func (s *Store) template(ctx context.Context, name, query string, args ...any) (*hearth.Template, error) {
	t, err := scanTemplate(s.read.QueryRowContext(ctx, query, args...))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, hearth.Errorf(hearth.NotFound, "template '%s' not found", name)
	}
	if err != nil {
		return nil, failed(err, "the metadata store could not be read")
	}
	return t, s.addAliases(ctx, t)
}

// TemplateByAlias implements store.Templates.
func (s *Store) TemplateByAlias(ctx context.Context, team hearth.TeamID, alias string) (*hearth.Template, error) {
	return s.template(ctx, alias, `SELECT `+templateColumns+` FROM template_aliases a CROSS JOIN templates t
		WHERE a.team = ? AND a.alias = ? AND t.id = a.template`, team, alias)
}

// Template implements store.Templates.
func (s *Store) Template(ctx context.Context, id hearth.TemplateID) (*hearth.Template, error) {
	return s.template(ctx, string(id), `SELECT `+templateColumns+` FROM templates t WHERE t.id = ?`, id)
}

// ListTemplates implements store.Templates.
func (s *Store) ListTemplates(ctx context.Context, team hearth.TeamID, p store.Page) ([]*hearth.Template, string, error) {
	var w where
	w.and("t.team = ?", team)
	if p.Cursor != "" {
		pos, err := position(p.Cursor, false)
		if err != nil {
			return nil, "", err
		}
		w.and("(t.created_at, t.id) < (?, ?)", nanos(pos.At), pos.ID)
	}
	list, err := collect(ctx, s.read, scanTemplate, `SELECT `+templateColumns+` FROM templates t`+w.String()+
		` ORDER BY t.created_at DESC, t.id DESC LIMIT ?`, append(w.args, p.Size()+1)...)
	if err != nil {
		return nil, "", err
	}
	next := ""
	if len(list) > p.Size() {
		list = list[:p.Size()]
		last := list[len(list)-1]
		next = store.Position{At: last.CreatedAt, ID: string(last.ID)}.Cursor()
	}
	return list, next, s.addAliases(ctx, list...)
}

// DeleteTemplate implements store.Templates.
func (s *Store) DeleteTemplate(ctx context.Context, id hearth.TemplateID) error {
	return s.change(ctx, durable, func(tx *sql.Tx) error {
		n, err := exec(tx, `DELETE FROM templates WHERE id = ?`, id)
		if err == nil && n == 0 {
			return hearth.Errorf(hearth.NotFound, "template '%s' not found", id)
		}
		return err
	})
}
