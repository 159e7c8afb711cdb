// Package memstore is the store contract in memory: the reference that is short
// enough to be read, and the store of tests. Nothing of it survives its process.
package memstore

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"hearth/internal/hearth"
	"hearth/internal/store"
)

// Store is a store.Store in memory. Its methods are safe for concurrent use.
type Store struct {
	mu        sync.Mutex
	sandboxes map[hearth.SandboxID]*hearth.Sandbox
	templates map[hearth.TemplateID]*hearth.Template
	builds    map[hearth.BuildID]*hearth.Build
	snapshots map[hearth.SnapshotID]*hearth.Snapshot
	teams     map[hearth.TeamID]*hearth.Team
	keys      map[string]*hearth.APIKey // by ID
}

var _ store.Store = (*Store)(nil)

// New returns an empty store.
func New() *Store {
	return &Store{
		sandboxes: map[hearth.SandboxID]*hearth.Sandbox{},
		templates: map[hearth.TemplateID]*hearth.Template{},
		builds:    map[hearth.BuildID]*hearth.Build{},
		snapshots: map[hearth.SnapshotID]*hearth.Snapshot{},
		teams:     map[hearth.TeamID]*hearth.Team{},
		keys:      map[string]*hearth.APIKey{},
	}
}

// Ping always succeeds.
func (s *Store) Ping(ctx context.Context) error { return ctx.Err() }

// Close does nothing: the memory goes with the last reference.
func (s *Store) Close() error { return nil }

// CreateSandbox implements store.Sandboxes.
func (s *Store) CreateSandbox(_ context.Context, sb *hearth.Sandbox) error {
	if err := store.CheckText("sandbox", sb); err != nil {
		return err
	}
	if sb.ID == "" || sb.Generation < 1 {
		return hearth.Errorf(hearth.InvalidArgument, "a sandbox needs an ID and a positive generation")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sandboxes[sb.ID] != nil {
		return hearth.Errorf(hearth.AlreadyExists, "sandbox %q exists already", sb.ID)
	}
	s.sandboxes[sb.ID] = copySandbox(sb)
	return nil
}

// Sandbox implements store.Sandboxes.
func (s *Store) Sandbox(_ context.Context, id hearth.SandboxID) (*hearth.Sandbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sandbox(id)
}

func (s *Store) sandbox(id hearth.SandboxID) (*hearth.Sandbox, error) {
	sb := s.sandboxes[id]
	if sb == nil {
		return nil, hearth.Errorf(hearth.NotFound, "sandbox %q not found", id)
	}
	return copySandbox(sb), nil
}

// updateTries is how often UpdateSandbox tries before it gives up.
const updateTries = 8

// UpdateSandbox implements store.Sandboxes. change runs without the store's
// lock, so that it loses races here just as it does on a database.
func (s *Store) UpdateSandbox(ctx context.Context, id hearth.SandboxID, change func(*hearth.Sandbox) error) (*hearth.Sandbox, error) {
	for range updateTries {
		before, err := s.Sandbox(ctx, id)
		if err != nil {
			return nil, err
		}
		after := copySandbox(before)
		if err := change(after); err != nil {
			return nil, err
		}
		after.ID, after.Team, after.CreatedAt = before.ID, before.Team, before.CreatedAt
		after.Generation = before.Generation + 1
		if err := store.CheckText("sandbox", after); err != nil {
			return nil, err
		}
		if s.swap(before.Generation, after) {
			return copySandbox(after), nil
		}
	}
	return nil, hearth.Errorf(hearth.Aborted, "sandbox %q is being changed by others; try again", id)
}

func (s *Store) swap(generation int64, after *hearth.Sandbox) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.sandboxes[after.ID]
	if now == nil || now.Generation != generation {
		return false
	}
	s.sandboxes[after.ID] = copySandbox(after)
	return true
}

// ListSandboxes implements store.Sandboxes.
func (s *Store) ListSandboxes(_ context.Context, f store.SandboxFilter, p store.Page) ([]*hearth.Sandbox, string, error) {
	after, err := start(p, f.OldestFirst)
	if err != nil {
		return nil, "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var rows []row[*hearth.Sandbox]
	for _, sb := range s.sandboxes {
		if matches(sb, f) {
			rows = append(rows, row[*hearth.Sandbox]{sb.StartedAt, string(sb.ID), sb})
		}
	}
	list, next := page(rows, after, p.Size(), f.OldestFirst)
	for i := range list {
		list[i] = copySandbox(list[i])
	}
	return list, next, nil
}

// CountSandboxes implements store.Sandboxes.
func (s *Store) CountSandboxes(_ context.Context, f store.SandboxFilter) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, sb := range s.sandboxes {
		if matches(sb, f) {
			n++
		}
	}
	return n, nil
}

func matches(sb *hearth.Sandbox, f store.SandboxFilter) bool {
	switch {
	case f.Team != "" && sb.Team != f.Team,
		f.Node != "" && sb.Node != f.Node,
		f.Template != "" && sb.Template != f.Template,
		len(f.States) > 0 && !slices.Contains(f.States, sb.State),
		sb.StartedAt.Before(f.StartedAfter):
		return false
	}
	for k, v := range f.Metadata {
		if got, ok := sb.Metadata[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// DueSandboxes implements store.Sandboxes.
func (s *Store) DueSandboxes(_ context.Context, now time.Time, limit int) ([]hearth.SandboxID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var due []*hearth.Sandbox
	for _, sb := range s.sandboxes {
		if sb.State == hearth.Running && !sb.EndsAt.After(now) {
			due = append(due, sb)
		}
	}
	slices.SortFunc(due, func(a, b *hearth.Sandbox) int {
		if c := a.EndsAt.Compare(b.EndsAt); c != 0 {
			return c
		}
		return strings.Compare(string(a.ID), string(b.ID))
	})
	var ids []hearth.SandboxID
	for _, sb := range due[:min(limit, len(due))] {
		ids = append(ids, sb.ID)
	}
	return ids, nil
}

// PurgeSandboxes implements store.Sandboxes.
func (s *Store) PurgeSandboxes(_ context.Context, before time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.sandboxes, func(_ hearth.SandboxID, sb *hearth.Sandbox) bool {
		return sb.State == hearth.Stopped && sb.EndsAt.Before(before)
	})
	return nil
}

func copySandbox(sb *hearth.Sandbox) *hearth.Sandbox {
	c := *sb
	c.Env, c.Metadata = maps.Clone(sb.Env), maps.Clone(sb.Metadata)
	c.Network.AllowOut = slices.Clone(sb.Network.AllowOut)
	c.Network.DenyOut = slices.Clone(sb.Network.DenyOut)
	if sb.Network.AllowInternet != nil {
		allow := *sb.Network.AllowInternet
		c.Network.AllowInternet = &allow
	}
	c.CreatedAt, c.StartedAt, c.EndsAt = sb.CreatedAt.UTC(), sb.StartedAt.UTC(), sb.EndsAt.UTC()
	return &c
}

// row is something with a place in a listing.
type row[T any] struct {
	at   time.Time
	id   string
	what T
}

func (r row[T]) compare(at time.Time, id string) int {
	if c := r.at.Compare(at); c != 0 {
		return c
	}
	return strings.Compare(r.id, id)
}

// start reads a page's cursor; nil means the beginning.
func start(p store.Page, oldestFirst bool) (*store.Position, error) {
	if p.Cursor == "" {
		return nil, nil
	}
	pos, err := store.ParseCursor(p.Cursor)
	if err != nil {
		return nil, err
	}
	if pos.Asc != oldestFirst {
		return nil, store.BadCursor()
	}
	return &pos, nil
}

// page sorts rows and cuts out the page that begins behind after.
func page[T any](rows []row[T], after *store.Position, size int, oldestFirst bool) (list []T, next string) {
	sign := -1
	if oldestFirst {
		sign = 1
	}
	slices.SortFunc(rows, func(a, b row[T]) int { return sign * a.compare(b.at, b.id) })
	if after != nil {
		rows = slices.DeleteFunc(rows, func(r row[T]) bool { return sign*r.compare(after.At, after.ID) <= 0 })
	}
	if len(rows) > size {
		last := rows[size-1]
		next = store.Position{At: last.at, ID: last.id, Asc: oldestFirst}.Cursor()
		rows = rows[:size]
	}
	for _, r := range rows {
		list = append(list, r.what)
	}
	return list, next
}
