// Package shelf keeps snapshots as blobs, each whole or not there at all, and
// gives them back to drivers only after it has verified them; layers as well.
//
// A snapshot is the blobs below snapshots/ID/: the driver's files and, written
// last and removed first, manifest.json. So whoever finds the manifest finds
// all of it, also after a crash.
//
// A snapshot may refer to another one, its Base, and then holds only what
// changed since. So removing one takes its files only when nothing refers to it
// any more; until then the empty blob "removed" marks it, and nobody finds it.
// What refers to a snapshot is another one on the shelf, or a machine that was
// restored from it: see Hold. The references between snapshots are in their
// manifests, those of machines in the journal of the node, and nowhere else.
//
// With an archive (see WithArchive) a snapshot's files are packed in the
// background: compressed, and what it shares with its parent, and with the one
// that was taken of its sandbox before it, once. The empty blob "packed" says that
// they all are. From then on the plain files are a cache,
// which may go when it is too big and nobody uses them, and come back, verified,
// when the snapshot is laid out again.
//
// Where plain files must not be on a disk, they may lie in memory: see Volatile and
// Packing.AtOnce. Then a snapshot is in the archive before it is on the shelf.
//
// One Shelf at a time may change the snapshots of a store; others may read.
package shelf

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/singleflight"

	"hearth/internal/blob"
	"hearth/internal/driver"
	"hearth/internal/hearth"
)

const (
	root         = "snapshots/"
	manifestName = "manifest.json"
	removedName  = "removed" // marks a snapshot that is there only for those that refer to it
	packedName   = "packed"  // marks one whose files are all in the archive
	maxManifest  = 1 << 20   // bytes that are read back
)

// manifest says what a snapshot is, and whose.
type manifest struct {
	Sandbox  hearth.SandboxID
	Snapshot hearth.Snapshot
}

// manifestFile is the JSON of manifest.json. It holds no secrets. SHA256 is that
// of the sandbox, a line feed, and the bytes of the snapshot as they stand, so
// that a later server, which knows more fields, finds the same. Manifests of the
// first version of this format have none, and no Base.
type manifestFile struct {
	Sandbox  hearth.SandboxID `json:"sandbox"`
	Snapshot json.RawMessage  `json:"snapshot"`
	SHA256   string           `json:"sha256,omitempty"` // lower-case hex
}

func (f manifestFile) sum() string {
	sum := sha256.Sum256(slices.Concat([]byte(f.Sandbox), []byte("\n"), f.Snapshot))
	return hex.EncodeToString(sum[:])
}

// encode makes the bytes of manifest.json.
func (m manifest) encode() ([]byte, error) {
	snap, err := json.Marshal(m.Snapshot)
	if err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "the snapshot's manifest cannot be encoded")
	}
	f := manifestFile{Sandbox: m.Sandbox, Snapshot: snap}
	f.SHA256 = f.sum()
	raw, err := json.Marshal(f)
	if err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "the snapshot's manifest cannot be encoded")
	}
	return raw, nil
}

// Shelf is the snapshots in one blob store. Methods are safe for concurrent
// use; Put and Remove for one snapshot at a time.
type Shelf struct {
	blobs  blob.Local
	proofs proofs

	packing    Packing // no archive: nothing is packed
	now        func() time.Time
	archiving  chan struct{} // holds a token per snapshot that is being packed, of a new one until its entry; all, while garbage is collected
	rebuilding chan struct{} // holds a token: files are unpacked one after the other
	wake       chan struct{}
	flights    singleflight.Group // packings of snapshots on the shelf

	weighing chan struct{} // holds a token: weights are found out one after the other
	weights  weights

	mu    sync.Mutex // guards graph, and with it which manifests and marks there are
	graph *graph     // nil until it is needed
}

// New returns the shelf of a store.
func New(blobs blob.Local) *Shelf {
	return &Shelf{
		blobs: blobs, proofs: proofs{reading: make(chan struct{}, 1), done: map[string]proof{}},
		packing: Packing{Log: slog.New(slog.DiscardHandler)}, now: time.Now,
		archiving: make(chan struct{}, packers()), rebuilding: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		weighing: make(chan struct{}, 1), weights: weights{known: map[string]int64{}},
	}
}

// Packing says how snapshots are packed.
type Packing struct {
	Archive blob.Archive
	Cache   int64         // bytes of plain files beyond which those that are not in use go
	After   time.Duration // how old a snapshot must be: many are resumed and removed soon
	AtOnce  bool          // Put packs, for the plain files do not outlive the host
	Log     *slog.Logger
}

// WithArchive makes s pack its snapshots. Call it before anything else, and then Run.
func (s *Shelf) WithArchive(p Packing) *Shelf {
	s.packing = p
	return s
}

// Volatile reports whether a blob of a snapshot can be made again from the
// archive, or is not needed: its files and notes, all but what says what it is.
// These hold what was in the sandbox.
func Volatile(key string) bool {
	_, name, ok := split(key)
	return ok && name != manifestName && name != removedName && name != packedName
}

func prefix(id hearth.SnapshotID) string { return root + string(id) + "/" }

// Put makes a snapshot of a checkpoint's files, which it takes over, and
// returns s with its Files and its Base. It is durable then. What the checkpoint
// refers to must be held by the caller until then. After an error call Remove.
func (s *Shelf) Put(ctx context.Context, owner hearth.SandboxID, snap hearth.Snapshot, c *driver.Checkpoint) (*hearth.Snapshot, error) {
	snap.Driver, snap.Key, snap.Files = c.Driver, c.Key, nil
	if err := s.base(ctx, &snap, c); err != nil {
		return nil, err
	}
	for _, name := range c.Files {
		if !plain(name) || name == manifestName || name == removedName || name == packedName || name == SecretFile || strings.HasPrefix(name, notePrefix) {
			return nil, hearth.Errorf(hearth.Internal, "driver %s wrote a file %q", c.Driver, name)
		}
	}
	// At once: what a file system commits for one file it commits for all.
	var (
		wg   sync.WaitGroup
		errs = make([]error, len(c.Files))
	)
	snap.Files = make([]hearth.File, len(c.Files))
	for i, name := range c.Files {
		wg.Go(func() { snap.Files[i], errs[i] = s.take(ctx, snap.ID, c.Dir, name) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	if err := s.enter(ctx, manifest{Sandbox: owner, Snapshot: snap}, ""); err != nil {
		return nil, err
	}
	s.nudge()
	return &snap, nil
}

// take makes one file of a checkpoint one of a snapshot.
func (s *Shelf) take(ctx context.Context, id hearth.SnapshotID, dir, name string) (hearth.File, error) {
	file := filepath.Join(dir, name)
	sum, n, err := digest(ctx, file)
	if err != nil {
		return hearth.File{}, DiskError(err, "a snapshot's file cannot be read")
	}
	f := hearth.File{Name: name, Blob: prefix(id) + name, Bytes: n, Stored: stored(file, n), SHA256: sum}
	if err := s.blobs.Adopt(ctx, f.Blob, file); err != nil {
		return hearth.File{}, DiskError(err, "the snapshot cannot be kept")
	}
	return f, s.proofs.written(ctx, s.blobs, f)
}

// base notes in snap what the checkpoint refers to.
func (s *Shelf) base(ctx context.Context, snap *hearth.Snapshot, c *driver.Checkpoint) error {
	snap.Base = ""
	if c.Base == nil {
		return nil
	}
	snap.Base = hearth.SnapshotID(filepath.Base(c.Base.Dir)) // as Lay called it
	for at, n := snap.Parent, 0; n < driver.MaxLayers && at != ""; n++ {
		if at == snap.Base {
			_, err := s.chain(ctx, snap)
			return err
		}
		m, err := s.read(ctx, at)
		if err != nil {
			return err
		}
		at = m.Snapshot.Base
	}
	return hearth.Errorf(hearth.Internal, "driver %s refers to a checkpoint that the machine was not restored from", c.Driver)
}

// enter makes a snapshot whose files are there: from now on it is found; or, with
// a holder, there for it alone, and for those that refer to it.
func (s *Shelf) enter(ctx context.Context, m manifest, holder string) error {
	raw, err := m.encode()
	if err != nil {
		return err
	}
	atOnce := s.packing.Archive != nil && s.packing.AtOnce
	if atOnce {
		done, err := s.turnAtArchive(ctx, 1)
		if err != nil {
			return err
		}
		defer done()
		if err := s.packNew(ctx, &m); err != nil {
			return DiskError(err, "the snapshot cannot be packed")
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g, err := s.load(ctx)
	if err != nil {
		return err
	}
	// In the graph before it is on disk: an error may come after the write.
	id := m.Snapshot.ID
	g.add(id, s.node(&m, marks{raw: true, packed: atOnce, removed: holder != "", entered: s.now()}))
	if holder != "" {
		g.holders[holder] = id
		g.held[id]++
		if err := s.blobs.Put(ctx, prefix(id)+removedName, bytes.NewReader(nil), 0); err != nil {
			return DiskError(err, "the snapshot cannot be kept")
		}
	}
	if err := s.blobs.Put(ctx, prefix(m.Snapshot.ID)+manifestName, bytes.NewReader(raw), int64(len(raw))); err != nil {
		return DiskError(err, "the snapshot cannot be kept")
	}
	return nil
}

// Find returns a snapshot and the sandbox it was taken of; NotFound when it is
// not there, not whole, or removed.
func (s *Shelf) Find(ctx context.Context, id hearth.SnapshotID) (*hearth.Snapshot, hearth.SandboxID, error) {
	m, err := s.read(ctx, id)
	if err != nil {
		return nil, "", err
	}
	switch _, err := s.blobs.Stat(ctx, prefix(id)+removedName); {
	case err == nil:
		return nil, "", hearth.Errorf(hearth.NotFound, "snapshot %s was removed", id)
	case hearth.KindOf(err) != hearth.NotFound:
		return nil, "", err
	}
	return &m.Snapshot, m.Sandbox, nil
}

// read returns a snapshot's manifest, be it marked as removed or not.
func (s *Shelf) read(ctx context.Context, id hearth.SnapshotID) (*manifest, error) {
	r, err := s.blobs.Open(ctx, prefix(id)+manifestName, 0, -1)
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(r, maxManifest))
	if err := errors.Join(err, r.Close()); err != nil {
		return nil, DiskError(err, "the snapshot's manifest cannot be read")
	}
	return parse(raw, id)
}

// parse reads a manifest and believes nothing of it.
func parse(raw []byte, id hearth.SnapshotID) (*manifest, error) {
	var f manifestFile
	var m manifest
	err := json.Unmarshal(raw, &f)
	if err == nil {
		m.Sandbox, err = f.Sandbox, json.Unmarshal(f.Snapshot, &m.Snapshot)
	}
	if err != nil {
		return nil, hearth.Wrap(hearth.FailedPrecondition, err, "the manifest of snapshot %s is damaged", id)
	}
	if (f.SHA256 != "" || m.Snapshot.Base != "") && f.sum() != f.SHA256 {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "the manifest of snapshot %s is damaged: it is not what was written", id)
	}
	if m.Snapshot.ID != id {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "the manifest of snapshot %s is damaged: it is that of %q", id, m.Snapshot.ID)
	}
	for _, f := range m.Snapshot.Files {
		if !plain(f.Name) || f.Bytes < 0 {
			return nil, hearth.Errorf(hearth.FailedPrecondition, "the manifest of snapshot %s is damaged: it names a file %q of %d bytes", id, f.Name, f.Bytes)
		}
	}
	return &m, nil
}

func plain(n string) bool {
	return n != "" && n != "." && n != ".." && len(n) <= 100 && !strings.ContainsAny(n, "/\x00")
}

// DiskError gives a file system error a kind: a full disk is the caller's to
// know. Errors that have a kind and ends of contexts are returned as they are.
func DiskError(err error, msg string) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return hearth.Wrap(hearth.ResourceExhausted, err, "%s: the node's disk is full", msg)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if _, ok := errors.AsType[*hearth.Error](err); ok {
		return err
	}
	return hearth.Wrap(hearth.Internal, err, "%s", msg)
}
