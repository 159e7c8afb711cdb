// Package inventory lists the files of snapshots.
//
// What files a snapshot has is known only to a machine that was started from it: so
// one is, once per snapshot, see agent.Agent.Look, and its guest daemon is asked.
// The answer is kept on the shelf beside the snapshot's files, as a note that may go
// at any time. The note is noteMagic, the SHA-256 of the rest, and the inventory as
// package guest writes it, sorted by path, compressed with gzip.
package inventory

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"slices"

	"hearth/internal/guest"
	"hearth/internal/hearth"
	"hearth/internal/node/agent"
	"hearth/internal/node/agent/turn"
)

const (
	noteName  = "inventory"
	noteMagic = "HRTHFN01"
)

// looker is the part of agent.Agent that a stock uses.
type looker interface {
	Look(ctx context.Context, b hearth.Build, s hearth.Snapshot, see func(ctx context.Context, dial agent.Dialer, control string) error) error
}

// notes is the part of shelf.Shelf that a stock uses.
type notes interface {
	Note(ctx context.Context, id hearth.SnapshotID, name string) ([]byte, error) // NotFound: there is none
	Annotate(ctx context.Context, id hearth.SnapshotID, name string, note []byte) error
}

// Lister asks a machine's daemon for its files.
type Lister interface {
	Inventory(ctx context.Context) ([]hearth.Entry, error)
}

// Deps are what a stock is made of.
type Deps struct {
	Agent looker
	Shelf notes
	Guest func(dial agent.Dialer, control string) Lister
	Log   *slog.Logger
}

// Stock knows the files of a node's snapshots. Its methods are safe for concurrent use.
type Stock struct {
	deps Deps
	turn chan struct{} // holds a token: snapshots are looked into one after the other
}

// New returns a stock. It reads nothing.
func New(d Deps) *Stock {
	s := &Stock{deps: d, turn: make(chan struct{}, 1)}
	s.turn <- struct{}{}
	return s
}

// Inventory lists the files of a snapshot, sorted by path. Whoever asks holds the
// snapshot. FailedPrecondition when it cannot be restored here, or has more files
// than are listed.
func (s *Stock) Inventory(ctx context.Context, snap hearth.Snapshot, build hearth.Build) ([]hearth.Entry, error) {
	if list := s.noted(ctx, snap.ID); list != nil {
		return list, nil
	}
	select {
	case <-s.turn:
		defer func() { s.turn <- struct{}{} }()
	case <-ctx.Done():
		return nil, turn.Ended(ctx)
	}
	if list := s.noted(ctx, snap.ID); list != nil { // the one before wanted the same
		return list, nil
	}
	var list []hearth.Entry
	err := s.deps.Agent.Look(ctx, build, snap, func(ctx context.Context, dial agent.Dialer, control string) (err error) {
		list, err = s.deps.Guest(dial, control).Inventory(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	if list, err = sorted(list); err != nil {
		return nil, err
	}
	if err := s.keep(ctx, snap.ID, list); err != nil {
		s.deps.Log.Warn("the list of a snapshot's files is not kept", "snapshot", snap.ID, "err", err)
	}
	return list, nil
}

// sorted brings a guest's list into order.
func sorted(list []hearth.Entry) ([]hearth.Entry, error) {
	slices.SortFunc(list, func(a, b hearth.Entry) int { return cmp.Compare(a.Path, b.Path) })
	for i := range list[:max(len(list)-1, 0)] {
		if list[i].Path == list[i+1].Path {
			return nil, hearth.Errorf(hearth.FailedPrecondition, "the list of files names one twice")
		}
	}
	if list == nil {
		list = []hearth.Entry{}
	}
	return list, nil
}

func (s *Stock) keep(ctx context.Context, id hearth.SnapshotID, list []hearth.Entry) error {
	note, err := encode(list)
	if err != nil {
		return err
	}
	return s.deps.Shelf.Annotate(ctx, id, noteName, note)
}

func encode(list []hearth.Entry) ([]byte, error) {
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	out := guest.NewInventoryWriter(z)
	for _, e := range list {
		out.Add(e)
	}
	if err := errors.Join(out.End(), z.Close()); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(packed.Bytes())
	return slices.Concat([]byte(noteMagic), sum[:], packed.Bytes()), nil
}

// noted reads what was kept, nil if there is nothing of use.
func (s *Stock) noted(ctx context.Context, id hearth.SnapshotID) []hearth.Entry {
	note, err := s.deps.Shelf.Note(ctx, id, noteName)
	if err != nil {
		if hearth.KindOf(err) != hearth.NotFound && ctx.Err() == nil {
			s.deps.Log.Warn("the list of a snapshot's files cannot be read; it is made anew", "snapshot", id, "err", err)
		}
		return nil
	}
	list, err := decode(note)
	if err != nil {
		s.deps.Log.Warn("the list of a snapshot's files is damaged; it is made anew", "snapshot", id, "err", err)
		return nil
	}
	return list
}

func decode(note []byte) ([]hearth.Entry, error) {
	rest, ok := bytes.CutPrefix(note, []byte(noteMagic))
	if !ok || len(rest) < sha256.Size {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "it does not begin as one")
	}
	if sum := sha256.Sum256(rest[sha256.Size:]); !bytes.Equal(sum[:], rest[:sha256.Size]) {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "it is not what was written")
	}
	z, err := gzip.NewReader(bytes.NewReader(rest[sha256.Size:]))
	if err != nil {
		return nil, err
	}
	list, more, err := guest.ReadInventory(z)
	if err == nil && more {
		err = hearth.Errorf(hearth.FailedPrecondition, "it is not whole")
	}
	if err != nil {
		return nil, err
	}
	return sorted(list)
}
