package sqlstore

import (
	"context"
	"slices"
	"strings"

	"hearth/internal/hearth"
	"hearth/internal/store"
)

// where collects conditions and their arguments, in step.
type where struct {
	conds []string
	args  []any
}

func (w *where) and(cond string, args ...any) {
	w.conds = append(w.conds, cond)
	w.args = append(w.args, args...)
}

func (w *where) String() string {
	if len(w.conds) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(w.conds, " AND ")
}

// source is the FROM of a sandbox query and the columns by which it is ordered.
// A metadata filter makes the first pair lead, so that its index gives the order.
type source struct{ from, at, id string }

// conditions turns a filter into a source and its conditions.
func conditions(f store.SandboxFilter) (source, *where) {
	w := &where{}
	src := source{"sandboxes s", "s.started_at", "s.id"}
	if keys := sortedKeys(f.Metadata); len(keys) > 0 {
		// CROSS JOIN: SQLite keeps the order as written, PostgreSQL does not care.
		src = source{"sandbox_metadata m CROSS JOIN sandboxes s", "m.started_at", "m.sandbox"}
		w.and("m.key = ? AND m.value = ? AND s.id = m.sandbox", keys[0], f.Metadata[keys[0]])
		for _, k := range keys[1:] {
			w.and("EXISTS (SELECT 1 FROM sandbox_metadata o WHERE o.sandbox = s.id AND o.key = ? AND o.value = ?)", k, f.Metadata[k])
		}
	}
	if f.Team != "" {
		w.and("s.team = ?", f.Team)
	}
	if f.Node != "" {
		w.and("s.node = ?", f.Node)
	}
	if f.Template != "" {
		w.and("s.template = ?", f.Template)
	}
	if len(f.States) > 0 {
		args := make([]any, len(f.States))
		for i, st := range f.States {
			args[i] = string(st)
		}
		w.and("s.state IN (?"+strings.Repeat(", ?", len(args)-1)+")", args...)
		if !slices.Contains(f.States, hearth.Stopped) {
			w.and("s.state <> 'stopped'") // names the partial indices
		}
	}
	if !f.StartedAfter.IsZero() {
		w.and(src.at+" >= ?", nanos(f.StartedAfter))
	}
	return src, w
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// ListSandboxes implements store.Sandboxes.
func (s *Store) ListSandboxes(ctx context.Context, f store.SandboxFilter, p store.Page) ([]*hearth.Sandbox, string, error) {
	src, w := conditions(f)
	dir, after := "DESC", "<"
	if f.OldestFirst {
		dir, after = "ASC", ">"
	}
	if p.Cursor != "" {
		pos, err := position(p.Cursor, f.OldestFirst)
		if err != nil {
			return nil, "", err
		}
		w.and("("+src.at+", "+src.id+") "+after+" (?, ?)", nanos(pos.At), pos.ID)
	}
	query := `SELECT ` + sandboxColumns + ` FROM ` + src.from + w.String() +
		` ORDER BY ` + src.at + ` ` + dir + `, ` + src.id + ` ` + dir + ` LIMIT ?`
	list, err := collect(ctx, s.read, scanSandbox, query, append(w.args, p.Size()+1)...)
	if err != nil || len(list) <= p.Size() {
		return list, "", err
	}
	list = list[:p.Size()]
	last := list[len(list)-1]
	return list, store.Position{At: last.StartedAt, ID: string(last.ID), Asc: f.OldestFirst}.Cursor(), nil
}

// position reads a cursor that belongs to a listing in the given order.
func position(cursor string, oldestFirst bool) (store.Position, error) {
	pos, err := store.ParseCursor(cursor)
	if err == nil && pos.Asc != oldestFirst {
		err = store.BadCursor()
	}
	return pos, err
}

// CountSandboxes implements store.Sandboxes.
func (s *Store) CountSandboxes(ctx context.Context, f store.SandboxFilter) (int, error) {
	src, w := conditions(f)
	var n int
	if err := s.read.QueryRowContext(ctx, `SELECT COUNT(*) FROM `+src.from+w.String(), w.args...).Scan(&n); err != nil {
		return 0, failed(err, "the metadata store could not be read")
	}
	return n, nil
}
