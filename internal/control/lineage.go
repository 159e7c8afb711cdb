package control

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

// Tree returns everything that shares a line with a sandbox.
func (c *Controller) Tree(ctx context.Context, team hearth.TeamID, id hearth.SandboxID) (*Tree, error) {
	sb, err := c.Sandbox(ctx, team, id)
	if err != nil {
		return nil, err
	}
	snaps, err := c.teamSnapshots(ctx, team)
	if err != nil {
		return nil, err
	}
	boxes, err := c.teamSandboxes(ctx, team)
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
		if s.Sandbox == id {
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
		if r, known := root[b.Head]; b.ID == id || known && lines[r] {
			t.Sandboxes = append(t.Sandboxes, b)
		}
	}
	return t, nil
}

// teamSnapshots are those of a team that users see, oldest first.
func (c *Controller) teamSnapshots(ctx context.Context, team hearth.TeamID) ([]*hearth.Snapshot, error) {
	f := store.SnapshotFilter{
		Team: team, Kinds: []hearth.SnapshotKind{hearth.KeptSnapshot, hearth.StepSnapshot, hearth.ForkSnapshot},
		Statuses: []hearth.SnapshotStatus{hearth.SnapshotReady, hearth.SnapshotDropped, hearth.SnapshotGone},
	}
	var all []*hearth.Snapshot
	for p := (store.Page{Limit: store.MaxPage}); len(all) < maxTree; {
		list, next, err := c.store.FindSnapshots(ctx, f, p)
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

func (c *Controller) teamSandboxes(ctx context.Context, team hearth.TeamID) ([]*hearth.Sandbox, error) {
	f := store.SandboxFilter{Team: team, OldestFirst: true, States: []hearth.State{
		hearth.Running, hearth.Pausing, hearth.Paused, hearth.Resuming, hearth.Reverting,
	}}
	var all []*hearth.Sandbox
	for p := (store.Page{Limit: store.MaxPage}); ; {
		list, next, err := c.store.ListSandboxes(ctx, f, p)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
		if p.Cursor = next; next == "" {
			return all, nil
		}
	}
}
