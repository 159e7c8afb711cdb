package compare_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/control/archive"
	"hearth/internal/control/compare"
	"hearth/internal/hearth"
	"hearth/internal/store/memstore"
)

func file(path string, size, mtime int64) hearth.Entry {
	return hearth.Entry{Path: path, Kind: hearth.RegularFile, Size: size, MTime: mtime, Mode: 0o644}
}

func told(r *compare.Result) string {
	var list []string
	for _, c := range r.Changes {
		list = append(list, fmt.Sprintf("%s %s %d %d", c.What, c.Path, c.Before, c.Size))
	}
	return strings.Join(list, ", ")
}

func TestFiles(t *testing.T) {
	dir := hearth.Entry{Path: "/d", Kind: hearth.Directory, Mode: 0o755, MTime: 1}
	link := hearth.Entry{Path: "/l", Kind: hearth.Symlink, Target: "a", MTime: 1}
	with := func(e hearth.Entry, edit func(*hearth.Entry)) hearth.Entry { edit(&e); return e }
	list := func(e ...hearth.Entry) []hearth.Entry { return e }
	for _, tc := range []struct {
		name     string
		from, to []hearth.Entry
		want     string
	}{
		{"nothing", nil, nil, ""},
		{"the same", list(dir, file("/f", 5, 1)), list(dir, file("/f", 5, 1)), ""},
		{"added", list(dir), list(file("/a", 3, 1), dir, file("/z", 4, 1)), "added /a 0 3, added /z 0 4"},
		{"removed", list(file("/a", 3, 1), dir, file("/z", 4, 1)), list(dir), "removed /a 3 0, removed /z 4 0"},
		{"size", list(file("/f", 5, 1)), list(file("/f", 6, 1)), "changed /f 5 6"},
		{"time", list(file("/f", 5, 1)), list(file("/f", 5, 2)), "changed /f 5 5"},
		{"mode", list(file("/f", 5, 1)), list(with(file("/f", 5, 1), func(e *hearth.Entry) { e.Mode = 0o4755 })), "changed /f 5 5"},
		{"owner", list(file("/f", 5, 1)), list(with(file("/f", 5, 1), func(e *hearth.Entry) { e.UID = 7 })), "changed /f 5 5"},
		{"a directory's time", list(dir), list(with(dir, func(e *hearth.Entry) { e.MTime = 9 })), ""},
		{"a directory's mode", list(dir), list(with(dir, func(e *hearth.Entry) { e.Mode = 0o700 })), "changed /d 0 0"},
		{"a link's target", list(link), list(with(link, func(e *hearth.Entry) { e.Target = "b" })), "changed /l 0 0"},
		{"a link's time", list(link), list(with(link, func(e *hearth.Entry) { e.MTime = 9 })), ""},
		{"another kind", list(link), list(file("/l", 5, 1)), "changed /l 0 5"},
		{"renamed", list(file("/a", 5, 1)), list(file("/b", 5, 1)), "removed /a 5 0, added /b 0 5"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := told(compare.Files(tc.from, tc.to, 100)); got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
	r := compare.Files(list(file("/a", 1, 1), file("/b", 2, 1)), list(file("/b", 4, 1), file("/c", 8, 1)), 1)
	if !r.Truncated || len(r.Changes) != 1 || r.Removed != (compare.Totals{Count: 1, Bytes: 1}) || r.Changed != (compare.Totals{Count: 1, Bytes: 4}) || r.Added != (compare.Totals{Count: 1, Bytes: 8}) {
		t.Errorf("%+v", r)
	}
}

// stock has the files of some snapshots.
type stock map[hearth.SnapshotID][]hearth.Entry

func (s stock) Inventory(_ context.Context, snap hearth.Snapshot, build hearth.Build) ([]hearth.Entry, error) {
	list, known := s[snap.ID]
	switch {
	case build.ID != "b1":
		return nil, errors.New("another build")
	case !known:
		return nil, hearth.Errorf(hearth.FailedPrecondition, "it needs another processor")
	}
	return list, nil
}

func (stock) Remove(context.Context, hearth.SnapshotID) error { return nil }
func (stock) Weigh(context.Context, hearth.SnapshotID, ...hearth.SnapshotID) (whole, added int64, err error) {
	return 0, 0, nil
}

func archiveOf(db *memstore.Store) *archive.Archive {
	return archive.New(archive.Deps{
		Store: db, Shelf: stock{}, Log: slog.New(slog.DiscardHandler),
		Detached: func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithCancel(context.WithoutCancel(ctx))
		},
	})
}

func TestDiff(t *testing.T) {
	const a, b, foreign, gone, broken = "s000000000000000000a1", "s000000000000000000b1", "s000000000000000000f1", "s000000000000000000e1", "s000000000000000000d1"
	db := memstore.New()
	files := stock{a: {file("/a", 1, 1)}, b: {file("/b", 2, 1)}, foreign: {}, gone: {}}
	row := func(id hearth.SnapshotID, edit func(*hearth.Snapshot)) error {
		s := &hearth.Snapshot{ID: id, Team: "t1", Build: "b1", Kind: hearth.KeptSnapshot, Created: time.Now()}
		edit(s)
		return db.CreateSnapshot(t.Context(), s)
	}
	err := errors.Join(
		db.CreateTemplate(t.Context(), &hearth.Template{ID: "tpl", Team: "t1"}),
		db.CreateBuild(t.Context(), &hearth.Build{ID: "b1", Template: "tpl"}),
		row(a, func(s *hearth.Snapshot) { s.Alias, s.Tag = "golden", "v1" }),
		row(b, func(s *hearth.Snapshot) { s.Kind = hearth.StepSnapshot }),
		row(foreign, func(s *hearth.Snapshot) { s.Team = "t2" }),
		row(gone, func(s *hearth.Snapshot) { s.Status = hearth.SnapshotDropped }),
		row(broken, func(*hearth.Snapshot) {}),
	)
	if err != nil {
		t.Fatal(err)
	}
	ar := archiveOf(db)
	desk := compare.New(ar, db, files)
	for _, tc := range []struct {
		from, to string
		limit    int
		want     string
		kind     hearth.Kind
	}{
		{a, b, 10, "removed /a 1 0, added /b 0 2", ""},
		{b, a, 10, "added /a 0 1, removed /b 2 0", ""},
		{"golden:v1", b, 10, "removed /a 1 0, added /b 0 2", ""},
		{a, a, 10, "", ""},
		{a, b, -1, "limit must be within 0 and 10000", hearth.InvalidArgument},
		{a, b, 10_001, "limit must be within", hearth.InvalidArgument},
		{a, foreign, 10, "not found", hearth.NotFound},
		{gone, a, 10, "not found", hearth.NotFound},
		{a, "No Name", 10, "Invalid", hearth.InvalidArgument},
		{a, broken, 10, "the files of snapshot '" + broken + "' cannot be listed: it needs another processor", hearth.FailedPrecondition},
	} {
		r, err := desk.Diff(t.Context(), "t1", tc.from, tc.to, tc.limit)
		switch {
		case err == nil && (tc.kind != "" || told(r) != tc.want):
			t.Errorf("%s..%s: %s", tc.from, tc.to, told(r))
		case err != nil && (hearth.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s..%s: %v", tc.from, tc.to, err)
		}
	}
	for _, id := range []hearth.SnapshotID{a, b, broken} {
		if ar.Held(id) {
			t.Errorf("%s is still held", id)
		}
	}
}

// slow is a stock whose lists take a second each.
type slow struct{ now, most atomic.Int64 }

func (s *slow) Inventory(context.Context, hearth.Snapshot, hearth.Build) ([]hearth.Entry, error) {
	n := s.now.Add(1)
	defer s.now.Add(-1)
	for was := s.most.Load(); n > was && !s.most.CompareAndSwap(was, n); was = s.most.Load() {
	}
	time.Sleep(time.Second)
	return nil, nil
}

// TestFewAtOnce: however many ask, two comparisons hold lists; the others wait, and
// one that waits can give up.
func TestFewAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const a, b = "s000000000000000000a1", "s000000000000000000b1"
		db := memstore.New()
		err := errors.Join(
			db.CreateTemplate(t.Context(), &hearth.Template{ID: "tpl", Team: "t1"}),
			db.CreateBuild(t.Context(), &hearth.Build{ID: "b1", Template: "tpl"}),
			db.CreateSnapshot(t.Context(), &hearth.Snapshot{ID: a, Team: "t1", Build: "b1", Kind: hearth.KeptSnapshot, Created: time.Now()}),
			db.CreateSnapshot(t.Context(), &hearth.Snapshot{ID: b, Team: "t1", Build: "b1", Kind: hearth.KeptSnapshot, Created: time.Now()}),
		)
		if err != nil {
			t.Fatal(err)
		}
		ar, lists := archiveOf(db), &slow{}
		desk := compare.New(ar, db, lists)
		var all sync.WaitGroup
		for range 6 {
			all.Go(func() {
				if _, err := desk.Diff(t.Context(), "t1", a, b, 10); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := desk.Diff(ctx, "t1", a, b, 10); hearth.KindOf(err) != hearth.DeadlineExceeded {
			t.Errorf("one that gives up: %v", err)
		}
		all.Wait()
		if n := lists.most.Load(); n != 2 {
			t.Errorf("%d comparisons at once", n)
		}
		if _, err := desk.Diff(t.Context(), "t1", b, a, 10); err != nil || ar.Held(a) || ar.Held(b) {
			t.Errorf("afterwards: %v, held: %t, %t", err, ar.Held(a), ar.Held(b))
		}
	})
}
