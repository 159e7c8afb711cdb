package shelf

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"hearth/internal/hearth"
)

// MakeRoom deletes plain files that are packed and not in use, for somebody whose
// disk is full: those that were not used for longest, until it is enough bytes or
// there are no more. It returns how many they had; what the archive is not seen to
// have stays.
func (s *Shelf) MakeRoom(ctx context.Context, enough int64) (freed int64, err error) {
	before := s.plainBytes()
	err = s.evict(ctx, max(before-enough, 0))
	return before - s.plainBytes(), err
}

func (s *Shelf) plainBytes() (sum int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.graph == nil {
		return 0
	}
	for _, n := range s.graph.nodes {
		if n.raw {
			sum += n.bytes()
		}
	}
	return sum
}

// evict deletes plain files that are packed and not in use, those first that were
// not used for longest, until the rest is within the limit.
func (s *Shelf) evict(ctx context.Context, limit int64) error {
	var errs []error
	for _, id := range s.excess(limit) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		errs = append(errs, s.evictOne(ctx, id))
	}
	return errors.Join(errs...)
}

// excess lists whose plain files should go.
func (s *Shelf) excess(limit int64) []hearth.SnapshotID {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.graph == nil {
		return nil
	}
	g, used := s.graph, s.graph.inUse()
	var total int64
	var list []hearth.SnapshotID
	for id, n := range g.nodes {
		if !n.raw {
			continue
		}
		total += n.bytes()
		if n.packed && !used[id] && len(n.files) > 0 {
			list = append(list, id)
		}
	}
	slices.SortFunc(list, func(a, b hearth.SnapshotID) int {
		return cmp.Or(g.nodes[a].used.Compare(g.nodes[b].used), cmp.Compare(a, b))
	})
	for i, id := range list {
		if total <= limit {
			return list[:i]
		}
		total -= g.nodes[id].bytes()
	}
	return list
}

func (n node) bytes() (sum int64) {
	for _, f := range n.files {
		sum += f.Bytes
	}
	return sum
}

// inUse is what holders hold, and all that it refers to.
func (g *graph) inUse() map[hearth.SnapshotID]bool {
	used := map[hearth.SnapshotID]bool{}
	for id := range g.held {
		for at := id; at != "" && !used[at]; at = g.nodes[at].base {
			used[at] = true
		}
	}
	return used
}

// evictOne deletes a snapshot's plain files once the archive was seen to have
// them. If it does not, they are packed again.
func (s *Shelf) evictOne(ctx context.Context, id hearth.SnapshotID) error {
	s.mu.Lock()
	n := s.graph.nodes[id]
	s.mu.Unlock()
	for _, f := range n.files {
		err := s.packing.Archive.Check(ctx, f.SHA256)
		if err == nil {
			continue
		}
		k := hearth.KindOf(err)
		if k == hearth.NotFound || k == hearth.FailedPrecondition {
			if _, perr := s.blobs.Stat(ctx, f.Blob); perr != nil { // another of its files is
				s.packing.Log.Error("a packed snapshot is damaged, and its plain file is not there any more", "snapshot", id, "file", f.Name, "err", err)
				return errors.Join(err, perr)
			}
			s.packing.Log.Error("a packed snapshot is damaged; it is packed again", "snapshot", id, "file", f.Name, "err", err)
			_, cerr := s.packing.Archive.Collect(ctx, func(sha256 string) bool { return sha256 != f.SHA256 })
			return errors.Join(err, cerr, s.unmark(ctx, id))
		}
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.graph.nodes[id]
	if !ok || s.graph.inUse()[id] {
		return nil
	}
	n.raw, n.lent = false, false
	s.graph.nodes[id] = n
	if err := s.dropNotes(ctx, id); err != nil {
		return err
	}
	for _, f := range n.files {
		if err := s.blobs.Delete(ctx, f.Blob); err != nil {
			return err
		}
		s.proofs.forget(f.Blob)
	}
	s.packing.Log.Info("plain files of a packed snapshot removed", "snapshot", id, "bytes", n.bytes())
	return nil
}

// unmark says that a snapshot is not in the archive after all.
func (s *Shelf) unmark(ctx context.Context, id hearth.SnapshotID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n, ok := s.graph.nodes[id]; ok {
		n.packed, n.alone = false, true
		s.graph.nodes[id] = n
	}
	s.nudge()
	return s.blobs.Delete(ctx, prefix(id)+packedName)
}
