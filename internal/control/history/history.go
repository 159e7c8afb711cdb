// Package history keeps a sandbox's steps: what it was after each command or cell,
// for those whose owners asked for that.
//
// A step is a snapshot of kind step, taken under the sandbox's lock like any
// other. Commands that end while one is being taken wait for the next, which is
// taken for all of them: so however many end at once, each waits for two at most,
// and for what the first of them has to be packed for, see Keeper.run.
// A step that cannot be taken is a gap: its row says why. After every step the
// older ones are thinned, see Thin. A step that was thinned is taken out of the
// line of snapshots; its files go with the last that lies on them.
package history

import (
	"cmp"
	"context"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"unicode"

	"hearth/internal/blob"
	"hearth/internal/control/archive"
	"hearth/internal/control/lanes"
	"hearth/internal/hearth"
	"hearth/internal/store"
)

// MaxLabel bounds what a step says of what ran in it, in bytes.
const MaxLabel = 200

// maxRows bounds how many of a sandbox's snapshots are looked at.
const maxRows = 10_000

// rows is the part of store.Store that a keeper uses.
type rows interface {
	FindSnapshots(ctx context.Context, f store.SnapshotFilter, p store.Page) ([]*hearth.Snapshot, string, error)
	SnapshotUses(ctx context.Context, id hearth.SnapshotID) (store.SnapshotUses, error)
	Sandbox(ctx context.Context, id hearth.SandboxID) (*hearth.Sandbox, error)
}

// Shelf has the files of snapshots.
type Shelf interface {
	// Objects returns what is on disk for each of some snapshots, perhaps for others
	// of them as well, and for nothing else that is kept.
	Objects(ctx context.Context, ids []hearth.SnapshotID) (map[hearth.SnapshotID][]blob.Object, error)

	// Pack makes snapshots as small on disk as they will be: compressed, and sharing
	// what they can. It does nothing with those that are.
	Pack(ctx context.Context, ids []hearth.SnapshotID) error
}

// Deps is what a keeper is made of.
type Deps struct {
	Store   rows
	Archive *archive.Archive
	Shelf   Shelf
	Lanes   *lanes.Lanes
	Go      func(func())    // runs what outlives its caller
	Life    context.Context // with which that ends
	Log     *slog.Logger

	// Take takes a step, and returns the sandbox and the error of the step. The
	// sandbox is nil when there is no step to be taken. Its lock is held.
	Take func(ctx context.Context, id hearth.SandboxID, label string) (*hearth.Sandbox, error)
}

// Keeper keeps the steps of all sandboxes. Its methods are safe for concurrent use.
type Keeper struct {
	deps          Deps
	turns         lanes.Locks // for taking steps and thinning
	taken, failed atomic.Int64

	mu      sync.Mutex
	waiting map[hearth.SandboxID]*batch        // what the next step of a sandbox is for
	later   map[hearth.SandboxID]hearth.TeamID // whose history could not be forgotten
}

// batch is the commands that share a step. err is set before done is closed.
type batch struct {
	labels []string
	done   chan struct{}
	err    error
}

// New returns a keeper. It reads nothing.
func New(d Deps) *Keeper {
	return &Keeper{deps: d, waiting: map[hearth.SandboxID]*batch{}, later: map[hearth.SandboxID]hearth.TeamID{}}
}

// Stats counts steps since the start of the process.
type Stats struct{ Taken, Failed int64 }

// Stats returns the counts.
func (k *Keeper) Stats() Stats { return Stats{k.taken.Load(), k.failed.Load()} }

// Step takes a step of a sandbox because a command ended, and returns when it is
// there, or when ctx ends; it is taken all the same.
func (k *Keeper) Step(ctx context.Context, id hearth.SandboxID, label string) error {
	b, first := k.join(id, label)
	if first {
		detached := context.WithoutCancel(ctx)
		k.deps.Go(func() { k.run(detached, id, b) })
	}
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		return lanes.Ended(ctx)
	}
}

// maxLabels bounds how many commands of one step are named.
const maxLabels = 8

// join puts a command into the sandbox's next step.
func (k *Keeper) join(id hearth.SandboxID, label string) (b *batch, first bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	b = k.waiting[id]
	if first = b == nil; first {
		b = &batch{done: make(chan struct{})}
		k.waiting[id] = b
	}
	if len(b.labels) < maxLabels {
		b.labels = append(b.labels, Label(label))
	}
	return b, first
}

// seal ends a batch: who comes from now on is for the next step.
func (k *Keeper) seal(id hearth.SandboxID, b *batch) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.waiting[id] == b {
		delete(k.waiting, id)
	}
	return Label(strings.Join(b.labels, "; "))
}

// run takes the step of a batch, and thins the history once everybody has his
// answer. The sandbox's next step waits for both: it does not write faster than its
// steps are packed. Others who want the sandbox do not wait for the packing.
func (k *Keeper) run(ctx context.Context, id hearth.SandboxID, b *batch) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(k.deps.Life, cancel)()
	unlock, err := k.turns.Lock(ctx, id)
	if err == nil {
		defer unlock()
	}
	var sb *hearth.Sandbox
	if err == nil {
		sb, err = k.take(ctx, id, b)
	}
	k.seal(id, b) // should the sandbox's turn never have come
	b.err = err
	close(b.done)
	if sb == nil {
		return
	}
	if err := k.tidy(ctx, sb); err != nil {
		k.deps.Log.Warn("a sandbox's history is not thinned yet", "sandbox", id, "err", err)
	}
}

// take takes the step of a batch, and returns its sandbox: nil when there is none to
// be taken.
func (k *Keeper) take(ctx context.Context, id hearth.SandboxID, b *batch) (*hearth.Sandbox, error) {
	unlock, err := k.deps.Lanes.Lock(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	sb, err := k.deps.Take(ctx, id, k.seal(id, b))
	switch {
	case sb == nil:
	case err != nil:
		k.failed.Add(1)
		k.deps.Log.Warn("a step of a sandbox's history could not be taken", "sandbox", id, "step", sb.Lifecycle.Steps, "err", err)
	default:
		k.taken.Add(1)
	}
	return sb, err
}

// Label makes a text fit to be shown: printable, on one line, MaxLabel bytes at most.
func Label(text string) string {
	var b strings.Builder
	for _, r := range strings.TrimSpace(text) {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			r = ' '
		}
		if b.Len()+len(string(r)) > MaxLabel {
			break
		}
		b.WriteRune(r)
	}
	return b.String()
}

// of returns all snapshots that were taken of a sandbox, whatever became of them.
func (k *Keeper) of(ctx context.Context, team hearth.TeamID, id hearth.SandboxID) (all []*hearth.Snapshot, err error) {
	f := store.SnapshotFilter{Team: team, Sandbox: id}
	for p := (store.Page{Limit: store.MaxPage}); len(all) < maxRows; {
		list, next, err := k.deps.Store.FindSnapshots(ctx, f, p)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
		if p.Cursor = next; next == "" {
			break
		}
	}
	return all, nil
}

// live reports whether a row is a step that thinning decides about.
func live(s *hearth.Snapshot) bool {
	return s.Kind == hearth.StepSnapshot && (s.Status == hearth.SnapshotReady || s.Status == hearth.SnapshotFailed)
}

// weighed turns rows into what thinning looks at.
func (k *Keeper) weighed(ctx context.Context, all []*hearth.Snapshot, head hearth.SnapshotID) (steps []Step, err error) {
	line := before(head, all)
	for _, s := range all {
		if live(s) {
			steps = append(steps, Step{ID: s.ID, Number: s.Step, Gap: s.Status == hearth.SnapshotFailed, Pinned: s.ID == head, Line: line[s.ID]})
		}
	}
	of, err := k.deps.Shelf.Objects(ctx, whole(steps))
	for i, s := range steps {
		steps[i].Objects = of[s.ID]
	}
	return steps, err
}

// before is a snapshot and those that it comes from, as far as they are among all.
func before(id hearth.SnapshotID, all []*hearth.Snapshot) map[hearth.SnapshotID]bool {
	after := map[hearth.SnapshotID]hearth.SnapshotID{}
	for _, s := range all {
		after[s.ID] = s.After
	}
	line := map[hearth.SnapshotID]bool{}
	for there := true; there && !line[id]; id, there = after[id] {
		line[id] = true
	}
	return line
}

// whole names the steps that can be gone back to.
func whole(steps []Step) (ids []hearth.SnapshotID) {
	for _, s := range steps {
		if !s.Gap {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// without is the steps that are left.
func without(steps, gone []Step) (kept []Step) {
	numbers := map[int64]bool{}
	for _, s := range gone {
		numbers[s.Number] = true
	}
	for _, s := range steps {
		if !numbers[s.Number] {
			kept = append(kept, s)
		}
	}
	return kept
}

// look returns all snapshots that were taken of a sandbox, and what thinning looks at.
func (k *Keeper) look(ctx context.Context, sb *hearth.Sandbox) (all []*hearth.Snapshot, steps []Step, err error) {
	if all, err = k.of(ctx, sb.Team, sb.ID); err != nil {
		return nil, nil, err
	}
	now, err := k.deps.Store.Sandbox(ctx, sb.ID) // where its state comes from
	if err != nil {
		return nil, nil, err
	}
	steps, err = k.weighed(ctx, all, now.Head)
	return all, steps, err
}

// tidy thins a history. Before a step goes for the budget's sake the newest, which are
// plain files yet and may be many times of what will be left of them, are packed.
func (k *Keeper) tidy(ctx context.Context, sb *hearth.Sandbox) error {
	_, steps, err := k.look(ctx, sb)
	if err != nil {
		return err
	}
	kept := without(steps, Thin(steps, math.MaxInt64))
	fits := Weigh(kept) <= Limit(kept, sb.Lifecycle.History)
	if len(kept) == len(steps) && fits {
		return nil
	}
	if !fits {
		if err := k.deps.Shelf.Pack(ctx, whole(kept)); err != nil {
			k.deps.Log.Warn("steps of a sandbox's history are not packed yet, and count as they are", "sandbox", sb.ID, "err", err)
		}
	}
	return k.thin(ctx, sb)
}

// thin drops the steps that the rule lets go.
func (k *Keeper) thin(ctx context.Context, sb *hearth.Sandbox) error {
	unlock, err := k.deps.Lanes.Lock(ctx, sb.ID)
	if err != nil {
		return err
	}
	defer unlock()
	all, steps, err := k.look(ctx, sb)
	if err != nil {
		return err
	}
	by := map[hearth.SnapshotID]*hearth.Snapshot{}
	for _, s := range all {
		by[s.ID] = s
	}
	for _, gone := range Thin(steps, sb.Lifecycle.History) {
		if err := k.drop(ctx, by[gone.ID], all); err != nil {
			return err
		}
	}
	return nil
}

// drop lets a step go, one of all that were taken of its sandbox. A step that
// another sandbox was made from, and that is still where that one's line begins,
// becomes a snapshot like any other instead.
func (k *Keeper) drop(ctx context.Context, s *hearth.Snapshot, all []*hearth.Snapshot) error {
	uses, err := k.deps.Store.SnapshotUses(ctx, s.ID)
	if err != nil {
		return err
	}
	if uses.Others > 0 && s.Status == hearth.SnapshotReady {
		_, err := k.deps.Archive.Keep(ctx, s.ID, "", "")
		return err
	}
	return k.deps.Archive.Splice(ctx, s, all)
}

// Entry is one step of a history.
type Entry struct {
	*hearth.Snapshot
	Parent int64 // the step of the same sandbox that it comes after; 0: none that is left
}

// History is a sandbox's steps, the oldest first, gaps included.
type History struct {
	Steps  []Entry
	Head   int64 // the step that the sandbox's state comes from; 0: none that is left
	Bytes  int64 // that are there for steps alone
	Budget int64
}

// List returns a sandbox's history.
func (k *Keeper) List(ctx context.Context, sb *hearth.Sandbox) (*History, error) {
	all, err := k.of(ctx, sb.Team, sb.ID)
	if err != nil {
		return nil, err
	}
	steps, err := k.weighed(ctx, all, sb.Head)
	if err != nil {
		return nil, err
	}
	by := map[hearth.SnapshotID]*hearth.Snapshot{}
	for _, s := range all {
		by[s.ID] = s
	}
	h := &History{Bytes: Weigh(steps), Budget: sb.Lifecycle.History, Head: number(sb.Head, by)}
	for _, s := range all {
		if live(s) || kept(s) {
			h.Steps = append(h.Steps, Entry{Snapshot: s, Parent: number(s.After, by)})
		}
	}
	slices.SortFunc(h.Steps, func(a, b Entry) int { return cmp.Compare(a.Step, b.Step) })
	return h, nil
}

// kept reports whether a row was a step, and was kept for good.
func kept(s *hearth.Snapshot) bool {
	return s.Step > 0 && s.Kind == hearth.KeptSnapshot && s.Status == hearth.SnapshotReady
}

// number is that of the step at or before a snapshot in its line.
func number(id hearth.SnapshotID, by map[hearth.SnapshotID]*hearth.Snapshot) int64 {
	for range len(by) {
		s := by[id]
		switch {
		case s == nil:
			return 0
		case s.Status == hearth.SnapshotReady && s.Step > 0:
			return s.Step
		}
		id = s.After
	}
	return 0
}

// Find returns the snapshot of a step. NotFound when it is not there any more,
// FailedPrecondition when it could not be taken.
func (k *Keeper) Find(ctx context.Context, sb *hearth.Sandbox, step int64) (*hearth.Snapshot, error) {
	all, err := k.of(ctx, sb.Team, sb.ID)
	if err != nil {
		return nil, err
	}
	for _, s := range all {
		switch {
		case s.Step != step:
		case kept(s), live(s) && s.Status == hearth.SnapshotReady:
			return s, nil
		case live(s):
			return nil, hearth.Errorf(hearth.FailedPrecondition, "step %d of sandbox '%s' could not be taken: %s", step, sb.ID, s.Reason)
		}
	}
	switch {
	case sb.Lifecycle.Steps == 0:
		return nil, hearth.Errorf(hearth.NotFound, "sandbox '%s' has no step %d: none has been taken of it", sb.ID, step)
	case step > sb.Lifecycle.Steps:
		return nil, hearth.Errorf(hearth.NotFound, "sandbox '%s' has no step %d: its last one is %d", sb.ID, step, sb.Lifecycle.Steps)
	}
	return nil, hearth.Errorf(hearth.NotFound, "sandbox '%s' has no step %d any more: it was thinned or deleted, its history shows those that are left", sb.ID, step)
}

// End forgets the history of a sandbox that is no more, now or with Retry.
func (k *Keeper) End(ctx context.Context, team hearth.TeamID, id hearth.SandboxID) {
	if err := k.forget(ctx, team, id); err != nil {
		k.deps.Log.Warn("the history of a stopped sandbox is not forgotten yet", "sandbox", id, "err", err)
		k.mu.Lock()
		defer k.mu.Unlock()
		k.later[id] = team
	}
}

// Retry does what End could not.
func (k *Keeper) Retry(ctx context.Context) {
	k.mu.Lock()
	due := k.later
	k.later = map[hearth.SandboxID]hearth.TeamID{}
	k.mu.Unlock()
	for id, team := range due {
		k.End(ctx, team, id)
	}
}

func (k *Keeper) forget(ctx context.Context, team hearth.TeamID, id hearth.SandboxID) error {
	all, err := k.of(ctx, team, id)
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b *hearth.Snapshot) int { return cmp.Compare(b.Step, a.Step) })
	for _, s := range all {
		if !live(s) {
			continue
		}
		if err := k.drop(ctx, s, all); err != nil {
			return err
		}
	}
	return nil
}

// Sweep forgets the histories of sandboxes that stopped while nobody could.
func (k *Keeper) Sweep(ctx context.Context) error {
	over := map[hearth.SandboxID]hearth.TeamID{}
	f := store.SnapshotFilter{Kinds: []hearth.SnapshotKind{hearth.StepSnapshot}, Statuses: []hearth.SnapshotStatus{hearth.SnapshotReady, hearth.SnapshotFailed}}
	for p := (store.Page{Limit: store.MaxPage}); ; {
		list, next, err := k.deps.Store.FindSnapshots(ctx, f, p)
		if err != nil {
			return err
		}
		for _, s := range list {
			over[s.Sandbox] = s.Team
		}
		if p.Cursor = next; next == "" {
			break
		}
	}
	for id, team := range over {
		sb, err := k.deps.Store.Sandbox(ctx, id)
		if err != nil && hearth.KindOf(err) != hearth.NotFound {
			return err
		}
		if err == nil && sb.State != hearth.Stopped {
			continue
		}
		if err := k.forget(ctx, team, id); err != nil {
			return err
		}
	}
	return nil
}
