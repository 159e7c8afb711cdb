// Package shelf keeps snapshots as blobs, each whole or not there at all, and
// gives them back to drivers only after it has verified them.
//
// A snapshot is the blobs below snapshots/ID/: the driver's files and, written
// last and removed first, manifest.json. So whoever finds the manifest finds
// all of it, also after a crash. To delete a snapshot, delete the manifest, then
// everything with the prefix; Remove does.
package shelf

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"hearth/internal/blob"
	"hearth/internal/driver"
	"hearth/internal/hearth"
)

const (
	manifestName = "manifest.json"
	maxManifest  = 1 << 20 // bytes that are read back
	maxVerified  = 65536   // files remembered as verified
)

// manifest is the JSON of manifest.json. It holds no secrets.
type manifest struct {
	Sandbox  hearth.SandboxID `json:"sandbox"`
	Snapshot hearth.Snapshot  `json:"snapshot"`
}

// Shelf is the snapshots in one blob store. Methods are safe for concurrent
// use, for one snapshot at a time.
type Shelf struct {
	blobs   blob.Local
	reading chan struct{} // holds a token: files are verified one after the other

	mu       sync.Mutex
	verified map[string]hearth.File // by blob key
}

// New returns the shelf of a store.
func New(blobs blob.Local) *Shelf {
	return &Shelf{blobs: blobs, reading: make(chan struct{}, 1), verified: map[string]hearth.File{}}
}

func prefix(id hearth.SnapshotID) string { return "snapshots/" + string(id) + "/" }

// Put makes a snapshot of a checkpoint's files, which it takes over, and
// returns s with its Files. It is durable then. After an error call Remove.
func (s *Shelf) Put(ctx context.Context, owner hearth.SandboxID, snap hearth.Snapshot, c *driver.Checkpoint) (*hearth.Snapshot, error) {
	snap.Driver, snap.Key, snap.Files = c.Driver, c.Key, nil
	for _, name := range c.Files {
		if !plain(name) || name == manifestName {
			return nil, hearth.Errorf(hearth.Internal, "driver %s wrote a file %q", c.Driver, name)
		}
		file := filepath.Join(c.Dir, name)
		sum, n, err := digest(ctx, file)
		if err != nil {
			return nil, err
		}
		f := hearth.File{Name: name, Blob: prefix(snap.ID) + name, Bytes: n, SHA256: sum}
		if err := s.blobs.Adopt(ctx, f.Blob, file); err != nil {
			return nil, DiskError(err, "the snapshot cannot be kept")
		}
		s.trust(f)
		snap.Files = append(snap.Files, f)
	}
	raw, err := json.Marshal(manifest{Sandbox: owner, Snapshot: snap})
	if err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "the snapshot's manifest cannot be encoded")
	}
	if err := s.blobs.Put(ctx, prefix(snap.ID)+manifestName, bytes.NewReader(raw), int64(len(raw))); err != nil {
		return nil, DiskError(err, "the snapshot cannot be kept")
	}
	return &snap, nil
}

// Find returns a snapshot and the sandbox it was taken of; NotFound when it is
// not there or not whole.
func (s *Shelf) Find(ctx context.Context, id hearth.SnapshotID) (*hearth.Snapshot, hearth.SandboxID, error) {
	r, err := s.blobs.Open(ctx, prefix(id)+manifestName, 0, -1)
	if err != nil {
		return nil, "", err
	}
	raw, err := io.ReadAll(io.LimitReader(r, maxManifest))
	if err := errors.Join(err, r.Close()); err != nil {
		return nil, "", DiskError(err, "the snapshot's manifest cannot be read")
	}
	var m manifest
	if err := json.Unmarshal(raw, &m); err != nil || m.Snapshot.ID != id {
		return nil, "", hearth.Wrap(hearth.FailedPrecondition, err, "the manifest of snapshot %s is damaged", id)
	}
	return &m.Snapshot, m.Sandbox, nil
}

// Remove deletes what there is of a snapshot, the manifest first, so that a part
// of it never passes for the whole. Idempotent.
func (s *Shelf) Remove(ctx context.Context, id hearth.SnapshotID) error {
	keys := []string{prefix(id) + manifestName}
	for info, err := range s.blobs.List(ctx, prefix(id)) {
		if err != nil {
			return err
		}
		keys = append(keys, info.Key)
	}
	for _, k := range keys {
		if err := s.blobs.Delete(ctx, k); err != nil {
			return err
		}
		s.mu.Lock()
		delete(s.verified, k)
		s.mu.Unlock()
	}
	return nil
}

// Lay makes a snapshot usable by its driver: every file is compared with what
// was written, the first time this process uses it, and linked under its own
// name into dir, which exists and is empty. A snapshot that was damaged, cut
// short or exchanged fails with FailedPrecondition.
func (s *Shelf) Lay(ctx context.Context, snap *hearth.Snapshot, dir string) (*driver.Checkpoint, error) {
	c := &driver.Checkpoint{Driver: snap.Driver, Key: snap.Key, Dir: dir}
	for _, f := range snap.Files {
		if !plain(f.Name) {
			return nil, hearth.Errorf(hearth.InvalidArgument, "snapshot %s names a file %q", snap.ID, f.Name)
		}
		file, err := s.blobs.Path(ctx, f.Blob)
		if err != nil {
			return nil, err
		}
		if err := s.verify(ctx, snap.ID, f, file); err != nil {
			return nil, err
		}
		to := filepath.Join(dir, f.Name)
		if os.Link(file, to) != nil { // another file system
			if err := os.Symlink(file, to); err != nil {
				return nil, DiskError(err, "the snapshot's files cannot be linked")
			}
		}
		c.Files = append(c.Files, f.Name)
	}
	return c, nil
}

func plain(n string) bool {
	return n != "" && n != "." && n != ".." && len(n) <= 100 && !strings.ContainsAny(n, "/\x00")
}

func (s *Shelf) verify(ctx context.Context, id hearth.SnapshotID, f hearth.File, file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return hearth.Wrap(hearth.FailedPrecondition, err, "snapshot %s lacks its file %s", id, f.Name)
	}
	if info.Size() != f.Bytes {
		return hearth.Errorf(hearth.FailedPrecondition,
			"snapshot %s is damaged: its file %s has %d bytes, not %d; it was not started", id, f.Name, info.Size(), f.Bytes)
	}
	if s.trusted(f) {
		return nil
	}
	select {
	case s.reading <- struct{}{}:
		defer func() { <-s.reading }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if s.trusted(f) {
		return nil
	}
	got, _, err := digest(ctx, file)
	if err != nil {
		return err
	}
	if got != f.SHA256 {
		return hearth.Errorf(hearth.FailedPrecondition,
			"snapshot %s is damaged: its file %s is not what was written; it was not started", id, f.Name)
	}
	s.trust(f)
	return nil
}

func (s *Shelf) trusted(f hearth.File) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.verified[f.Blob] == f
}

// trust notes that a file was verified, or written, by this process.
func (s *Shelf) trust(f hearth.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.verified) >= maxVerified {
		clear(s.verified) // costs a second look, no more
	}
	s.verified[f.Blob] = f
}

// digest returns a file's SHA-256, lower-case hex, and its size in bytes.
func digest(ctx context.Context, path string) (string, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, DiskError(err, "a snapshot's file cannot be read")
	}
	h := sha256.New()
	n, err := io.CopyBuffer(h, &untilDone{ctx, f}, make([]byte, 1<<20))
	if err := errors.Join(err, f.Close()); err != nil {
		return "", 0, DiskError(err, "a snapshot's file cannot be read")
	}
	return hex.EncodeToString(h.Sum(nil)), n, nil
}

// untilDone reads until its context ends.
type untilDone struct {
	ctx context.Context
	io.Reader
}

func (r *untilDone) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.Reader.Read(p)
}

// DiskError gives a file system error a kind: a full disk is the caller's to
// know. Errors that
// have a kind and ends of contexts are returned as they are.
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
