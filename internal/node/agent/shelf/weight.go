package shelf

import (
	"context"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"

	"hearth/internal/blob"
	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// stored is how many of a file's bytes are not holes; 0 when that cannot be told.
func stored(file string, size int64) int64 {
	info, err := os.Stat(file)
	if err != nil {
		return 0
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return min(size, st.Blocks*512)
}

// Objects returns what is on disk for each of some snapshots that are kept, and for
// no other that is kept: of it and of all that it refers to, the archive's objects
// where that is packed, else the plain files. What several of them need has one name,
// and goes with the last of them. Plain files of what is packed are a cache and left
// out. A snapshot that is not there has none.
func (s *Shelf) Objects(ctx context.Context, ids []hearth.SnapshotID) (map[hearth.SnapshotID][]blob.Object, error) {
	of, others, nodes, err := s.apart(ctx, ids)
	if err != nil {
		return nil, err
	}
	elsewhere := map[string]bool{}
	for at := range others {
		list, err := s.objects(ctx, nodes[at])
		if err != nil {
			return nil, err
		}
		for _, o := range list {
			elsewhere[o.Name] = true
		}
	}
	all := map[hearth.SnapshotID][]blob.Object{}
	for id, layers := range of {
		seen := map[string]bool{}
		for _, at := range layers {
			list, err := s.objects(ctx, nodes[at])
			if err != nil {
				return nil, err
			}
			for _, o := range list {
				if !seen[o.Name] && !elsewhere[o.Name] {
					seen[o.Name] = true
					all[id] = append(all[id], o)
				}
			}
		}
	}
	return all, nil
}

// apart lists the layers of each of some snapshots, and those that the others that are
// kept have. nodes is what is known of all of them.
func (s *Shelf) apart(ctx context.Context, ids []hearth.SnapshotID) (of map[hearth.SnapshotID][]hearth.SnapshotID, others map[hearth.SnapshotID]bool, nodes map[hearth.SnapshotID]node, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, err := s.load(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	of = map[hearth.SnapshotID][]hearth.SnapshotID{}
	for _, id := range ids {
		of[id] = g.chain(id)
	}
	var rest []hearth.SnapshotID
	for id, n := range g.nodes {
		if _, among := of[id]; !among && !n.removed {
			rest = append(rest, id)
		}
	}
	return of, g.under(rest), maps.Clone(g.nodes), nil
}

// objects lists what is on disk for one snapshot's own files. What the archive
// cannot tell of a file, because it is damaged or of another key, the plain file
// stands for.
func (s *Shelf) objects(ctx context.Context, n node) (list []blob.Object, err error) {
	for _, f := range n.files {
		if s.archived(n) {
			of, err := s.packing.Archive.Objects(ctx, f.SHA256)
			if err == nil {
				list = append(list, of...)
				continue
			}
			if k := hearth.KindOf(err); k != hearth.NotFound && k != hearth.FailedPrecondition {
				return nil, err
			}
		}
		one := hearth.Snapshot{Files: []hearth.File{f}}
		list = append(list, blob.Object{Name: f.Blob, Bytes: one.Bytes()})
	}
	return list, nil
}

// Weigh returns what a snapshot that is kept takes: whole is its files and those of
// all that it refers to, as they are when laid out, without holes; added is what is
// on disk for it, and neither for the snapshots over, nor for what they refer to:
// of what is packed its part of the archive, of the rest its plain files. Plain
// files of what is packed are a cache and not counted. What over names and is not
// there does not matter.
func (s *Shelf) Weigh(ctx context.Context, id hearth.SnapshotID, over ...hearth.SnapshotID) (whole, added int64, err error) {
	select { // a big snapshot's chunks are many: one after the other
	case s.weighing <- struct{}{}:
		defer func() { <-s.weighing }()
	case <-ctx.Done():
		return 0, 0, context.Cause(ctx)
	}
	whole, added, files, beside, err := s.layers(ctx, id, over)
	if err != nil || len(files) == 0 {
		return whole, added, err
	}
	key := strings.Join(files, " ") + " over " + strings.Join(beside, " ")
	inPacks, known, packed := s.weights.find(key)
	if !known {
		if inPacks, err = s.packing.Archive.Weigh(ctx, files, beside); err != nil {
			return 0, 0, err
		}
		s.weights.keep(key, inPacks, packed)
	}
	return whole, added + inPacks, nil
}

// maxWeights bounds how many results are kept: those of the biggest trees that are
// weighed, of four teams at once.
const maxWeights = 4096

// weights is what packed files were found to take over others, by the hashes of all
// of them. Files are named by their content, and what they share is settled when
// they are packed: so a result holds until one of them is packed again.
type weights struct {
	mu     sync.Mutex
	known  map[string]int64
	packed int // how often something was
}

// find returns what is known, and what keep must be told of when it is found out.
func (w *weights) find(key string) (weight int64, known bool, packed int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	weight, known = w.known[key]
	return weight, known, w.packed
}

// keep remembers a result, unless something was packed meanwhile: it may be of before.
func (w *weights) keep(key string, weight int64, packed int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if packed != w.packed {
		return
	}
	if len(w.known) >= maxWeights {
		clear(w.known)
	}
	w.known[key] = weight
}

// forget forgets the results that files have a part in: they were packed just now.
func (w *weights) forget(files []hearth.File) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.packed++
	maps.DeleteFunc(w.known, func(key string, _ int64) bool {
		return slices.ContainsFunc(files, func(f hearth.File) bool { return strings.Contains(key, f.SHA256) })
	})
}

// layers adds up what of a snapshot and all that it refers to is in plain files,
// and lists what of them is packed, and what is for others.
func (s *Shelf) layers(ctx context.Context, id hearth.SnapshotID, over []hearth.SnapshotID) (whole, plain int64, files, beside []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, err := s.load(ctx)
	if err != nil {
		return 0, 0, nil, nil, err
	}
	if n, there := g.nodes[id]; !there || n.removed {
		return 0, 0, nil, nil, hearth.Errorf(hearth.NotFound, "snapshot %s not found", id)
	}
	theirs := g.under(over)
	for _, at := range slices.Sorted(maps.Keys(theirs)) { // as the results are remembered
		if n := g.nodes[at]; s.archived(n) {
			for _, f := range n.files {
				beside = append(beside, f.SHA256)
			}
		}
	}
	for _, at := range g.chain(id) {
		n := g.nodes[at]
		of := hearth.Snapshot{Files: n.files}
		whole += of.Bytes()
		if theirs[at] {
			continue
		}
		if !s.archived(n) {
			plain += of.Bytes()
			continue
		}
		for _, f := range n.files {
			if !slices.Contains(beside, f.SHA256) {
				files = append(files, f.SHA256)
			}
		}
	}
	return whole, plain, files, beside, nil
}

func (s *Shelf) archived(n node) bool { return n.packed && s.packing.Archive != nil }

// chain lists a snapshot and what it refers to, as far as that is there.
func (g *graph) chain(id hearth.SnapshotID) (list []hearth.SnapshotID) {
	for range driver.MaxLayers {
		n, there := g.nodes[id]
		if !there {
			break
		}
		list = append(list, id)
		id = n.base
	}
	return list
}

// under is some snapshots and all that they refer to, as far as that is there.
func (g *graph) under(ids []hearth.SnapshotID) map[hearth.SnapshotID]bool {
	all := map[hearth.SnapshotID]bool{}
	for _, id := range ids {
		for _, at := range g.chain(id) {
			if all[at] {
				break
			}
			all[at] = true
		}
	}
	return all
}
