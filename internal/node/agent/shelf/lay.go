package shelf

import (
	"context"
	"os"
	"path/filepath"
	"slices"

	"hearth/internal/blob"
	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// Lay makes a snapshot, and all that it refers to, usable by its driver: every
// file is compared with what was written, the first time this process uses it
// and whenever it looks changed, and linked under its own name into the
// directory that is called like its snapshot, below dir, which exists. A
// snapshot that was damaged, cut short, exchanged, or lacks what it refers to
// fails with FailedPrecondition. Hold it before, or it may go meanwhile.
func (s *Shelf) Lay(ctx context.Context, snap *hearth.Snapshot, dir string) (*driver.Checkpoint, error) {
	return s.LayPacked(ctx, snap, dir, "")
}

// LayPacked is Lay for a driver that takes the file of one name packed, too: it is in
// Checkpoint.Packed where the archive alone has it, and is read and compared while
// the machine runs. The next time it is unpacked like the others, for machines of a
// snapshot that many are started from share what lies in a plain file.
func (s *Shelf) LayPacked(ctx context.Context, snap *hearth.Snapshot, dir, file string) (*driver.Checkpoint, error) {
	found, _, err := s.Find(ctx, snap.ID)
	if err != nil {
		return nil, err
	}
	if !slices.Equal(found.Files, snap.Files) || found.Driver != snap.Driver || found.Key != snap.Key {
		return nil, hearth.Errorf(hearth.FailedPrecondition,
			"snapshot %s is damaged: its files are not those that are known of it; it was not started", snap.ID)
	}
	chain, err := s.chain(ctx, found)
	if err != nil {
		return nil, err
	}
	s.touch(chain)
	var c *driver.Checkpoint
	for _, one := range slices.Backward(chain) {
		next, err := s.lay(ctx, one, filepath.Join(dir, string(one.ID)), file)
		if err != nil {
			return nil, err
		}
		next.Base, c = c, next
	}
	return c, nil
}

// chain lists a snapshot and those that it refers to, itself first.
func (s *Shelf) chain(ctx context.Context, snap *hearth.Snapshot) ([]*hearth.Snapshot, error) {
	chain := []*hearth.Snapshot{snap}
	for at := snap; at.Base != ""; {
		if slices.ContainsFunc(chain, func(c *hearth.Snapshot) bool { return c.ID == at.Base }) {
			return nil, hearth.Errorf(hearth.FailedPrecondition, "snapshot %s is damaged: %s refers to %s, which refers back to it", snap.ID, at.ID, at.Base)
		}
		if len(chain) == driver.MaxLayers {
			return nil, hearth.Errorf(hearth.FailedPrecondition, "snapshot %s has more than %d layers", snap.ID, driver.MaxLayers)
		}
		m, err := s.read(ctx, at.Base)
		if hearth.KindOf(err) == hearth.NotFound && err != nil {
			return nil, hearth.Wrap(hearth.FailedPrecondition, err, "snapshot %s is damaged: %s, which it refers to, is not there", snap.ID, at.Base)
		}
		if err != nil {
			return nil, err
		}
		below := &m.Snapshot
		if below.Driver != snap.Driver || below.Key != snap.Key {
			return nil, hearth.Errorf(hearth.FailedPrecondition, "snapshot %s needs %s %q, and %s, which it refers to, needs %s %q",
				snap.ID, snap.Driver, snap.Key, below.ID, below.Driver, below.Key)
		}
		chain = append(chain, below)
		at = below
	}
	return chain, nil
}

// lay links the files of one snapshot, but not the one that may stay packed.
func (s *Shelf) lay(ctx context.Context, snap *hearth.Snapshot, dir, packed string) (*driver.Checkpoint, error) {
	c := &driver.Checkpoint{Driver: snap.Driver, Key: snap.Key, Dir: dir, FilesOnly: !snap.Memory}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, DiskError(err, "the snapshot's files cannot be linked")
	}
	for _, f := range snap.Files {
		c.Files = append(c.Files, f.Name)
		if f.Name == packed {
			if l := s.lend(ctx, snap.ID, f); l != nil {
				c.Packed = map[string]driver.Packed{f.Name: l}
				continue
			}
		}
		to := filepath.Join(dir, f.Name)
		file, err := s.ready(ctx, snap.ID, f, to)
		if err != nil {
			return nil, err
		}
		if os.Link(file, to) != nil { // another file system
			if err := os.Symlink(file, to); err != nil {
				return nil, DiskError(err, "the snapshot's files cannot be linked")
			}
		}
	}
	return c, nil
}

// lent is a file that only the archive has.
type lent struct {
	archive blob.Lender
	file    hearth.File
}

// Size implements driver.Packed.
func (l lent) Size() int64 { return l.file.Bytes }

// Lend implements driver.Packed.
func (l lent) Lend(ctx context.Context) ([]byte, []*os.File, error) {
	loan, err := l.archive.Lend(ctx, l.file.SHA256)
	return loan.Layout, loan.Files, err
}

// lend returns a file that only the archive has, once, if that can lend it; else nil,
// and then it is unpacked, which says what is wrong.
func (s *Shelf) lend(ctx context.Context, id hearth.SnapshotID, f hearth.File) driver.Packed {
	archive, ok := s.packing.Archive.(blob.Lender)
	if !ok {
		return nil
	}
	if _, err := s.blobs.Stat(ctx, f.Blob); err == nil || hearth.KindOf(err) != hearth.NotFound {
		return nil
	}
	loan, err := archive.Lend(ctx, f.SHA256) // tried, so that a start does not fail of it
	if err != nil {
		return nil
	}
	_ = loan.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.graph == nil {
		return nil
	}
	n, ok := s.graph.nodes[id]
	if !ok || n.lent || loan.Size != f.Bytes || len(loan.Files) > maxLent {
		return nil
	}
	n.lent = true
	s.graph.nodes[id] = n
	return lent{archive, f}
}

// maxLent is how many descriptors a packed file may need: a chain has MaxLayers such.
const maxLent = 100
