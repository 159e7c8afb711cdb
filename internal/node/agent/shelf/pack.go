package shelf

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"os"
	"runtime"
	"slices"
	"time"

	"hearth/internal/blob"
	"hearth/internal/hearth"
)

// retryAfter is how long Run waits after it could not do all of its work.
const retryAfter = time.Minute

// Run packs what is new, keeps the plain files within their limit and collects
// garbage, until ctx ends. Without an archive there is nothing to do.
func (s *Shelf) Run(ctx context.Context) error {
	for s.packing.Archive != nil {
		var again <-chan time.Time
		if err := s.Tidy(ctx); err != nil && ctx.Err() == nil {
			s.packing.Log.Warn("snapshots are not all packed; it will be tried again", "err", err)
			again = time.After(retryAfter)
		} else if d := s.youngest(); d > 0 {
			again = time.After(d)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-again:
		}
	}
	<-ctx.Done()
	return nil
}

// nudge makes Run look again.
func (s *Shelf) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Tidy is one round of Run. One at a time.
func (s *Shelf) Tidy(ctx context.Context) error {
	if s.packing.Archive == nil {
		return nil
	}
	var errs []error
	due := func(_ hearth.SnapshotID, n node) bool { return s.packing.due(n, s.now()) <= 0 }
	for _, id := range s.waiting(ctx, due) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		errs = append(errs, s.packOne(ctx, id))
	}
	errs = append(errs, s.evict(ctx, s.packing.Cache), s.collect(ctx))
	return errors.Join(errs...)
}

// Pack packs snapshots, and what they refer to, that are not packed yet, without
// waiting until they are old enough. Without an archive it does nothing.
func (s *Shelf) Pack(ctx context.Context, ids []hearth.SnapshotID) error {
	if s.packing.Archive == nil {
		return nil
	}
	s.mu.Lock()
	g, err := s.load(ctx)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	these := g.under(ids)
	s.mu.Unlock()
	var errs []error
	for _, id := range s.waiting(ctx, func(id hearth.SnapshotID, _ node) bool { return these[id] }) {
		errs = append(errs, s.packOne(ctx, id))
	}
	s.nudge() // there may be more plain files than the cache should have
	return errors.Join(errs...)
}

// packers is how many new snapshots are packed at once: one per processor, for that
// is what it costs, and not so many that memory tells.
func packers() int { return min(runtime.GOMAXPROCS(0), 4) }

// turnAtArchive waits for so many tokens of the archive; done gives them back. Only
// one caller at a time may want more than one.
func (s *Shelf) turnAtArchive(ctx context.Context, tokens int) (done func(), err error) {
	have := 0
	done = func() {
		for ; have > 0; have-- {
			<-s.archiving
		}
	}
	for ; have < tokens; have++ {
		select {
		case s.archiving <- struct{}{}:
		case <-ctx.Done():
			done()
			return nil, context.Cause(ctx)
		}
	}
	return done, nil
}

// waiting lists those of some snapshots that are to be packed, the oldest first.
func (s *Shelf) waiting(ctx context.Context, of func(hearth.SnapshotID, node) bool) []hearth.SnapshotID {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, err := s.load(ctx)
	if err != nil {
		s.packing.Log.Warn("the snapshots cannot be listed", "err", err)
		return nil
	}
	var list []hearth.SnapshotID
	for id, n := range g.nodes {
		if !n.packed && n.raw && !n.damaged && of(id, n) {
			list = append(list, id)
		}
	}
	slices.SortFunc(list, func(a, b hearth.SnapshotID) int { return byAge(a, g.nodes[a], b, g.nodes[b]) })
	return list
}

// due is how long until a snapshot may be packed.
func (p Packing) due(n node, now time.Time) time.Duration {
	if n.entered.IsZero() {
		return 0
	}
	return n.entered.Add(p.After).Sub(now)
}

// youngest is how long until the last of the snapshots that are to be packed may be.
func (s *Shelf) youngest() (d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.graph == nil {
		return 0
	}
	for _, n := range s.graph.nodes {
		if !n.packed && n.raw && !n.damaged {
			d = max(d, s.packing.due(n, s.now()))
		}
	}
	return d
}

// packOne puts a snapshot's files into the archive and marks it. Who comes while
// somebody else does that gets what comes of it.
func (s *Shelf) packOne(ctx context.Context, id hearth.SnapshotID) error {
	_, err, _ := s.flights.Do(string(id), func() (any, error) { return nil, s.packAlone(ctx, id) })
	return err
}

// packAlone is packOne for the only one who does.
func (s *Shelf) packAlone(ctx context.Context, id hearth.SnapshotID) error {
	done, err := s.turnAtArchive(ctx, 1) // or it could be taken for garbage
	if err != nil {
		return err
	}
	defer done()
	packer := "packing " + string(id)
	if err := s.Hold(ctx, packer, id); err != nil {
		return nil // it went meanwhile
	}
	if s.isPacked(id) { // by somebody else, since it was found waiting
		return s.Release(context.WithoutCancel(ctx), packer)
	}
	err = s.pack(ctx, id)
	if err != nil && ctx.Err() == nil {
		s.packing.Log.Error("a snapshot cannot be packed", "snapshot", id, "err", err)
	}
	gone, rerr := s.settle(ctx, id, err)
	return errors.Join(err, rerr, s.erase(ctx, gone), s.Release(context.WithoutCancel(ctx), packer))
}

func (s *Shelf) pack(ctx context.Context, id hearth.SnapshotID) error {
	s.mu.Lock()
	n := s.graph.nodes[id]
	like := s.graph.like(id, n)
	s.mu.Unlock()
	return s.archive(ctx, id, n.files, like)
}

func (s *Shelf) isPacked(id hearth.SnapshotID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.graph.nodes[id].packed
}

// like lists the files that those of a snapshot may share parts with: its parent's,
// and, because a sandbox that runs on has in each snapshot again what it did since
// that, those of the one before it. What both have is taken from the parent, which
// stays for longer. They may go before they are shared with: that costs space, no more.
func (g *graph) like(id hearth.SnapshotID, n node) (files []string) {
	if n.alone {
		return nil
	}
	for _, at := range []hearth.SnapshotID{g.before(id, n), n.parent} {
		for _, f := range g.nodes[at].files {
			files = append(files, f.SHA256)
		}
	}
	return files
}

// before is the newest packed snapshot of the same sandbox that is older than one;
// empty if there is none. Another sandbox's is never one: nobody is to learn by size
// or time what others hold.
func (g *graph) before(id hearth.SnapshotID, n node) (newest hearth.SnapshotID) {
	if n.owner == "" {
		return ""
	}
	for at, o := range g.nodes {
		if o.owner == n.owner && o.packed && byAge(at, o, id, n) < 0 && (newest == "" || byAge(newest, g.nodes[newest], at, o) < 0) {
			newest = at
		}
	}
	return newest
}

// byAge compares snapshots by when they were taken; of two at once the names decide.
func byAge(a hearth.SnapshotID, an node, b hearth.SnapshotID, bn node) int {
	return cmp.Or(an.created.Compare(bn.created), cmp.Compare(a, b))
}

// packNew packs a snapshot that is not on the shelf yet.
func (s *Shelf) packNew(ctx context.Context, m *manifest) error {
	snap := &m.Snapshot
	s.mu.Lock()
	g, err := s.load(ctx)
	var like []string
	if err == nil {
		like = g.like(snap.ID, s.node(m, marks{}))
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if err := s.archive(ctx, snap.ID, snap.Files, like); err != nil {
		s.mu.Lock()
		s.graph.garbage = true // some of it may be there
		s.mu.Unlock()
		return err
	}
	return nil
}

// archive puts files into the archive and marks their snapshot as packed. A file that
// has no plain one any more, and is there, stays as it is: others are packed again when
// they were found damaged.
func (s *Shelf) archive(ctx context.Context, id hearth.SnapshotID, list []hearth.File, like []string) error {
	var files []blob.Source
	for _, f := range list {
		path, err := s.blobs.Path(ctx, f.Blob)
		if err != nil && hearth.KindOf(err) == hearth.NotFound {
			if r, aerr := s.packing.Archive.Open(ctx, f.SHA256); aerr == nil {
				_ = r.Close()
				continue
			}
		}
		if err != nil {
			return err
		}
		files = append(files, blob.Source{SHA256: f.SHA256, Path: path})
	}
	began := s.now()
	p, err := s.packing.Archive.Pack(ctx, files, like)
	s.weights.forget(list) // after an error some may be there all the same
	if err != nil {
		return err
	}
	if err := s.blobs.Put(ctx, prefix(id)+packedName, bytes.NewReader(nil), 0); err != nil {
		return err
	}
	s.packing.Log.Info("snapshot packed", "snapshot", id, "bytes", p.Bytes, "holes", p.Holes, "shared", p.Shared, "stored", p.Stored, "took", s.now().Sub(began))
	return nil
}

// settle notes how packing ended. A parent is not kept for the next try: the
// disk may be full.
func (s *Shelf) settle(ctx context.Context, id hearth.SnapshotID, err error) ([]hearth.SnapshotID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.graph.nodes[id]
	if !ok {
		return nil, nil
	}
	if n.waiting {
		n.waiting = false
		less(s.graph.waits, n.parent)
	}
	n.packed = err == nil
	if k := hearth.KindOf(err); err != nil && (k == hearth.FailedPrecondition || k == hearth.NotFound) {
		n.damaged = true
	}
	s.graph.nodes[id] = n
	return s.reap(ctx, s.graph, n.parent)
}

// touch notes that snapshots are being used.
func (s *Shelf) touch(chain []*hearth.Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.graph == nil {
		return
	}
	for _, snap := range chain {
		if n, ok := s.graph.nodes[snap.ID]; ok {
			n.used = s.now()
			s.graph.nodes[snap.ID] = n
		}
	}
}

// ready returns the path of a file that is what was written: the plain file, or
// one made from the archive, beside to, if that is gone or damaged.
func (s *Shelf) ready(ctx context.Context, id hearth.SnapshotID, f hearth.File, to string) (string, error) {
	file, err := s.plain(ctx, id, f)
	if err == nil {
		return file, nil
	}
	if hearth.KindOf(err) != hearth.FailedPrecondition || s.packing.Archive == nil {
		return "", err
	}
	select {
	case s.rebuilding <- struct{}{}:
		defer func() { <-s.rebuilding }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if file, err := s.plain(ctx, id, f); err == nil {
		return file, nil // somebody else was first
	}
	aerr := s.rebuild(ctx, f, to+".unpacking")
	switch hearth.KindOf(aerr) {
	case hearth.NotFound:
		return "", err // it was never packed
	case hearth.FailedPrecondition:
		return "", hearth.Wrap(hearth.FailedPrecondition, err, "snapshot %s cannot be restored: its file %s: %s", id, f.Name, aerr)
	}
	if aerr != nil {
		return "", aerr
	}
	if hearth.KindOf(errors.Unwrap(err)) != hearth.NotFound { // else it was only put away
		s.packing.Log.Warn("a snapshot's file was damaged and has been made again from the archive; is the disk well?",
			"snapshot", id, "file", f.Name, "err", err)
	}
	s.rebuilt(id)
	return s.blobs.Path(ctx, f.Blob)
}

// plain returns the path of a plain file that is what was written.
func (s *Shelf) plain(ctx context.Context, id hearth.SnapshotID, f hearth.File) (string, error) {
	file, err := s.blobs.Path(ctx, f.Blob)
	if err != nil && hearth.KindOf(err) == hearth.NotFound {
		return "", hearth.Wrap(hearth.FailedPrecondition, err, "snapshot %s is damaged: it lacks its file %s; it was not started", id, f.Name)
	}
	if err != nil {
		return "", err
	}
	return file, s.proofs.verify(ctx, id, f, file)
}

// rebuild makes a plain file from the archive.
func (s *Shelf) rebuild(ctx context.Context, f hearth.File, tmp string) error {
	out, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return DiskError(err, "a snapshot's file cannot be unpacked")
	}
	defer os.Remove(tmp)
	err = s.packing.Archive.Unpack(ctx, f.SHA256, out)
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	if err := s.blobs.Delete(ctx, f.Blob); err != nil { // a damaged one
		return err
	}
	if err := s.blobs.Adopt(ctx, f.Blob, tmp); err != nil {
		return DiskError(err, "a snapshot's file cannot be kept")
	}
	return s.proofs.written(ctx, s.blobs, f)
}

// rebuilt notes that plain files are there again, all or some.
func (s *Shelf) rebuilt(id hearth.SnapshotID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.graph == nil {
		return
	}
	if n, ok := s.graph.nodes[id]; ok {
		n.raw = true
		s.graph.nodes[id] = n
	}
	s.nudge()
}
