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

	// Weights are those of the newest maxWeighed snapshots that sandboxes can be started
	// from; one that could not be found out is not there.
	Weights map[hearth.SnapshotID]Weight
}

// Weight is what a snapshot takes, in bytes.
type Weight struct {
	Whole int64 // its files and those of all that they refer to, without holes
	Added int64 // on disk for it, and neither for the one before it that can be started from nor for its template
}

// maxTree bounds how many snapshots of a team are looked at.
const maxTree = 20_000

// maxWeighed bounds how many of them are weighed: each may take reading the indexes of
// several packed files, while all other trees wait. The shelf remembers the results of
// a few trees that big, so that asking again is cheap.
const maxWeighed = 1000

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
	return t, a.weigh(ctx, t)
}

// weigh finds out what the snapshots of a tree take.
func (a *Archive) weigh(ctx context.Context, t *Tree) error {
	t.Weights = map[hearth.SnapshotID]Weight{}
	warm := map[hearth.BuildID]map[string]hearth.SnapshotID{}
	before := map[hearth.SnapshotID]hearth.SnapshotID{} // of each one itself, or the nearest before it, that can be started from
	old := -maxWeighed                                  // how many of these are too old to be weighed
	for _, s := range t.Snapshots {
		if s.Status == hearth.SnapshotReady {
			old++
		}
	}
	for _, s := range t.Snapshots {
		if s.Status != hearth.SnapshotReady {
			before[s.ID] = before[s.After]
			continue
		}
		before[s.ID] = s.ID
		if old > 0 {
			old--
			continue
		}
		if _, known := warm[s.Build]; !known {
			b, err := a.deps.Store.Build(ctx, s.Build)
			if err != nil && !missing(err) {
				return err
			}
			warm[s.Build] = nil // its template is gone
			if err == nil {
				warm[s.Build] = b.Warm
			}
		}
		whole, added, err := a.deps.Shelf.Weigh(ctx, s.ID, before[s.After], warm[s.Build][s.Driver])
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil { // removed meanwhile, or damaged: the rest of the tree is all the same
			a.deps.Log.Warn("what a snapshot takes on disk cannot be found out", "snapshot", s.ID, "err", err)
			continue
		}
		t.Weights[s.ID] = Weight{whole, added}
	}
	return nil
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
