package storetest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"hearth/internal/hearth"
	"hearth/internal/store"
)

func snapshots(t *testing.T, s store.Store) {
	ctx := context.Background()
	a := &hearth.Snapshot{ID: "s1", Build: "b1", Parent: "s0", Base: "s0", Driver: "gvisor", Key: "v1/cpu", Memory: true,
		Files: []hearth.File{{Name: "memory", Blob: "a/b", Bytes: 1 << 40, SHA256: "ff"}}, Created: epoch,
		Sandbox: "i1", Team: "t1", Template: "tpl", Alias: "golden", Tag: "v1", Kind: hearth.KeptSnapshot,
		Status: hearth.SnapshotTaking, After: "s0", Resources: hearth.Resources{VCPUs: 2, MemoryMiB: 512, DiskMiB: 1024},
		Step: 1 << 40, Label: "echo \"ä\"", Reason: "the node's disk is full"}
	b := &hearth.Snapshot{ID: "s0", Created: epoch.Add(-time.Hour)}
	ok(t, s.CreateSnapshot(ctx, a))
	ok(t, s.CreateSnapshot(ctx, b))
	fails(t, s.CreateSnapshot(ctx, a), hearth.AlreadyExists)
	fails(t, s.CreateSnapshot(ctx, &hearth.Snapshot{ID: "s9", Driver: "a\x00"}), hearth.InvalidArgument)
	fails(t, s.CreateSnapshot(ctx, &hearth.Snapshot{ID: "s9", Files: []hearth.File{{Name: "\xff"}}}), hearth.InvalidArgument)
	got, err := s.Snapshot(ctx, "s1")
	ok(t, err)
	same(t, "snapshot", got, a)
	list, err := s.ListSnapshots(ctx)
	ok(t, err)
	same(t, "snapshots, oldest first", list, []*hearth.Snapshot{b, a})
	ok(t, s.DeleteSnapshot(ctx, "s1"))
	fails(t, s.DeleteSnapshot(ctx, "s1"), hearth.NotFound)
	_, err = s.Snapshot(ctx, "s1")
	fails(t, err, hearth.NotFound)
}

func snapshotNames(t *testing.T, s store.Store) {
	ctx := context.Background()
	row := func(id hearth.SnapshotID, team hearth.TeamID, tag string) *hearth.Snapshot {
		return &hearth.Snapshot{ID: id, Team: team, Alias: "golden", Tag: tag, Kind: hearth.KeptSnapshot, Created: epoch}
	}
	ok(t, s.CreateSnapshot(ctx, row("s1", "t1", "")))
	ok(t, s.CreateSnapshot(ctx, row("s2", "t1", "v2")))
	ok(t, s.CreateSnapshot(ctx, row("s3", "t2", "")))
	ok(t, s.CreateSnapshot(ctx, &hearth.Snapshot{ID: "s4", Team: "t1", Created: epoch}))
	_, err := s.UpdateSnapshot(ctx, "s9", func(*hearth.Snapshot) error { return nil })
	fails(t, err, hearth.NotFound)
	no := errors.New("no")
	if _, err := s.UpdateSnapshot(ctx, "s4", func(x *hearth.Snapshot) error { x.Alias = "lost"; return no }); !errors.Is(err, no) {
		t.Fatalf("the error of change became %v", err)
	}
	got, err := s.UpdateSnapshot(ctx, "s4", func(x *hearth.Snapshot) error {
		x.ID, x.Team, x.Created, x.Alias = "s5", "t9", time.Time{}, "golden"
		return nil
	})
	ok(t, err)
	same(t, "the row that took the name", got, &hearth.Snapshot{ID: "s4", Team: "t1", Alias: "golden", Created: epoch})
	for id, alias := range map[hearth.SnapshotID]string{"s1": "", "s2": "golden", "s3": "golden", "s4": "golden"} {
		snap, err := s.Snapshot(ctx, id)
		ok(t, err)
		if snap.Alias != alias {
			t.Errorf("%s is named %q, want %q", id, snap.Alias, alias)
		}
	}
	_, err = s.UpdateSnapshot(ctx, "s4", func(x *hearth.Snapshot) error { x.Alias = "a\x00"; return nil })
	fails(t, err, hearth.InvalidArgument)
}

func snapshotFind(t *testing.T, s store.Store) {
	ctx := context.Background()
	for i := range 7 {
		snap := &hearth.Snapshot{ID: hearth.SnapshotID(fmt.Sprintf("s%d", i)), Team: "t1", Sandbox: "i1", Kind: hearth.KeptSnapshot,
			Created: epoch.Add(time.Duration(i/2) * time.Second)}
		switch i {
		case 4:
			snap.Team = "t2"
		case 5:
			snap.Sandbox, snap.Template, snap.Alias, snap.Tag = "i2", "tpl", "x", "y"
		case 6:
			snap.Kind, snap.Status = hearth.ForkSnapshot, hearth.SnapshotDropped
		}
		ok(t, s.CreateSnapshot(ctx, snap))
	}
	for _, test := range []struct {
		f    store.SnapshotFilter
		want string
	}{
		{store.SnapshotFilter{}, "s6 s5 s4 s3 s2 s1 s0"},
		{store.SnapshotFilter{Team: "t1"}, "s6 s5 s3 s2 s1 s0"},
		{store.SnapshotFilter{Team: "t1", Sandbox: "i2"}, "s5"},
		{store.SnapshotFilter{Alias: "x"}, "s5"},
		{store.SnapshotFilter{Template: "tpl"}, "s5"},
		{store.SnapshotFilter{Alias: "x", Tag: "z"}, ""},
		{store.SnapshotFilter{Kinds: []hearth.SnapshotKind{hearth.ForkSnapshot}}, "s6"},
		{store.SnapshotFilter{Statuses: []hearth.SnapshotStatus{hearth.SnapshotReady}, Sandbox: "i1"}, "s4 s3 s2 s1 s0"},
	} {
		for _, size := range []int{1, 2, 100} {
			got, cursor := "", ""
			for {
				list, next, err := s.FindSnapshots(ctx, test.f, store.Page{Limit: size, Cursor: cursor})
				ok(t, err)
				for _, snap := range list {
					got += " " + string(snap.ID)
				}
				if cursor = next; next == "" {
					break
				}
			}
			if got = trim(got); got != test.want {
				t.Errorf("%+v by %d: %q, want %q", test.f, size, got, test.want)
			}
		}
	}
	_, _, err := s.FindSnapshots(ctx, store.SnapshotFilter{}, store.Page{Cursor: "nonsense"})
	fails(t, err, hearth.InvalidArgument)
}

func trim(s string) string {
	if s != "" {
		s = s[1:]
	}
	return s
}

func snapshotUses(t *testing.T, s store.Store) {
	ctx := context.Background()
	paused, heir, stopped := Sandbox("i1"), Sandbox("i2"), Sandbox("i3")
	paused.State, paused.Snapshot, paused.Head = hearth.Paused, "s1", ""
	stopped.State, stopped.Snapshot = hearth.Stopped, "s1"
	for _, sb := range []*hearth.Sandbox{paused, heir, stopped} {
		ok(t, s.CreateSandbox(ctx, sb))
	}
	ok(t, s.CreateSnapshot(ctx, &hearth.Snapshot{ID: "s1", Sandbox: "i2", Created: epoch}))
	ok(t, s.CreateSnapshot(ctx, &hearth.Snapshot{ID: "s2", Sandbox: "i4", After: "s1", Created: epoch}))
	uses, err := s.SnapshotUses(ctx, "s1")
	ok(t, err)
	same(t, "uses", uses, store.SnapshotUses{Sandboxes: 1, Heirs: 2, Others: 1})
	uses, err = s.SnapshotUses(ctx, "s2")
	ok(t, err)
	same(t, "uses of the last one", uses, store.SnapshotUses{})
}
