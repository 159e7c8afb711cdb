// Package compare says what differs between the files of two snapshots.
//
// Files are compared by what a file system says of them, never by content: kind,
// size, time of the last change to the nanosecond, mode and owner; a symlink by its
// target; of a directory mode and owner alone, because its time changes with each
// file in it. So a file that was written with what was in it already has changed,
// and one whose content was changed with its time put back has not.
package compare

import (
	"context"

	"hearth/internal/control/archive"
	"hearth/internal/control/lanes"
	"hearth/internal/control/wish"
	"hearth/internal/hearth"
)

// MaxChanges is how many changes are listed at most.
const MaxChanges = 10_000

// atOnce is how many comparisons hold lists in memory: each may have two of
// hundreds of thousands of names.
const atOnce = 2

// What says what became of a file.
type What string

// What became of files.
const (
	Added   What = "added"
	Changed What = "changed"
	Removed What = "removed"
)

// Change is one difference.
type Change struct {
	Path   string
	What   What
	Kind   hearth.EntryKind // of a removed one what it was
	Size   int64            // bytes; of a removed one 0
	Before int64            // bytes before; of an added one 0
}

// Totals counts changes of one sort: how many, and their bytes; of changed ones the
// bytes after, of removed ones before.
type Totals struct {
	Count int
	Bytes int64
}

// Result is all that differs.
type Result struct {
	From, To                hearth.SnapshotID
	Changes                 []Change // by path
	Truncated               bool     // there are more than are listed; the totals count them all
	Added, Changed, Removed Totals
}

// note counts a change, and lists it if there is room.
func (r *Result) note(c Change, limit int) {
	switch c.What {
	case Added:
		r.Added.Count, r.Added.Bytes = r.Added.Count+1, r.Added.Bytes+c.Size
	case Changed:
		r.Changed.Count, r.Changed.Bytes = r.Changed.Count+1, r.Changed.Bytes+c.Size
	case Removed:
		r.Removed.Count, r.Removed.Bytes = r.Removed.Count+1, r.Removed.Bytes+c.Before
	}
	if len(r.Changes) < limit {
		r.Changes = append(r.Changes, c)
	} else {
		r.Truncated = true
	}
}

// Files compares two lists that are sorted by path.
func Files(from, to []hearth.Entry, limit int) *Result {
	r := &Result{}
	for len(from) > 0 || len(to) > 0 {
		switch {
		case len(to) == 0 || len(from) > 0 && from[0].Path < to[0].Path:
			r.note(Change{Path: from[0].Path, What: Removed, Kind: from[0].Kind, Before: from[0].Size}, limit)
			from = from[1:]
		case len(from) == 0 || to[0].Path < from[0].Path:
			r.note(Change{Path: to[0].Path, What: Added, Kind: to[0].Kind, Size: to[0].Size}, limit)
			to = to[1:]
		default:
			if differs(from[0], to[0]) {
				r.note(Change{Path: to[0].Path, What: Changed, Kind: to[0].Kind, Size: to[0].Size, Before: from[0].Size}, limit)
			}
			from, to = from[1:], to[1:]
		}
	}
	return r
}

func differs(a, b hearth.Entry) bool {
	if a.Kind != b.Kind || a.UID != b.UID || a.GID != b.GID {
		return true
	}
	switch a.Kind {
	case hearth.RegularFile:
		return a.Size != b.Size || a.MTime != b.MTime || a.Mode != b.Mode
	case hearth.Symlink:
		return a.Target != b.Target
	}
	return a.Mode != b.Mode
}

// stock lists the files of snapshots, sorted by path.
type stock interface {
	Inventory(ctx context.Context, snap hearth.Snapshot, build hearth.Build) ([]hearth.Entry, error)
}

// builds is the part of store.Store that a desk uses.
type builds interface {
	Build(ctx context.Context, id hearth.BuildID) (*hearth.Build, error)
}

// Desk compares a team's snapshots. Its methods are safe for concurrent use.
type Desk struct {
	archive *archive.Archive
	store   builds
	stock   stock
	turns   chan struct{} // a token per comparison under way
}

// New returns a desk for the snapshots of an archive.
func New(a *archive.Archive, store builds, s stock) *Desk {
	return &Desk{archive: a, store: store, stock: s, turns: make(chan struct{}, atOnce)}
}

// Diff says what became of one snapshot's files in another, both by ID or name and
// of the team's. NotFound when the team has no such snapshot, FailedPrecondition
// when the files of one cannot be listed here. Two at a time; others wait.
func (d *Desk) Diff(ctx context.Context, team hearth.TeamID, from, to string, limit int) (*Result, error) {
	if limit < 0 || limit > MaxChanges {
		return nil, hearth.Errorf(hearth.InvalidArgument, "limit must be within 0 and %d", MaxChanges)
	}
	select {
	case d.turns <- struct{}{}:
		defer func() { <-d.turns }()
	case <-ctx.Done():
		return nil, lanes.Ended(ctx)
	}
	var ids [2]hearth.SnapshotID
	var lists [2][]hearth.Entry
	for i, name := range []string{from, to} {
		snap, err := d.take(ctx, team, name)
		if err != nil {
			return nil, err
		}
		defer d.archive.Let(context.WithoutCancel(ctx), snap.ID)
		ids[i] = snap.ID
		if i == 1 && ids[0] == ids[1] {
			lists[1] = lists[0]
			break
		}
		if lists[i], err = d.files(ctx, snap); err != nil {
			return nil, err
		}
	}
	r := Files(lists[0], lists[1], limit)
	r.From, r.To = ids[0], ids[1]
	return r, nil
}

func (d *Desk) take(ctx context.Context, team hearth.TeamID, name string) (*hearth.Snapshot, error) {
	ref, err := wish.ParseRef(name)
	if err != nil {
		return nil, err
	}
	return d.archive.Take(ctx, team, ref)
}

func (d *Desk) files(ctx context.Context, snap *hearth.Snapshot) ([]hearth.Entry, error) {
	b, err := d.store.Build(ctx, snap.Build)
	if err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "the build of snapshot '%s' is gone", snap.ID)
	}
	list, err := d.stock.Inventory(ctx, *snap, *b)
	if err != nil {
		kind := hearth.KindOf(err)
		if kind == hearth.Internal || kind == hearth.NotFound {
			return nil, err
		}
		return nil, hearth.Wrap(kind, err, "the files of snapshot '%s' cannot be listed: %s", snap.ID, hearth.Shown(err))
	}
	return list, nil
}
