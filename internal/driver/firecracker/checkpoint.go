package firecracker

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/driver"
	"hearth/internal/driver/firecracker/pager"
	"hearth/internal/driver/firecracker/vmm"
	"hearth/internal/driver/microvm"
	"hearth/internal/driver/microvm/channel"
	"hearth/internal/hearth"
)

// Files of a checkpoint: Firecracker's state of devices and processors; the
// memory; which pages of it are the checkpoint's own, and not as in the one below
// (package pager); the disk; and what the machine was made of.
const (
	checkpointState    = "state"
	checkpointMemory   = "memory"
	checkpointDisk     = "disk"
	checkpointPages    = "pages"
	checkpointManifest = "machine.json"
)

func checkpointFiles() []string {
	return []string{checkpointState, checkpointMemory, checkpointPages, checkpointDisk, checkpointManifest}
}

// filesOnly are the files of a checkpoint without memory.
func filesOnly() []string { return []string{checkpointDisk, checkpointManifest} }

// Files in a restored machine's directory. Firecracker tells only what was written
// since the last snapshot; a checkpoint must hold what was written since the
// restore. So the memory of the last one is kept, and the next is written over a
// copy of it. When that cannot be told any more, the whole memory is written.
const (
	writtenFile = "written" // memory of the last checkpoint; the same file, by a hard link
	wholeMark   = "whole"   // what was written since the restore is not known
)

const (
	snapshotTime = 10 * time.Minute
	idLength     = 32
)

// manifest is the content of machine.json: what a checkpoint must be restored over.
type manifest struct {
	ID   string `json:"id"`             // its own, random
	Base string `json:"base,omitempty"` // of the checkpoint that its memory lies over
	microvm.Fit
}

// Checkpoint writes the frozen machine: the whole memory of one that booted, what
// was written since the restore of one that was restored. A whole memory is also
// written where one more layer would be too many.
func (m *machine) Checkpoint(ctx context.Context, dir string) (*driver.Checkpoint, error) {
	c := &driver.Checkpoint{Driver: Name, Key: m.state.Key, Dir: dir, Files: checkpointFiles()}
	err := m.control(ctx, "checkpoint", func(ctx context.Context) error {
		if m.motion != frozen {
			return hearth.Errorf(hearth.FailedPrecondition, "machine %s is not frozen", m.id)
		}
		kind := vmm.Full
		if from := m.state.from(); from != nil && from.Layers() < driver.MaxLayers && !exists(m.own(wholeMark)) {
			kind, c.Base = vmm.Diff, from
		}
		if err := m.writeManifest(dir, c.Base); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, snapshotTime)
		defer cancel()
		return m.checkpoint(ctx, dir, kind)
	})
	if err != nil {
		return nil, diskFull(m.id, err)
	}
	return c, nil
}

// CheckpointFiles writes the frozen machine's disk. The guest's kernel has a part
// of it in memory, so it runs for as long as it takes to write that out.
func (m *machine) CheckpointFiles(ctx context.Context, dir string) (*driver.Checkpoint, error) {
	err := m.control(ctx, "checkpoint of files", func(ctx context.Context) error {
		if m.motion != frozen {
			return hearth.Errorf(hearth.FailedPrecondition, "machine %s is not frozen", m.id)
		}
		if err := m.settle(ctx); err != nil {
			return err
		}
		if err := m.writeManifest(dir, nil); err != nil {
			return err
		}
		if err := m.copyDisk(ctx, filepath.Join(dir, checkpointDisk)); err != nil {
			return err
		}
		return syncFiles(dir, checkpointManifest, ".")
	})
	if err != nil {
		return nil, diskFull(m.id, err)
	}
	return &driver.Checkpoint{Driver: Name, Key: m.state.Key, Dir: dir, Files: filesOnly(), FilesOnly: true}, nil
}

// settle lets the guest write out what it has, and stops it again, whether it did
// or not. Nobody writes to its disk from then on until it is told its settings.
func (m *machine) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, settleTime, fmt.Errorf("the guest did not write out its files in %s", settleTime))
	defer cancel()
	m.motion = unsure
	err := m.api.Resume(ctx)
	if err == nil {
		err = m.configure(ctx)
	}
	if err == nil {
		var c *channel.Channel
		if c, err = m.connected(ctx); err == nil {
			err = c.Settle(ctx)
		}
	}
	return errors.Join(err, m.pause(context.WithoutCancel(ctx)))
}

// own names a file of the driver's in the machine's directory.
func (m *machine) own(name string) string { return filepath.Join(m.dir, name) }

func (m *machine) checkpoint(ctx context.Context, dir string, kind vmm.SnapshotType) error {
	for _, name := range []string{newState, newMemory} { // of one that failed
		if err := os.RemoveAll(m.jail.Path(name)); err != nil {
			return err
		}
	}
	if kind == vmm.Diff {
		if err := m.layOut(ctx); err != nil {
			return err
		}
	}
	err := m.api.CreateSnapshot(ctx, vmm.SnapshotCreate{SnapshotType: kind, SnapshotPath: "/" + newState, MemFilePath: "/" + newMemory})
	if err != nil {
		return err
	}
	if err := m.take(ctx, newState, filepath.Join(dir, checkpointState), nil); err != nil {
		return err
	}
	if err := m.take(ctx, newMemory, filepath.Join(dir, checkpointMemory), func(f *os.File) error {
		if info, err := f.Stat(); err != nil || info.Size() != int64(m.state.Resources.MemoryMiB)<<20 {
			return fmt.Errorf("the monitor wrote %d bytes of memory (%w)", info.Size(), err)
		}
		return m.writePages(f, filepath.Join(dir, checkpointPages), kind)
	}); err != nil {
		return err
	}
	if err := m.copyDisk(ctx, filepath.Join(dir, checkpointDisk)); err != nil {
		return err
	}
	if err := syncFiles(dir, checkpointPages, checkpointManifest, "."); err != nil {
		return err
	}
	if kind == vmm.Diff {
		return m.keepWritten(ctx, filepath.Join(dir, checkpointMemory))
	}
	return nil
}

// writePages notes which pages a memory has that the monitor has just written, and
// gives back the space of what it need not have.
func (m *machine) writePages(memory *os.File, to string, kind vmm.SnapshotType) error {
	own := pager.AllPages(int64(m.state.Resources.MemoryMiB) << 20)
	var err error
	if kind == vmm.Full {
		err = digHoles(memory)
	} else {
		own, err = pager.PagesOf(memory)
	}
	if err != nil {
		return err
	}
	return os.WriteFile(to, own.Encode(), 0o600)
}

// layOut makes ready for a Diff: what was written before the last checkpoint is
// put where the monitor will write what was written since.
func (m *machine) layOut(ctx context.Context) error {
	if err := os.WriteFile(m.own(wholeMark), nil, 0o600); err != nil {
		return err
	}
	if !exists(m.own(writtenFile)) {
		return nil
	}
	if _, err := microvm.CopySparse(ctx, m.own(writtenFile), m.jail.Path(newMemory), microvm.Cached); err != nil {
		return err
	}
	return os.Chown(m.jail.Path(newMemory), m.jail.UID, m.jail.UID)
}

// keepWritten remembers the memory of a Diff that succeeded.
func (m *machine) keepWritten(ctx context.Context, memory string) error {
	if err := os.Remove(m.own(writtenFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err := os.Link(memory, m.own(writtenFile))
	if errors.Is(err, unix.EXDEV) {
		_, err = microvm.CopySparse(ctx, memory, m.own(writtenFile), microvm.Cached)
	}
	if err != nil {
		return err
	}
	return os.Remove(m.own(wholeMark))
}

// take moves a file that the monitor wrote out of the jail, looks at it, and
// syncs it. The file becomes root's.
func (m *machine) take(ctx context.Context, name, to string, look func(*os.File) error) error {
	f, err := m.jail.Open(name, os.O_RDWR)
	if err != nil {
		return err
	}
	defer f.Close()
	if look != nil {
		if err := look(f); err != nil {
			return err
		}
	}
	if err := errors.Join(f.Chown(0, 0), f.Chmod(0o600)); err != nil {
		return err
	}
	if err := os.Rename(m.jail.Path(name), to); errors.Is(err, unix.EXDEV) {
		_, err := microvm.CopySparse(ctx, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), to, microvm.Synced)
		return err
	} else if err != nil {
		return err
	}
	moved, err := os.Lstat(to)
	if err != nil {
		return err
	}
	if was, err := f.Stat(); err != nil || !os.SameFile(was, moved) {
		return fmt.Errorf("the monitor exchanged %s under our hands (%w)", name, err)
	}
	return f.Sync()
}

func (m *machine) copyDisk(ctx context.Context, to string) error {
	f, err := m.jail.Open(diskFile, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = microvm.CopySparse(ctx, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), to, microvm.Synced)
	return err
}

func (m *machine) writeManifest(dir string, over *driver.Checkpoint) error {
	id := make([]byte, idLength/2)
	rand.Read(id) // never fails
	is := driver.Spec{Layers: m.state.Layers, Resources: m.state.Resources, Net: m.state.Net}
	fit, err := microvm.NewFit(m.state.Key, is, m.state.Guest)
	if err != nil {
		return err
	}
	man := manifest{ID: hex.EncodeToString(id), Fit: fit}
	if over != nil {
		below, err := readManifest(over.Dir, nil) // its memory may be packed
		if err != nil {
			return hearth.Wrap(hearth.FailedPrecondition, err, "the checkpoint that machine %s was restored from is gone", m.id)
		}
		man.Base = below.ID
	}
	raw, err := json.Marshal(man)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, checkpointManifest), raw, 0o600)
}

// syncFiles makes files of a directory survive a power cut.
func syncFiles(dir string, names ...string) error {
	for _, name := range names {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// digHoles gives back the space of a whole memory's zeros, before it was written
// to the disk: most of a machine's memory was never used.
func digHoles(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	buf, zeros := make([]byte, 1<<20), make([]byte, 4<<10)
	from := int64(-1) // where zeros began
	dig := func(to int64) error {
		if from < 0 {
			return nil
		}
		start := from
		from = -1
		return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, start, to-start)
	}
	for at := int64(0); at < info.Size(); at += int64(len(buf)) {
		piece := buf[:min(int64(len(buf)), info.Size()-at)]
		if _, err := f.ReadAt(piece, at); err != nil {
			return err
		}
		for off := 0; off < len(piece); off += len(zeros) {
			page := piece[off:min(off+len(zeros), len(piece))]
			switch zero := string(page) == string(zeros[:len(page)]); {
			case zero && from < 0:
				from = at + int64(off)
			case !zero:
				if err := dig(at + int64(off)); err != nil {
					return err
				}
			}
		}
	}
	err = dig(info.Size())
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil // a file system without holes
	}
	return err
}
