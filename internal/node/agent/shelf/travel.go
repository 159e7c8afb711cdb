package shelf

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"slices"
	"strings"

	"hearth/internal/blob"
	"hearth/internal/hearth"
	"hearth/internal/node/agent/parcel"
)

// layerPrefix begins the blob keys of layers; the rest is their SHA-256.
const layerPrefix = "layers/"

// SecretFile is the file of a snapshot with memory that came from elsewhere: what
// the guest daemon in that memory knows its host by. It is in the memory, too, so
// whoever reads the one could read the other; both go together.
const SecretFile = "control-secret"

// Export writes a snapshot, all that it refers to, and the layers of its build
// to w, see package parcel. Files that are packed are read from the archive. A
// reader that saw no end of the stream has no snapshot. The secret becomes its
// SecretFile, unless it has one already or the secret is empty.
func (s *Shelf) Export(ctx context.Context, id hearth.SnapshotID, build hearth.Build, secret string, w io.Writer) error {
	holder := "export " + string(hearth.NewSnapshotID())
	if err := s.Hold(ctx, holder, id); err != nil {
		return err
	}
	defer func() {
		if err := s.Release(context.WithoutCancel(ctx), holder); err != nil {
			s.packing.Log.Warn("files of a removed snapshot remain until the next start", "snapshot", id, "err", err)
		}
	}()
	snap, _, err := s.Find(ctx, id)
	if err != nil {
		return err
	}
	chain, files, err := s.readable(ctx, snap)
	if err != nil {
		return err
	}
	c := &parcel.Contents{Build: build}
	for _, one := range chain {
		c.Snapshots = append(c.Snapshots, *one)
	}
	note := hearth.File{Name: SecretFile, Bytes: int64(len(secret)), SHA256: sumOf(secret)}
	top := &c.Snapshots[0]
	if secret != "" && !slices.ContainsFunc(top.Files, func(f hearth.File) bool { return f.Name == SecretFile }) {
		top.Files = append(slices.Clone(top.Files), note)
	}
	for _, key := range build.Layers {
		info, err := s.blobs.Stat(ctx, key)
		if err != nil {
			return err
		}
		c.Layers = append(c.Layers, parcel.Blob{SHA256: strings.TrimPrefix(key, layerPrefix), Bytes: info.Size, Layer: true})
	}
	return parcel.Write(ctx, w, c, func(ctx context.Context, b parcel.Blob) (io.ReadCloser, error) {
		if b.Layer {
			return s.blobs.Open(ctx, layerPrefix+b.SHA256, 0, -1)
		}
		if f, kept := files[b.SHA256]; kept {
			return s.open(ctx, f)
		}
		return io.NopCloser(strings.NewReader(secret)), nil
	})
}

// Readable reports by an error that a file of a snapshot, or of what it refers to, is
// neither plain nor packed here, or needs another key. Nothing is verified.
func (s *Shelf) Readable(ctx context.Context, id hearth.SnapshotID) error {
	snap, _, err := s.Find(ctx, id)
	if err == nil {
		_, _, err = s.readable(ctx, snap)
	}
	return err
}

// readable opens each file once, so that a file that is missing, or needs another key,
// is told before the first byte is used. It returns the snapshot with all that it
// refers to, and their files by hash.
func (s *Shelf) readable(ctx context.Context, snap *hearth.Snapshot) ([]*hearth.Snapshot, map[string]hearth.File, error) {
	chain, err := s.chain(ctx, snap)
	if err != nil {
		return nil, nil, err
	}
	files := map[string]hearth.File{}
	for _, one := range chain {
		for _, f := range one.Files {
			files[f.SHA256] = f
		}
	}
	for _, f := range files {
		r, err := s.open(ctx, f)
		if err != nil {
			return nil, nil, err
		}
		if err := r.Close(); err != nil {
			return nil, nil, err
		}
	}
	return chain, files, nil
}

func sumOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// open reads a file of a snapshot, plain or packed. It is not verified.
func (s *Shelf) open(ctx context.Context, f hearth.File) (io.ReadCloser, error) {
	r, err := s.blobs.Open(ctx, f.Blob, 0, -1)
	if hearth.KindOf(err) != hearth.NotFound || s.packing.Archive == nil {
		return r, err
	}
	p, err := s.packing.Archive.Open(ctx, f.SHA256)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(p, 0, p.Size()), p}, nil
}

// Arrival says how a snapshot is taken in.
type Arrival struct {
	ID    hearth.SnapshotID // its name here; whoever wrote it down finds it after a crash
	Owner hearth.SandboxID
	Limit int64  // bytes, unpacked
	Tmp   string // directory in which files are written first, on the file system of the blobs
}

// Import takes in what Export wrote. Nothing of it is believed before it was
// compared with its hash. What it refers to gets new names, and goes with it. The
// layers of the build that it returns are blobs then, for which the caller has to
// have a build before the next sweep. Of what the parcel says of the snapshot's
// place where it came from nothing is taken over. It may need another driver than this node
// has: a restore says so. When it fails nothing is left but layers.
func (s *Shelf) Import(ctx context.Context, as Arrival, r io.Reader) (*hearth.Snapshot, *hearth.Build, error) {
	if _, _, err := s.Find(ctx, as.ID); hearth.KindOf(err) != hearth.NotFound {
		return nil, nil, errors.Join(err, hearth.Errorf(hearth.AlreadyExists, "snapshot %s is there already", as.ID))
	}
	in := &importer{s: s, as: as}
	c, err := parcel.Read(ctx, r, as.Limit, in)
	if err == nil {
		err = in.enter(ctx)
	}
	if err != nil {
		return nil, nil, errors.Join(err, in.undo(context.WithoutCancel(ctx)))
	}
	build := c.Build
	build.Layers, build.Warm = nil, nil
	for _, l := range c.Layers {
		build.Layers = append(build.Layers, layerPrefix+l.SHA256)
	}
	s.nudge()
	return &in.snaps[0], &build, nil
}

// importer is one import in progress.
type importer struct {
	s     *Shelf
	as    Arrival
	snaps []hearth.Snapshot // under their new names, the one that travels first
}

// Begin implements parcel.Taker.
func (in *importer) Begin(_ context.Context, c *parcel.Contents) error {
	in.snaps = slices.Clone(c.Snapshots)
	for i := range in.snaps {
		old, snap := c.Snapshots[i], &in.snaps[i]
		*snap = hearth.Snapshot{ // a sandbox of the same name here is another one
			ID: in.as.ID, Driver: old.Driver, Key: old.Key, Memory: old.Memory, Files: old.Files,
			Created: old.Created, Sandbox: in.as.Owner,
		}
		if i > 0 {
			snap.ID = hearth.NewSnapshotID()
			in.snaps[i-1].Base, in.snaps[i-1].Parent = snap.ID, snap.ID
		}
		snap.Files = slices.Clone(snap.Files)
		for j := range snap.Files {
			f := &snap.Files[j]
			if f.Name == manifestName || f.Name == removedName || f.Name == packedName {
				return hearth.Errorf(hearth.InvalidArgument, "a snapshot has a file %q", f.Name)
			}
			f.Blob = prefix(snap.ID) + f.Name
			if err := blob.CheckKey(f.Blob); err != nil {
				return err
			}
		}
	}
	return nil
}

// Take implements parcel.Taker. A file that is not what its name says fails
// before it is a blob.
func (in *importer) Take(ctx context.Context, b parcel.Blob, r io.Reader) error {
	if b.Layer {
		key := layerPrefix + b.SHA256
		_, err := in.s.blobs.Stat(ctx, key)
		if hearth.KindOf(err) != hearth.NotFound {
			return err // there already, or unknown
		}
		if err := in.s.blobs.Put(ctx, key, r, b.Bytes); err != nil {
			return err
		}
		return in.s.proofs.written(ctx, in.s.blobs, layerFile(key, b.Bytes))
	}
	f, err := os.CreateTemp(in.as.Tmp, "import-")
	if err != nil {
		return DiskError(err, "a snapshot's file cannot be written")
	}
	defer os.Remove(f.Name())
	err = sparse(f, r, b.Bytes)
	if err := errors.Join(err, f.Close()); err != nil {
		return DiskError(err, "a snapshot's file cannot be written")
	}
	for _, snap := range in.snaps {
		for _, file := range snap.Files {
			if file.SHA256 != b.SHA256 {
				continue
			}
			if err := in.s.blobs.Adopt(ctx, file.Blob, f.Name()); err != nil {
				return DiskError(err, "a snapshot's file cannot be kept")
			}
			if err := in.s.proofs.written(ctx, in.s.blobs, file); err != nil {
				return err
			}
		}
	}
	return nil
}

// sparse writes r to f, with holes for pages of zeros.
func sparse(f *os.File, r io.Reader, size int64) error {
	if err := f.Truncate(size); err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	zeros := make([]byte, len(buf))
	for at := int64(0); ; {
		n, err := io.ReadFull(r, buf)
		if !bytes.Equal(buf[:n], zeros[:n]) {
			if _, err := f.WriteAt(buf[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF { // ReadFull's; what r fails with may wrap them
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// enter makes the snapshots, the lowest first, so that none refers to one that
// is not there.
func (in *importer) enter(ctx context.Context) error {
	for i, snap := range slices.Backward(in.snaps) {
		holder := ""
		if i > 0 {
			holder = "import " + string(snap.ID)
		}
		if err := in.s.enter(ctx, manifest{Sandbox: in.as.Owner, Snapshot: snap}, holder); err != nil {
			return err
		}
	}
	var errs []error
	for _, snap := range in.snaps[1:] {
		errs = append(errs, in.s.Release(ctx, "import "+string(snap.ID)))
	}
	return errors.Join(errs...)
}

// undo removes what an import that failed has put on the shelf.
func (in *importer) undo(ctx context.Context) error {
	var errs []error
	for _, snap := range in.snaps {
		errs = append(errs, in.s.Remove(ctx, snap.ID), in.s.Release(ctx, "import "+string(snap.ID)))
	}
	return errors.Join(errs...)
}
