package gvisor

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// A machine restored from a checkpoint maps the checkpoint's pages instead of
// reading them, when this build can (see patch/README.md): all machines of one
// checkpoint then share the host's one copy, until they write. The next
// checkpoint of such a machine holds only what changed and refers to the pages
// files below it: its layers, the oldest first. One that would consist
// of more than driver.MaxLayers of them is written whole. Only machines to which the
// caller hands the same files share anything.
//
// A machine holds descriptors of its own of all layers, so the directory it was
// started from may go. What must not happen to a layer is that its content
// changes: the machine would see it. Nothing in the sandbox can do that, whose
// descriptors are read-only, and on the host the files are without permission to
// write; a checkpoint refuses to refer to a layer that is not what it was.

const pagesFile = "pages.img"

// layerID is one layer of a checkpoint, in the manifest.
type layerID struct {
	ID    string `json:"id"` // of the checkpoint that wrote it
	Bytes int64  `json:"bytes"`
}

// heldLayer is one layer of a running machine, in its handle.
type heldLayer struct {
	layerID
	Dev      uint64   `json:"dev"`
	Inode    uint64   `json:"inode"`
	Modified int64    `json:"modified"` // nanoseconds since 1970
	Dir      string   `json:"dir"`      // of the checkpoint at the start; may be gone
	Files    []string `json:"files"`
}

func newCheckpointID() string { return rand.Text() }

// layersOf checks that a checkpoint's layers are the ones it was written over,
// and returns them with its own last.
func layersOf(from *driver.Checkpoint, man manifest) ([]heldLayer, error) {
	want := append(slices.Clone(man.Base), layerID{ID: man.ID, Bytes: man.Bytes})
	list := make([]heldLayer, 0, len(want))
	for c := from; c != nil; c = c.Base {
		if len(list) == len(want) {
			break // the caller's chain is longer: this checkpoint does not need the rest
		}
		expected := want[len(want)-1-len(list)]
		l, err := holdLayer(c, expected)
		if err != nil {
			return nil, hearth.Wrap(hearth.FailedPrecondition, err, "checkpoint refers to another, %s, which is damaged or not that one", expected.ID)
		}
		list = append(list, l)
	}
	if len(list) < len(want) {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "checkpoint refers to %d others, and %d are given", len(want)-1, len(list)-1)
	}
	slices.Reverse(list)
	return list, nil
}

// holdLayer looks at one layer's files.
func holdLayer(c *driver.Checkpoint, want layerID) (heldLayer, error) {
	l := heldLayer{layerID: want, Dir: c.Dir, Files: c.Files}
	man, err := readManifest(c.Dir, checkpointFiles[:])
	if err != nil {
		return l, err
	}
	info, err := os.Stat(filepath.Join(c.Dir, pagesFile))
	if err != nil {
		return l, err
	}
	if man.ID != want.ID || info.Size() != want.Bytes {
		return l, fmt.Errorf("it is %s with %d bytes of pages, not %s with %d", man.ID, info.Size(), want.ID, want.Bytes)
	}
	l.identify(info)
	return l, nil
}

func (l *heldLayer) identify(info os.FileInfo) {
	st := info.Sys().(*syscall.Stat_t)
	l.Dev, l.Inode, l.Modified = uint64(st.Dev), st.Ino, info.ModTime().UnixNano()
}

// mayRefer decides whether the machine's next checkpoint may refer to its
// layers. It is not an error that it may not; that a layer was changed is.
func (m *machine) mayRefer() (bool, error) {
	layers := m.state.Layers
	if !m.d.cfg.share() || len(layers) == 0 || len(layers) >= driver.MaxLayers {
		return false, nil
	}
	found := map[[2]uint64]os.FileInfo{}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", m.state.PID))
	if err != nil {
		return false, err
	}
	for _, fd := range fds {
		if info, err := os.Stat(fd); err == nil && info.Mode().IsRegular() { // else it was closed meanwhile
			st := info.Sys().(*syscall.Stat_t)
			found[[2]uint64{uint64(st.Dev), st.Ino}] = info
		}
	}
	for _, l := range layers {
		info, ok := found[[2]uint64{l.Dev, l.Inode}]
		if !ok {
			return false, nil // restored without sharing: it holds nothing
		}
		if info.Size() != l.Bytes || info.ModTime().UnixNano() != l.Modified {
			return false, hearth.Errorf(hearth.FailedPrecondition,
				"machine %s: the pages of checkpoint %s, of which it was started, were changed under it", m.id, l.ID)
		}
		if info.Sys().(*syscall.Stat_t).Nlink == 0 {
			return false, nil // removed: what refers to it could not be restored
		}
	}
	return true, nil
}

// base returns what a layered checkpoint of the machine refers to. Its
// directories are where they were when the machine was started.
func (m *machine) base() *driver.Checkpoint {
	var c *driver.Checkpoint
	for _, l := range m.state.Layers {
		c = &driver.Checkpoint{Driver: Name, Key: m.state.Key, Dir: l.Dir, Files: l.Files, Base: c}
	}
	return c
}
