package control

import (
	"context"

	"hearth/internal/control/archive"
	"hearth/internal/hearth"
	"hearth/internal/store"
)

// Tree is what shares a line.
type Tree = archive.Tree

// Tree returns everything that shares a line with a sandbox.
func (c *Controller) Tree(ctx context.Context, team hearth.TeamID, id hearth.SandboxID) (*Tree, error) {
	sb, err := c.Sandbox(ctx, team, id)
	if err != nil {
		return nil, err
	}
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
			return c.archive.Tree(ctx, sb, all)
		}
	}
}
