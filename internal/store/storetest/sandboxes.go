package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"hearth/internal/hearth"
	"hearth/internal/store"
)

func sandboxRoundTrip(t *testing.T, s store.Store) {
	ctx := context.Background()
	want := Sandbox("ia")
	ok(t, s.CreateSandbox(ctx, want))
	got, err := s.Sandbox(ctx, "ia")
	ok(t, err)
	same(t, "sandbox", got, want)

	got.Env["A"], got.Network.AllowOut[0], *got.Network.AllowInternet = "changed", "changed", true
	want.Metadata["user"] = "changed"
	again, err := s.Sandbox(ctx, "ia")
	ok(t, err)
	same(t, "sandbox after the copies changed", again, Sandbox("ia"))

	bare := &hearth.Sandbox{ID: "ib", Generation: 1, State: hearth.Creating}
	ok(t, s.CreateSandbox(ctx, bare))
	got, err = s.Sandbox(ctx, "ib")
	ok(t, err)
	same(t, "bare sandbox", got, bare)
}

func sandboxErrors(t *testing.T, s store.Store) {
	ctx := context.Background()
	_, err := s.Sandbox(ctx, "ia")
	fails(t, err, hearth.NotFound)
	_, err = s.UpdateSandbox(ctx, "ia", func(*hearth.Sandbox) error { return nil })
	fails(t, err, hearth.NotFound)
	ok(t, s.CreateSandbox(ctx, Sandbox("ia")))
	fails(t, s.CreateSandbox(ctx, Sandbox("ia")), hearth.AlreadyExists)
	noGeneration := Sandbox("ib")
	noGeneration.Generation = 0
	fails(t, s.CreateSandbox(ctx, noGeneration), hearth.InvalidArgument)
}

func sandboxBadText(t *testing.T, s store.Store) {
	ctx := context.Background()
	spoil := map[string]func(*hearth.Sandbox, string){
		"alias":          func(s *hearth.Sandbox, bad string) { s.Alias = bad },
		"env name":       func(s *hearth.Sandbox, bad string) { s.Env = map[string]string{bad: "x"} },
		"env value":      func(s *hearth.Sandbox, bad string) { s.Env = map[string]string{"x": bad} },
		"metadata name":  func(s *hearth.Sandbox, bad string) { s.Metadata = map[string]string{bad: "x"} },
		"metadata value": func(s *hearth.Sandbox, bad string) { s.Metadata = map[string]string{"x": bad} },
		"allow list":     func(s *hearth.Sandbox, bad string) { s.Network.AllowOut = []string{"x", bad} },
	}
	ok(t, s.CreateSandbox(ctx, Sandbox("iz")))
	for name, fn := range spoil {
		for _, bad := range []string{"a\x00b", "\xff\xfe", "\xed\xa0\x80"} {
			sb := Sandbox("ia")
			fn(sb, bad)
			if err := s.CreateSandbox(ctx, sb); hearth.KindOf(err) != hearth.InvalidArgument || err == nil {
				t.Errorf("create with %s %q: %v", name, bad, err)
			}
			_, err := s.UpdateSandbox(ctx, "iz", func(sb *hearth.Sandbox) error { fn(sb, bad); return nil })
			if hearth.KindOf(err) != hearth.InvalidArgument || err == nil {
				t.Errorf("update with %s %q: %v", name, bad, err)
			}
		}
	}
	_, err := s.Sandbox(ctx, "ia")
	fails(t, err, hearth.NotFound)
	_, err = s.Sandbox(ctx, "ia\x00")
	fails(t, err, hearth.NotFound)
}

func sandboxUpdate(t *testing.T, s store.Store) {
	ctx := context.Background()
	ok(t, s.CreateSandbox(ctx, Sandbox("ia")))
	want := Sandbox("ia")
	change := func(sb *hearth.Sandbox) {
		sb.State, sb.Node, sb.Snapshot, sb.StopReason = hearth.Paused, "", "s1", ""
		sb.StartedAt, sb.EndsAt = epoch.Add(time.Hour), epoch.Add(2*time.Hour)
		sb.Metadata = map[string]string{"user": "bob"}
		sb.Env, sb.Network, sb.Launch, sb.AutoResume, sb.Open = nil, hearth.Network{}, 7, false, false
	}
	change(want)
	want.Generation = 2
	got, err := s.UpdateSandbox(ctx, "ia", func(sb *hearth.Sandbox) error {
		change(sb)
		sb.ID, sb.Team, sb.CreatedAt, sb.Generation = "other", "other", epoch.Add(time.Hour), 99 // the store's own
		return nil
	})
	ok(t, err)
	same(t, "returned row", got, want)
	read, err := s.Sandbox(ctx, "ia")
	ok(t, err)
	same(t, "stored row", read, want)
	list, _, err := s.ListSandboxes(ctx, store.SandboxFilter{Metadata: map[string]string{"user": "bob"}}, store.Page{})
	ok(t, err)
	same(t, "found by its new metadata", list, []*hearth.Sandbox{want})
	list, _, err = s.ListSandboxes(ctx, store.SandboxFilter{Metadata: map[string]string{"user": "ada"}}, store.Page{})
	ok(t, err)
	same(t, "found by its old metadata", list, []*hearth.Sandbox(nil))

	_, err = s.UpdateSandbox(ctx, "ia", func(sb *hearth.Sandbox) error { sb.Metadata["in"] = "place"; return nil })
	ok(t, err)
	n, err := s.CountSandboxes(ctx, store.SandboxFilter{Metadata: map[string]string{"in": "place"}})
	ok(t, err)
	same(t, "found by metadata changed in place", n, 1)
}

func sandboxUpdateRefused(t *testing.T, s store.Store) {
	ctx := context.Background()
	ok(t, s.CreateSandbox(ctx, Sandbox("ia")))
	mine := errors.New("no")
	_, err := s.UpdateSandbox(ctx, "ia", func(sb *hearth.Sandbox) error {
		sb.State = hearth.Stopped
		sb.Metadata["user"] = "x"
		return mine
	})
	if err != mine {
		t.Errorf("error %v, want the one of change itself", err)
	}
	got, err := s.Sandbox(ctx, "ia")
	ok(t, err)
	same(t, "row after a refused change", got, Sandbox("ia"))
}

// sandboxConcurrentUpdates counts in a row from many goroutines: no update may
// be lost, and the generation counts along.
func sandboxConcurrentUpdates(t *testing.T, s store.Store) {
	ctx := context.Background()
	sb := Sandbox("ia")
	sb.Timeout = 0
	ok(t, s.CreateSandbox(ctx, sb))
	const writers, each = 8, 12
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for done := 0; done < each; {
				_, err := s.UpdateSandbox(ctx, "ia", func(sb *hearth.Sandbox) error { sb.Timeout++; return nil })
				switch {
				case err == nil:
					done++
				case hearth.KindOf(err) != hearth.Aborted:
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	got, err := s.Sandbox(ctx, "ia")
	ok(t, err)
	same(t, "count", int(got.Timeout), writers*each)
	same(t, "generation", got.Generation, int64(1+writers*each))
}

// fill makes n running sandboxes; three in a row start at the same moment.
func fill(t *testing.T, s store.Store, n int) []string {
	t.Helper()
	var ids []string
	for i := range n {
		sb := Sandbox(fmt.Sprintf("i%03d", (i*37)%n))
		sb.StartedAt = epoch.Add(time.Duration(i/3) * time.Second)
		sb.Metadata = map[string]string{"even": fmt.Sprint(i%2 == 0), "all": "yes"}
		ok(t, s.CreateSandbox(context.Background(), sb))
	}
	list, next, err := s.ListSandboxes(context.Background(), store.SandboxFilter{OldestFirst: true}, store.Page{Limit: store.MaxPage})
	ok(t, err)
	same(t, "cursor of the only page", next, "")
	for _, sb := range list {
		ids = append(ids, string(sb.ID))
	}
	same(t, "rows", len(ids), n)
	sorted := slices.IsSortedFunc(list, func(a, b *hearth.Sandbox) int {
		if c := a.StartedAt.Compare(b.StartedAt); c != 0 {
			return c
		}
		return slices.Compare([]byte(a.ID), []byte(b.ID))
	})
	if !sorted {
		t.Error("listing is not in order")
	}
	return ids
}

// walk reads all pages of a listing.
func walk(t *testing.T, s store.Store, f store.SandboxFilter, limit int) (ids []string) {
	t.Helper()
	p := store.Page{Limit: limit}
	for range 1000 {
		list, next, err := s.ListSandboxes(context.Background(), f, p)
		ok(t, err)
		if len(list) > limit {
			t.Fatalf("page of %d rows, limit %d", len(list), limit)
		}
		for _, sb := range list {
			ids = append(ids, string(sb.ID))
		}
		if next == "" {
			return ids
		}
		if len(list) != limit {
			t.Fatalf("a page that is not the last has %d rows, limit %d", len(list), limit)
		}
		p.Cursor = next
	}
	t.Fatal("listing has no end")
	return nil
}

func sandboxPaging(t *testing.T, s store.Store) {
	oldest := fill(t, s, 60)
	newest := slices.Clone(oldest)
	slices.Reverse(newest)
	for _, limit := range []int{1, 7, 30, 59, 60, 61} {
		same(t, fmt.Sprintf("newest first by %d", limit), walk(t, s, store.SandboxFilter{}, limit), newest)
		same(t, fmt.Sprintf("oldest first by %d", limit), walk(t, s, store.SandboxFilter{OldestFirst: true}, limit), oldest)
		all := map[string]string{"all": "yes"}
		same(t, fmt.Sprintf("by metadata, %d", limit), walk(t, s, store.SandboxFilter{Metadata: all}, limit), newest)
		same(t, fmt.Sprintf("by metadata, oldest first, %d", limit),
			walk(t, s, store.SandboxFilter{Metadata: all, OldestFirst: true}, limit), oldest)
	}
	list, _, err := s.ListSandboxes(context.Background(), store.SandboxFilter{}, store.Page{Limit: -1})
	ok(t, err)
	same(t, "rows with a limit below one", len(list), 60)
}

// sandboxPagingMoves adds and removes rows between two pages: what was there all
// the time appears once.
func sandboxPagingMoves(t *testing.T, s store.Store) {
	ctx := context.Background()
	oldest := fill(t, s, 30)
	list, next, err := s.ListSandboxes(ctx, store.SandboxFilter{OldestFirst: true}, store.Page{Limit: 10})
	ok(t, err)
	same(t, "first page", len(list), 10)
	early := Sandbox("iearly")
	early.StartedAt = epoch.Add(-time.Hour)
	ok(t, s.CreateSandbox(ctx, early))
	_, err = s.UpdateSandbox(ctx, list[9].ID, func(sb *hearth.Sandbox) error { // the row the cursor points at
		sb.State, sb.EndsAt = hearth.Stopped, epoch.Add(-time.Hour)
		return nil
	})
	ok(t, err)
	ok(t, s.PurgeSandboxes(ctx, epoch))
	var rest []string
	for next != "" {
		list, next, err = s.ListSandboxes(ctx, store.SandboxFilter{OldestFirst: true}, store.Page{Limit: 10, Cursor: next})
		ok(t, err)
		for _, sb := range list {
			rest = append(rest, string(sb.ID))
		}
	}
	same(t, "rest", rest, oldest[10:])
}

func sandboxFilters(t *testing.T, s store.Store) {
	ctx := context.Background()
	add := func(id string, fn func(*hearth.Sandbox)) {
		sb := Sandbox(id)
		fn(sb)
		ok(t, s.CreateSandbox(ctx, sb))
	}
	add("ia", func(*hearth.Sandbox) {})
	add("ib", func(s *hearth.Sandbox) { s.Team = "t2" })
	add("ic", func(s *hearth.Sandbox) { s.State, s.Node, s.Snapshot = hearth.Paused, "", "s1" })
	add("id", func(s *hearth.Sandbox) { s.State = hearth.Stopped })
	add("ie", func(s *hearth.Sandbox) { s.Template = "other"; s.Node = "n2" })
	add("if", func(s *hearth.Sandbox) { s.StartedAt = epoch.Add(time.Hour) })
	add("ig", func(s *hearth.Sandbox) { s.Metadata = map[string]string{"user": "ada", "x": "1", "y": "2"} })
	add("ih", func(s *hearth.Sandbox) { s.Metadata = map[string]string{"user": "bob", "x": "1"} })
	live := []hearth.State{hearth.Running, hearth.Paused}
	for name, tc := range map[string]struct {
		f    store.SandboxFilter
		want []string
	}{
		"all":             {store.SandboxFilter{}, []string{"ia", "ib", "ic", "id", "ie", "ig", "ih", "if"}},
		"team":            {store.SandboxFilter{Team: "t2"}, []string{"ib"}},
		"unknown team":    {store.SandboxFilter{Team: "t9"}, nil},
		"states":          {store.SandboxFilter{Team: "t1", States: live}, []string{"ia", "ic", "ie", "ig", "ih", "if"}},
		"stopped":         {store.SandboxFilter{States: []hearth.State{hearth.Stopped}}, []string{"id"}},
		"node":            {store.SandboxFilter{Node: "n2"}, []string{"ie"}},
		"template":        {store.SandboxFilter{Template: "other", States: live}, []string{"ie"}},
		"started after":   {store.SandboxFilter{StartedAfter: epoch.Add(time.Hour)}, []string{"if"}},
		"after inclusive": {store.SandboxFilter{StartedAfter: epoch.Add(time.Second), Team: "t2"}, []string{"ib"}},
		"metadata":        {store.SandboxFilter{Metadata: map[string]string{"x": "1"}}, []string{"ig", "ih"}},
		"metadata and":    {store.SandboxFilter{Metadata: map[string]string{"x": "1", "user": "ada"}}, []string{"ig"}},
		"metadata odd":    {store.SandboxFilter{Metadata: map[string]string{"e%2Fnc": "a&b=c"}, Team: "t2"}, []string{"ib"}},
		"metadata value":  {store.SandboxFilter{Metadata: map[string]string{"x": "2"}}, nil},
		"metadata case":   {store.SandboxFilter{Metadata: map[string]string{"X": "1"}}, nil},
		"metadata empty":  {store.SandboxFilter{Metadata: map[string]string{"missing": ""}}, nil},
		"metadata, state": {store.SandboxFilter{Metadata: map[string]string{"user": "ada"}, States: []hearth.State{hearth.Paused}}, []string{"ic"}},
	} {
		f := tc.f
		f.OldestFirst = true
		same(t, name, walk(t, s, f, 3), tc.want)
		n, err := s.CountSandboxes(ctx, tc.f)
		ok(t, err)
		same(t, name+": count", n, len(tc.want))
	}
}

func sandboxCursors(t *testing.T, s store.Store) {
	ctx := context.Background()
	fill(t, s, 6)
	_, next, err := s.ListSandboxes(ctx, store.SandboxFilter{}, store.Page{Limit: 2})
	ok(t, err)
	for _, bad := range []string{
		"x", "!!!", "\x00", next + "x!", next[:len(next)/2], next + next,
		store.Position{At: epoch, ID: "i'; DROP TABLE sandboxes; --"}.Cursor(),
		store.Position{At: epoch, ID: ""}.Cursor(),
		store.Position{At: epoch.AddDate(3000, 0, 0), ID: "ia"}.Cursor(),
		store.Position{At: epoch, ID: "ia", Asc: true}.Cursor(), // of the other order
	} {
		list, _, err := s.ListSandboxes(ctx, store.SandboxFilter{}, store.Page{Limit: 2, Cursor: bad})
		if err == nil || hearth.KindOf(err) != hearth.InvalidArgument {
			t.Errorf("cursor %q: %d rows, error %v", bad, len(list), err)
		}
	}
}

func sandboxDue(t *testing.T, s store.Store) {
	ctx := context.Background()
	for i, id := range []string{"ia", "ib", "ic", "id"} {
		sb := Sandbox(id)
		sb.EndsAt = epoch.Add(-time.Duration(i) * time.Minute)
		if id == "ic" {
			sb.State = hearth.Pausing
		}
		ok(t, s.CreateSandbox(ctx, sb))
	}
	for _, tc := range []struct {
		now   time.Time
		limit int
		want  []hearth.SandboxID
	}{
		{epoch.Add(-time.Hour), 9, nil},
		{epoch.Add(-time.Nanosecond), 9, []hearth.SandboxID{"id", "ib"}},
		{epoch, 9, []hearth.SandboxID{"id", "ib", "ia"}},
		{epoch, 2, []hearth.SandboxID{"id", "ib"}},
	} {
		got, err := s.DueSandboxes(ctx, tc.now, tc.limit)
		ok(t, err)
		same(t, tc.now.String(), got, tc.want)
	}
}

func sandboxPurge(t *testing.T, s store.Store) {
	ctx := context.Background()
	for i, id := range []string{"ia", "ib", "ic"} {
		sb := Sandbox(id)
		sb.State, sb.EndsAt = hearth.Stopped, epoch.Add(time.Duration(i)*time.Minute)
		ok(t, s.CreateSandbox(ctx, sb))
	}
	old := Sandbox("id")
	old.EndsAt = epoch.Add(-time.Hour)
	ok(t, s.CreateSandbox(ctx, old))
	ok(t, s.PurgeSandboxes(ctx, epoch.Add(time.Minute)))
	same(t, "left", walk(t, s, store.SandboxFilter{OldestFirst: true}, 9), []string{"ib", "ic", "id"})
	n, err := s.CountSandboxes(ctx, store.SandboxFilter{Metadata: map[string]string{"user": "ada"}})
	ok(t, err)
	same(t, "left by metadata", n, 3)
}
