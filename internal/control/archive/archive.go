// Package archive keeps the snapshots that users see: their rows, and with those
// their files, for as long as somebody needs them.
//
// A row is there from before the node writes the first file until after the last
// one is removed: taking, ready, dropped, and gone where others come after it in
// the line of a sandbox. Whoever starts from a snapshot holds it first and looks
// whether it is ready then; whoever removes files looks for holds after the row
// says dropped. So one of them sees the other. Holds end with the process, and
// so does what they were for: Sweep drops what was being taken.
package archive

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"hearth/internal/control/retry"
	"hearth/internal/control/wish"
	"hearth/internal/hearth"
	"hearth/internal/store"
)

// DefaultTag is the tag of a name that says none.
const DefaultTag = "default"

// Shelf has the files of snapshots.
type Shelf interface {
	// Remove removes the files of a snapshot; a missing one is not an error.
	Remove(ctx context.Context, id hearth.SnapshotID) error

	// Weigh returns the bytes that a snapshot has, with all that it refers to, and
	// those that are on disk for it, and neither for the snapshots over nor for what
	// these refer to.
	Weigh(ctx context.Context, id hearth.SnapshotID, over ...hearth.SnapshotID) (whole, added int64, err error)
}

// rows is the part of store.Store that an archive uses.
type rows interface {
	store.Snapshots
	Build(ctx context.Context, id hearth.BuildID) (*hearth.Build, error)
	DeleteTemplate(ctx context.Context, id hearth.TemplateID) error
}

// Deps is what an archive is made of.
type Deps struct {
	Store rows
	Shelf Shelf
	Log   *slog.Logger

	// Detached returns ctx without its end, with a deadline of its own.
	Detached func(ctx context.Context) (context.Context, context.CancelFunc)
}

// Archive is all snapshots. Its methods are safe for concurrent use.
type Archive struct {
	deps Deps

	mu    sync.Mutex
	holds map[hearth.SnapshotID]int  // who is about to start from it, or writes it
	later map[hearth.SnapshotID]bool // could not be collected when it was due
}

// New returns an archive. It reads nothing.
func New(d Deps) *Archive {
	return &Archive{deps: d, holds: map[hearth.SnapshotID]int{}, later: map[hearth.SnapshotID]bool{}}
}

// Hold keeps a snapshot's files until Let or Release.
func (a *Archive) Hold(id hearth.SnapshotID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.holds[id]++
}

// Release ends a hold.
func (a *Archive) Release(id hearth.SnapshotID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.holds[id]--; a.holds[id] == 0 {
		delete(a.holds, id)
	}
}

// Held reports whether somebody holds a snapshot.
func (a *Archive) Held(id hearth.SnapshotID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.holds[id] > 0
}

// Let ends a hold, and removes the snapshot if the hold was all that kept it.
func (a *Archive) Let(ctx context.Context, id hearth.SnapshotID) {
	a.Release(id)
	a.Tidy(ctx, id)
}

// Tidy is Collect that only reports: Sweep does what cannot be done now.
func (a *Archive) Tidy(ctx context.Context, id hearth.SnapshotID) {
	if err := a.Collect(ctx, id); err != nil {
		a.deps.Log.Warn("a dropped snapshot is not removed yet", "snapshot", id, "err", err)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.later[id] = true
	}
}

// List is a page of snapshots that are kept, newest first.
func (a *Archive) List(ctx context.Context, f store.SnapshotFilter, p store.Page) ([]*hearth.Snapshot, string, error) {
	f.Kinds = []hearth.SnapshotKind{hearth.KeptSnapshot}
	f.Statuses = []hearth.SnapshotStatus{hearth.SnapshotReady}
	return a.deps.Store.FindSnapshots(ctx, f, p)
}

// Take finds a team's snapshot that sandboxes can be started from, and holds it.
// NotFound when there is none.
func (a *Archive) Take(ctx context.Context, team hearth.TeamID, ref wish.Ref) (*hearth.Snapshot, error) {
	found, err := a.Find(ctx, team, ref)
	if err != nil {
		return nil, err
	}
	a.Hold(found.ID)
	snap, err := a.deps.Store.Snapshot(ctx, found.ID) // now that it is held
	if missing(err) || err == nil && !offered(snap, team) {
		err = hearth.Errorf(hearth.NotFound, "snapshot '%s' not found", ref.Name)
	}
	if err != nil {
		a.Let(ctx, found.ID)
		return nil, err
	}
	return snap, nil
}

func missing(err error) bool { return err != nil && hearth.KindOf(err) == hearth.NotFound }

// Rewrite changes a snapshot's row, though ctx ends meanwhile.
func (a *Archive) Rewrite(ctx context.Context, id hearth.SnapshotID, change func(*hearth.Snapshot)) (out *hearth.Snapshot, err error) {
	ctx, cancel := a.deps.Detached(ctx)
	defer cancel()
	err = retry.Do(ctx, 8, func() error {
		out, err = a.deps.Store.UpdateSnapshot(ctx, id, func(s *hearth.Snapshot) error { change(s); return nil })
		return err
	})
	return out, err
}

// Drop deletes a snapshot: nobody starts from it any more. Its files go as soon
// as nobody needs them.
func (a *Archive) Drop(ctx context.Context, id hearth.SnapshotID) error {
	_, err := a.Rewrite(ctx, id, func(s *hearth.Snapshot) {
		s.Alias, s.Tag = "", ""
		if s.Status != hearth.SnapshotGone {
			s.Status = hearth.SnapshotDropped
		}
	})
	if missing(err) {
		return nil
	}
	return err
}

// Fail notes that a step could not be taken, unless it is whole after all. What was
// written of it goes, now or with its row.
func (a *Archive) Fail(ctx context.Context, id hearth.SnapshotID, reason string) error {
	ctx, cancel := a.deps.Detached(ctx)
	defer cancel()
	err := retry.Do(ctx, 4, func() error {
		_, err := a.deps.Store.UpdateSnapshot(ctx, id, func(s *hearth.Snapshot) error {
			if s.Status != hearth.SnapshotTaking {
				return errMoved
			}
			s.Status, s.Reason, s.Files = hearth.SnapshotFailed, reason, nil
			return nil
		})
		return err
	})
	if errors.Is(err, errMoved) || missing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return retry.Do(ctx, 4, func() error { return a.deps.Shelf.Remove(ctx, id) })
}

// Keep makes a step a snapshot that stays until somebody deletes it, and gives it
// a name unless that is empty.
func (a *Archive) Keep(ctx context.Context, id hearth.SnapshotID, alias, tag string) (*hearth.Snapshot, error) {
	return a.Rewrite(ctx, id, func(s *hearth.Snapshot) {
		s.Kind = hearth.KeptSnapshot
		if alias != "" {
			s.Alias, s.Tag = alias, tag
		}
	})
}

// Splice takes a snapshot out of its line and drops it: those of its sandbox that
// come after it, which the caller has just read under the sandbox's lock, come
// after the one before it then, so that a long line does not fill with rows.
func (a *Archive) Splice(ctx context.Context, snap *hearth.Snapshot, of []*hearth.Snapshot) error {
	for _, heir := range of {
		if heir.After != snap.ID {
			continue
		}
		_, err := a.Rewrite(ctx, heir.ID, func(s *hearth.Snapshot) {
			if s.After == snap.ID {
				s.After = snap.After
			}
		})
		if err != nil && !missing(err) {
			return err
		}
		heir.After = snap.After
	}
	if err := a.Drop(ctx, snap.ID); err != nil {
		return err
	}
	a.Tidy(ctx, snap.ID)
	return nil
}

// Discard drops a snapshot of which nobody was told. tidy does what cannot be
// done now.
func (a *Archive) Discard(ctx context.Context, id hearth.SnapshotID) {
	if err := a.Drop(ctx, id); err != nil {
		a.deps.Log.Warn("a snapshot is not dropped yet", "snapshot", id, "err", err)
	}
}

// Collect removes what nobody needs any more of a snapshot that is not ready, and
// of those before it.
func (a *Archive) Collect(ctx context.Context, id hearth.SnapshotID) error {
	ctx, cancel := a.deps.Detached(ctx)
	defer cancel()
	for id != "" {
		snap, err := a.deps.Store.Snapshot(ctx, id)
		if missing(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if snap.Status == hearth.SnapshotReady || snap.Status == hearth.SnapshotFailed || a.Held(id) {
			return nil
		}
		uses, err := a.deps.Store.SnapshotUses(ctx, id)
		if err != nil || uses.Sandboxes > 0 {
			return err
		}
		if uses.Heirs > 0 {
			return a.empty(ctx, snap)
		}
		if err := a.unbuild(ctx, snap); err != nil {
			return err
		}
		if err := a.Erase(ctx, id); err != nil {
			return err
		}
		id = snap.After
	}
	return nil
}

// unbuild removes the template that came with an imported snapshot. All that was
// made of that template comes after the snapshot, so it is not needed either. Its
// layers are the builder's to sweep.
func (a *Archive) unbuild(ctx context.Context, snap *hearth.Snapshot) error {
	if snap.Template != hearth.ImportTemplateID(snap.ID) {
		return nil
	}
	err := retry.Do(ctx, 4, func() error { return a.deps.Store.DeleteTemplate(ctx, snap.Template) })
	if missing(err) {
		return nil
	}
	return err
}

// empty leaves of a snapshot what says how those after it came about.
func (a *Archive) empty(ctx context.Context, snap *hearth.Snapshot) error {
	if snap.Status == hearth.SnapshotGone {
		return nil
	}
	if err := retry.Do(ctx, 4, func() error { return a.deps.Shelf.Remove(ctx, snap.ID) }); err != nil {
		return err
	}
	_, err := a.Rewrite(ctx, snap.ID, func(s *hearth.Snapshot) { s.Status, s.Files = hearth.SnapshotGone, nil })
	return err
}

var errMoved = errors.New("in another status by now")

// Sweep drops what an earlier process was taking or forking from, and
// collects what is due among the given statuses.
func (a *Archive) Sweep(ctx context.Context, statuses ...hearth.SnapshotStatus) error {
	forks, err := a.unheld(ctx, store.SnapshotFilter{Kinds: []hearth.SnapshotKind{hearth.ForkSnapshot}, Statuses: []hearth.SnapshotStatus{hearth.SnapshotReady}})
	if err != nil {
		return err
	}
	taking, err := a.unheld(ctx, store.SnapshotFilter{Statuses: []hearth.SnapshotStatus{hearth.SnapshotTaking}})
	if err != nil {
		return err
	}
	for _, left := range append(forks, taking...) {
		if left.Kind == hearth.StepSnapshot {
			if err := a.Fail(ctx, left.ID, "the server stopped while it was being taken"); err != nil {
				return err
			}
			continue
		}
		_, err := a.deps.Store.UpdateSnapshot(ctx, left.ID, func(s *hearth.Snapshot) error {
			if s.Status != left.Status {
				return errMoved // it became ready, and was let go, meanwhile
			}
			s.Status = hearth.SnapshotDropped
			return nil
		})
		if err != nil && !errors.Is(err, errMoved) && !missing(err) {
			return err
		}
	}
	for _, id := range a.takeLater() {
		a.Tidy(ctx, id)
	}
	due, err := a.unheld(ctx, store.SnapshotFilter{Statuses: statuses})
	for _, s := range due {
		if err == nil {
			err = a.Collect(ctx, s.ID)
		}
	}
	return err
}

// takeLater empties the set of what could not be collected.
func (a *Archive) takeLater() []hearth.SnapshotID {
	a.mu.Lock()
	defer a.mu.Unlock()
	ids := slices.Collect(maps.Keys(a.later))
	clear(a.later)
	return ids
}

// unheld finds snapshots that nobody here is working on.
func (a *Archive) unheld(ctx context.Context, f store.SnapshotFilter) (out []*hearth.Snapshot, err error) {
	for p := (store.Page{Limit: store.MaxPage}); ; {
		list, next, err := a.deps.Store.FindSnapshots(ctx, f, p)
		if err != nil {
			return nil, err
		}
		for _, s := range list {
			if !a.Held(s.ID) {
				out = append(out, s)
			}
		}
		if p.Cursor = next; next == "" {
			return out, nil
		}
	}
}

// Find returns a team's snapshot that sandboxes can be started from.
func (a *Archive) Find(ctx context.Context, team hearth.TeamID, ref wish.Ref) (*hearth.Snapshot, error) {
	none := hearth.Errorf(hearth.NotFound, "snapshot '%s' not found", ref.Name)
	if ref.IsSnapshot() {
		s, err := a.deps.Store.Snapshot(ctx, hearth.SnapshotID(ref.Name))
		if missing(err) || err == nil && !offered(s, team) {
			return nil, none
		}
		return s, err
	}
	if ref.Alias() != ref.Name { // another team's namespace: callers leave their own away
		return nil, none
	}
	f := store.SnapshotFilter{Team: team, Alias: ref.Name, Tag: ref.Tag}
	if f.Tag == "" {
		f.Tag = DefaultTag
	}
	list, _, err := a.List(ctx, f, store.Page{Limit: 1})
	if err != nil {
		return nil, err
	}
	if len(list) > 0 {
		return list[0], nil
	}
	tag := f.Tag
	f.Tag = ""
	switch tagged, _, err := a.List(ctx, f, store.Page{Limit: 1}); {
	case err != nil:
		return nil, err
	case len(tagged) > 0:
		return nil, hearth.Wrap(hearth.NotFound, ErrTag, "tag '%s' does not exist for snapshot '%s'", tag, ref.Name)
	}
	return nil, none
}

// ErrTag is why a snapshot is not found whose name exists with other tags.
var ErrTag = errors.New("no such tag")

// offered reports whether a team may start sandboxes from a snapshot.
func offered(s *hearth.Snapshot, team hearth.TeamID) bool {
	return s.Team == team && s.Status == hearth.SnapshotReady && (s.Kind == hearth.KeptSnapshot || s.Kind == hearth.StepSnapshot)
}

// Erase removes a snapshot, files before row.
func (a *Archive) Erase(ctx context.Context, id hearth.SnapshotID) error {
	if err := retry.Do(ctx, 4, func() error { return a.deps.Shelf.Remove(ctx, id) }); err != nil {
		return err
	}
	err := retry.Do(ctx, 4, func() error { return a.deps.Store.DeleteSnapshot(ctx, id) })
	if missing(err) {
		return nil
	}
	return err
}
