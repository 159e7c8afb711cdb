package shelf

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"time"

	"hearth/internal/hearth"
)

// graph is what refers to what: nodes are snapshots, on disk as manifests.
type graph struct {
	nodes   map[hearth.SnapshotID]node
	waits   map[hearth.SnapshotID]int    // how many nodes that are to be packed have it as their parent
	layers  map[hearth.SnapshotID]int    // how many nodes have it as their base
	held    map[hearth.SnapshotID]int    // how many holders it has
	holders map[string]hearth.SnapshotID // what each holds
	garbage bool                         // the archive has files that nobody needs, perhaps
}

type node struct {
	base    hearth.SnapshotID
	parent  hearth.SnapshotID
	owner   hearth.SandboxID
	files   []hearth.File
	created time.Time
	used    time.Time // when it was laid out last
	waiting bool      // for being packed; until then its parent stays, to share with
	marks
}

// marks is what is told by which blobs there are beside the manifest.
type marks struct {
	removed bool
	packed  bool
	raw     bool      // its plain files are there, or some of them
	damaged bool      // it cannot be packed; only this process knows
	entered time.Time // when it was put on the shelf, by this process
	alone   bool      // what it could share is damaged; only this process knows
	lent    bool      // a machine reads of it from the archive; only this process knows
}

func (s *Shelf) node(m *manifest, marked marks) node {
	snap := &m.Snapshot
	return node{
		base: snap.Base, parent: snap.Parent, owner: m.Sandbox, files: snap.Files, created: snap.Created, used: snap.Created,
		waiting: s.packing.Archive != nil && !marked.packed && marked.raw, marks: marked,
	}
}

func (g *graph) add(id hearth.SnapshotID, n node) {
	g.drop(id)
	g.nodes[id] = n
	g.layers[n.base]++
	if n.waiting {
		g.waits[n.parent]++
	}
}

func (g *graph) drop(id hearth.SnapshotID) {
	if n, ok := g.nodes[id]; ok {
		less(g.layers, n.base)
		if n.waiting {
			less(g.waits, n.parent)
		}
		delete(g.nodes, id)
	}
}

func less(counts map[hearth.SnapshotID]int, id hearth.SnapshotID) {
	if counts[id]--; counts[id] <= 0 {
		delete(counts, id)
	}
}

// needed reports whether anything refers to a snapshot.
func (g *graph) needed(id hearth.SnapshotID) bool {
	return g.layers[id] > 0 || g.held[id] > 0 || g.waits[id] > 0
}

// unreachable are the snapshots that are removed, and that no other snapshot and
// no holder needs, directly or not.
func (g *graph) unreachable() map[hearth.SnapshotID]bool {
	rest := map[hearth.SnapshotID]bool{}
	for id := range g.nodes {
		rest[id] = true
	}
	for id, n := range g.nodes {
		for at := id; (!n.removed || g.held[id] > 0) && rest[at]; at = g.nodes[at].base {
			delete(rest, at)
		}
	}
	for id, n := range g.nodes { // what a packing will share with
		if n.waiting && !rest[id] {
			for at := n.parent; rest[at]; at = g.nodes[at].base {
				delete(rest, at)
			}
		}
	}
	return rest
}

// load reads the graph when it is first needed. The caller holds mu.
func (s *Shelf) load(ctx context.Context) (*graph, error) {
	if s.graph != nil {
		return s.graph, nil
	}
	g := &graph{
		nodes: map[hearth.SnapshotID]node{}, layers: map[hearth.SnapshotID]int{},
		held: map[hearth.SnapshotID]int{}, holders: map[string]hearth.SnapshotID{}, waits: map[hearth.SnapshotID]int{},
		garbage: true, // of the process before
	}
	there := map[hearth.SnapshotID]map[string]bool{}
	for info, err := range s.blobs.List(ctx, root) {
		if err != nil {
			return nil, err
		}
		id, name, _ := split(info.Key)
		if there[id] == nil {
			there[id] = map[string]bool{}
		}
		there[id][name] = true
	}
	for id, names := range there {
		if !names[manifestName] {
			continue
		}
		m, err := s.read(ctx, id)
		if hearth.KindOf(err) == hearth.FailedPrecondition && err != nil {
			m, err = &manifest{}, nil // damaged, of no use to anyone; Remove takes it away
		}
		if err != nil {
			return nil, err
		}
		marked := marks{removed: names[removedName], packed: names[packedName]}
		for _, f := range m.Snapshot.Files {
			marked.raw = marked.raw || names[f.Name]
		}
		g.add(id, s.node(m, marked))
	}
	s.graph = g
	return g, nil
}

// split takes a key apart into the snapshot and the name of its file.
func split(key string) (id hearth.SnapshotID, name string, ok bool) {
	rest, ok := strings.CutPrefix(key, root)
	first, name, cut := strings.Cut(rest, "/")
	return hearth.SnapshotID(first), name, ok && cut
}

// Hold keeps a snapshot, and all that it refers to, until the holder calls
// Release, also when it is removed meanwhile. A holder has one snapshot; holds
// are forgotten with the process. NotFound when it is not there.
func (s *Shelf) Hold(ctx context.Context, holder string, id hearth.SnapshotID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, err := s.load(ctx)
	if err != nil {
		return err
	}
	if _, ok := g.nodes[id]; !ok {
		return hearth.Errorf(hearth.NotFound, "snapshot %s not found", id)
	}
	before, had := g.holders[holder]
	if had && before == id {
		return nil
	}
	if had {
		return hearth.Errorf(hearth.Internal, "%s holds snapshot %s already", holder, before)
	}
	g.holders[holder] = id
	g.held[id]++
	return nil
}

// Release ends a hold; the files go of what is removed and needed no more.
// Releasing nothing is not an error. After an error Sweep does the rest.
func (s *Shelf) Release(ctx context.Context, holder string) error {
	s.mu.Lock()
	if s.graph == nil {
		s.mu.Unlock()
		return nil
	}
	id, ok := s.graph.holders[holder]
	if ok {
		delete(s.graph.holders, holder)
		less(s.graph.held, id)
	}
	gone, err := s.reap(ctx, s.graph, id)
	s.mu.Unlock()
	s.nudge()
	return errors.Join(err, s.erase(ctx, gone))
}

// Remove makes a snapshot not found. Its files go now, or with the last that
// refers to it. Also for what a Put that failed left. Idempotent.
func (s *Shelf) Remove(ctx context.Context, id hearth.SnapshotID) error {
	gone, err := s.remove(ctx, id)
	s.nudge()
	return errors.Join(err, s.erase(ctx, gone))
}

// remove takes a snapshot out of the graph, or marks it, and returns those whose
// files are to be erased.
func (s *Shelf) remove(ctx context.Context, id hearth.SnapshotID) ([]hearth.SnapshotID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, err := s.load(ctx)
	if err != nil {
		return nil, err
	}
	n, ok := g.nodes[id]
	switch {
	case !ok:
		return []hearth.SnapshotID{id}, nil // files without a manifest, perhaps
	case !n.removed && g.needed(id):
		if err := s.blobs.Put(ctx, prefix(id)+removedName, bytes.NewReader(nil), 0); err != nil {
			return nil, DiskError(err, "the snapshot cannot be marked as removed")
		}
	}
	n.removed = true
	g.nodes[id] = n
	return s.reap(ctx, g, id)
}

// reap takes a snapshot that is removed and needed no more out of the graph, and
// then what it was the last to refer to. Only the manifests go here, for they
// are the references; the files are for the caller to erase, without mu.
func (s *Shelf) reap(ctx context.Context, g *graph, id hearth.SnapshotID) (gone []hearth.SnapshotID, err error) {
	for {
		n, ok := g.nodes[id]
		if !ok || !n.removed || g.needed(id) {
			return gone, nil
		}
		if err := s.blobs.Delete(ctx, prefix(id)+manifestName); err != nil {
			return gone, err // stays in the graph: it still refers to its base
		}
		g.drop(id)
		g.garbage = true
		gone = append(gone, id)
		if n.parent != n.base { // it waits no more for this one
			more, err := s.reap(ctx, g, n.parent)
			gone = append(gone, more...)
			if err != nil {
				return gone, err
			}
		}
		id = n.base
	}
}

// erase deletes the files of snapshots that have no manifest any more.
func (s *Shelf) erase(ctx context.Context, gone []hearth.SnapshotID) error {
	var errs []error
	for _, id := range gone {
		keys := []string{prefix(id) + manifestName}
		for info, err := range s.blobs.List(ctx, prefix(id)) {
			if err != nil {
				errs = append(errs, err)
				break
			}
			keys = append(keys, info.Key)
		}
		for _, k := range keys {
			errs = append(errs, s.blobs.Delete(ctx, k))
			s.proofs.forget(k)
		}
	}
	return errors.Join(errs...)
}

// Sweep erases what crashes left: files without a manifest, and what was removed
// and is needed no more. Call it when everybody who has a right to has called
// Hold again, and while no Put is in progress.
func (s *Shelf) Sweep(ctx context.Context) error {
	s.mu.Lock()
	g, err := s.load(ctx)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	var errs []error
	for id := range g.unreachable() { // also what only refers to each other, which damage alone makes
		if err := s.blobs.Delete(ctx, prefix(id)+manifestName); err != nil {
			errs = append(errs, err)
			continue
		}
		g.drop(id)
		g.garbage = true
	}
	var gone []hearth.SnapshotID
	for info, err := range s.blobs.List(ctx, root) {
		if err != nil {
			errs = append(errs, err)
			break
		}
		if id, _, ok := split(info.Key); ok {
			if _, whole := g.nodes[id]; !whole && (len(gone) == 0 || gone[len(gone)-1] != id) {
				gone = append(gone, id)
			}
		}
	}
	s.mu.Unlock()
	return errors.Join(errors.Join(errs...), s.erase(ctx, gone))
}
