package shelf

import (
	"context"
	"os"
	"path/filepath"
	"slices"

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
		next, err := s.lay(ctx, one, filepath.Join(dir, string(one.ID)))
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

// lay links the files of one snapshot.
func (s *Shelf) lay(ctx context.Context, snap *hearth.Snapshot, dir string) (*driver.Checkpoint, error) {
	c := &driver.Checkpoint{Driver: snap.Driver, Key: snap.Key, Dir: dir, FilesOnly: !snap.Memory}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, DiskError(err, "the snapshot's files cannot be linked")
	}
	for _, f := range snap.Files {
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
		c.Files = append(c.Files, f.Name)
	}
	return c, nil
}
