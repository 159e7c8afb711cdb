package memstore

import (
	"context"
	"maps"
	"slices"
	"strings"

	"hearth/internal/hearth"
	"hearth/internal/store"
)

// CreateTemplate implements store.Templates.
func (s *Store) CreateTemplate(_ context.Context, t *hearth.Template) error {
	if err := store.CheckText("template", t); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.ID == "" || s.templates[t.ID] != nil {
		return hearth.Errorf(hearth.AlreadyExists, "template %q exists already", t.ID)
	}
	for i, alias := range t.Aliases {
		if s.byAlias(t.Team, alias) != nil || slices.Contains(t.Aliases[:i], alias) {
			return hearth.Errorf(hearth.AlreadyExists, "the name %q is taken", alias)
		}
	}
	s.templates[t.ID] = copyTemplate(t)
	return nil
}

func (s *Store) byAlias(team hearth.TeamID, alias string) *hearth.Template {
	for _, t := range s.templates {
		if t.Team == team && slices.Contains(t.Aliases, alias) {
			return t
		}
	}
	return nil
}

// ResolveTemplate implements store.Templates.
func (s *Store) ResolveTemplate(_ context.Context, team hearth.TeamID, nameOrID string) (*hearth.Template, *hearth.Build, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.resolve(team, nameOrID)
	if t == nil {
		return nil, nil, hearth.Errorf(hearth.NotFound, "template '%s' not found", nameOrID)
	}
	b := s.builds[t.Build]
	if b == nil {
		return copyTemplate(t), nil, hearth.Errorf(hearth.FailedPrecondition, "template '%s' has no ready build", nameOrID)
	}
	return copyTemplate(t), copyBuild(b), nil
}

func (s *Store) resolve(team hearth.TeamID, nameOrID string) *hearth.Template {
	visible := func(t *hearth.Template) bool { return t != nil && (t.Team == team || t.Public) }
	if slug, alias, spaced := strings.Cut(nameOrID, "/"); spaced {
		if t := s.byAlias(s.bySlug(slug), alias); visible(t) {
			return t
		}
		return nil
	}
	if t := s.templates[hearth.TemplateID(nameOrID)]; visible(t) {
		return t
	}
	if t := s.byAlias(team, nameOrID); t != nil {
		return t
	}
	var oldest *hearth.Template
	for _, t := range s.templates {
		if t.Public && slices.Contains(t.Aliases, nameOrID) && (oldest == nil || older(t, oldest)) {
			oldest = t
		}
	}
	return oldest
}

// bySlug is the team with a slug, a team without templates if there is none.
func (s *Store) bySlug(slug string) hearth.TeamID {
	for _, t := range s.teams {
		if t.Slug == slug {
			return t.ID
		}
	}
	return "\x00" // no row has a NUL
}

func older(a, b *hearth.Template) bool {
	if c := a.CreatedAt.Compare(b.CreatedAt); c != 0 {
		return c < 0
	}
	return a.ID < b.ID
}

// TemplateByAlias implements store.Templates.
func (s *Store) TemplateByAlias(_ context.Context, team hearth.TeamID, alias string) (*hearth.Template, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.byAlias(team, alias)
	if t == nil {
		return nil, hearth.Errorf(hearth.NotFound, "template '%s' not found", alias)
	}
	return copyTemplate(t), nil
}

// Template implements store.Templates.
func (s *Store) Template(_ context.Context, id hearth.TemplateID) (*hearth.Template, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.templates[id]
	if t == nil {
		return nil, hearth.Errorf(hearth.NotFound, "template '%s' not found", id)
	}
	return copyTemplate(t), nil
}

// ListTemplates implements store.Templates.
func (s *Store) ListTemplates(_ context.Context, team hearth.TeamID, p store.Page) ([]*hearth.Template, string, error) {
	after, err := start(p, false)
	if err != nil {
		return nil, "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var rows []row[*hearth.Template]
	for _, t := range s.templates {
		if t.Team == team {
			rows = append(rows, row[*hearth.Template]{t.CreatedAt, string(t.ID), copyTemplate(t)})
		}
	}
	list, next := page(rows, after, p.Size(), false)
	return list, next, nil
}

// DeleteTemplate implements store.Templates.
func (s *Store) DeleteTemplate(_ context.Context, id hearth.TemplateID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.templates[id] == nil {
		return hearth.Errorf(hearth.NotFound, "template '%s' not found", id)
	}
	delete(s.templates, id)
	maps.DeleteFunc(s.builds, func(_ hearth.BuildID, b *hearth.Build) bool { return b.Template == id })
	return nil
}

// CreateBuild implements store.Templates.
func (s *Store) CreateBuild(_ context.Context, b *hearth.Build) error {
	if err := store.CheckText("build", b); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.ID == "" || s.builds[b.ID] != nil {
		return hearth.Errorf(hearth.AlreadyExists, "build %q exists already", b.ID)
	}
	if s.templates[b.Template] == nil {
		return hearth.Errorf(hearth.NotFound, "template '%s' not found", b.Template)
	}
	s.builds[b.ID] = copyBuild(b)
	return nil
}

// Build implements store.Templates.
func (s *Store) Build(_ context.Context, id hearth.BuildID) (*hearth.Build, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.builds[id]
	if b == nil {
		return nil, hearth.Errorf(hearth.NotFound, "build '%s' not found", id)
	}
	return copyBuild(b), nil
}

// ListBuilds implements store.Templates.
func (s *Store) ListBuilds(_ context.Context, template hearth.TemplateID) ([]*hearth.Build, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var rows []row[*hearth.Build]
	for _, b := range s.builds {
		if b.Template == template {
			rows = append(rows, row[*hearth.Build]{b.CreatedAt, string(b.ID), copyBuild(b)})
		}
	}
	list, _ := page(rows, nil, len(rows), false)
	return list, nil
}

// UpdateBuild implements store.Templates.
func (s *Store) UpdateBuild(_ context.Context, b *hearth.Build) error {
	if store.Finished(b.Status) {
		return hearth.Errorf(hearth.InvalidArgument, "build status %q is final: finish the build instead", b.Status)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writeBuild(b)
}

// FinishBuild implements store.Templates.
func (s *Store) FinishBuild(_ context.Context, b *hearth.Build) error {
	if !store.Finished(b.Status) {
		return hearth.Errorf(hearth.InvalidArgument, "build status %q is not final", b.Status)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.writeBuild(b); err != nil {
		return err
	}
	t := s.templates[s.builds[b.ID].Template]
	if b.Status != hearth.BuildReady || t == nil {
		return nil
	}
	if cur := s.builds[t.Build]; cur == nil || !cur.CreatedAt.After(s.builds[b.ID].CreatedAt) {
		t.Build, t.UpdatedAt = b.ID, b.FinishedAt.UTC()
	}
	return nil
}

// writeBuild replaces an unfinished build's row; what it belongs to and when it
// was created stay as they were.
func (s *Store) writeBuild(b *hearth.Build) error {
	if err := store.CheckText("build", b); err != nil {
		return err
	}
	old := s.builds[b.ID]
	if old == nil {
		return hearth.Errorf(hearth.NotFound, "build '%s' not found", b.ID)
	}
	if store.Finished(old.Status) {
		return hearth.Errorf(hearth.FailedPrecondition, "build '%s' is finished", b.ID)
	}
	c := copyBuild(b)
	c.Template, c.CreatedAt = old.Template, old.CreatedAt
	s.builds[b.ID] = c
	return nil
}

func copyTemplate(t *hearth.Template) *hearth.Template {
	c := *t
	c.Aliases = slices.Clone(t.Aliases)
	c.CreatedAt, c.UpdatedAt = t.CreatedAt.UTC(), t.UpdatedAt.UTC()
	return &c
}

func copyBuild(b *hearth.Build) *hearth.Build {
	c := *b
	c.Layers, c.Warm, c.Env = slices.Clone(b.Layers), maps.Clone(b.Warm), maps.Clone(b.Env)
	c.CreatedAt, c.FinishedAt = b.CreatedAt.UTC(), b.FinishedAt.UTC()
	return &c
}
