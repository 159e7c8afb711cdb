package archive

import (
	"context"
	"slices"

	"hearth/internal/hearth"
	"hearth/internal/store"
)

// Tree is what shares a line: snapshots by their age, and the sandboxes that come
// from them.
type Tree struct {
	Snapshots []*hearth.Snapshot // oldest first; of those that are gone the row alone
	Sandboxes []*hearth.Sandbox
}

// maxTree bounds how many snapshots of a team are looked at.
const maxTree = 20_000

// Tree returns everything that shares a line with sb; boxes are all of its team.
func (a *Archive) Tree(ctx context.Context, sb *hearth.Sandbox, boxes []*hearth.Sandbox) (*Tree, error) {
	snaps, err := a.team(ctx, sb.Team)
	if err != nil {
		return nil, err
	}
	root := map[hearth.SnapshotID]hearth.SnapshotID{} // oldest known of each one's line
	for _, s := range snaps {                         // oldest first, so the one before is known
		if before, known := root[s.After]; known {
			root[s.ID] = before
		} else {
			root[s.ID] = s.ID
		}
	}
	lines := map[hearth.SnapshotID]bool{} // the roots that this sandbox belongs to
	if r, known := root[sb.Head]; known {
		lines[r] = true
	}
	for _, s := range snaps {
		if s.Sandbox == sb.ID {
			lines[root[s.ID]] = true
		}
	}
	t := &Tree{}
	for _, s := range snaps {
		if lines[root[s.ID]] {
			t.Snapshots = append(t.Snapshots, s)
		}
	}
	for _, b := range boxes {
		if r, known := root[b.Head]; b.ID == sb.ID || known && lines[r] {
			t.Sandboxes = append(t.Sandboxes, b)
		}
	}
	return t, nil
}

// team are those of a team that users see, oldest first.
func (a *Archive) team(ctx context.Context, id hearth.TeamID) ([]*hearth.Snapshot, error) {
	f := store.SnapshotFilter{
		Team: id, Kinds: []hearth.SnapshotKind{hearth.KeptSnapshot, hearth.ForkSnapshot, hearth.StepSnapshot},
		Statuses: []hearth.SnapshotStatus{hearth.SnapshotReady, hearth.SnapshotDropped, hearth.SnapshotGone},
	}
	var all []*hearth.Snapshot
	for p := (store.Page{Limit: store.MaxPage}); len(all) < maxTree; {
		list, next, err := a.deps.Store.FindSnapshots(ctx, f, p)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
		if p.Cursor = next; next == "" {
			break
		}
	}
	slices.Reverse(all)
	return all, nil
}
