package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// manifestFile is ours, the others are gVisor's: kernel state, where which page
// lies, and the pages.
const manifestFile = "machine.json"

var checkpointFiles = [...]string{"checkpoint.img", "pages_meta.img", pagesFile}

// manifest says what a checkpoint must be restored over. gVisor itself only
// notices a wrong image when it reads it, by panicking.
type manifest struct {
	ID      string    `json:"id"`             // random, one per checkpoint
	Bytes   int64     `json:"bytes"`          // of its pages file
	Base    []layerID `json:"base,omitempty"` // the layers that it refers to, oldest first
	Key     string    `json:"key"`
	Layer   string    `json:"layer"`             // LayerID of the root's image
	Guest   string    `json:"guest,omitempty"`   // base name of the guest image
	GuestID string    `json:"guestid,omitempty"` // its LayerID
	DiskMiB int       `json:"disk_mib"`
	Memory  int       `json:"memory_mib"`
	Network bool      `json:"network"`
}

// Checkpoint writes the frozen machine. Memory that the guest has not yet read
// since its own restore is read first, or referred to.
func (m *machine) Checkpoint(ctx context.Context, dir string) (*driver.Checkpoint, error) {
	c := &driver.Checkpoint{Driver: Name, Key: m.state.Key, Dir: dir, Files: append(checkpointFiles[:], manifestFile)}
	err := m.control(ctx, "checkpoint", func() error {
		if !m.frozen {
			return hearth.Errorf(hearth.FailedPrecondition, "machine %s is not frozen", m.id)
		}
		layered, err := m.mayRefer()
		if err != nil {
			return err
		}
		man, err := m.manifest()
		if err != nil {
			return err
		}
		if layered {
			c.Base = m.base()
			for _, l := range m.state.Layers {
				man.Base = append(man.Base, l.layerID)
			}
		}
		if err := m.box.Checkpoint(m.d.conf, m.id, dir, checkpointOpts(layered)); err != nil {
			return err
		}
		return man.write(dir, checkpointFiles[:]...)
	})
	if err != nil {
		return nil, diskFull(m.id, err)
	}
	return c, nil
}

// diskFull gives the error of a checkpoint for which there was no room its kind.
// What the sandbox writes fails over there, and only the text comes back.
func diskFull(id string, err error) error {
	if !errors.Is(err, unix.ENOSPC) && !strings.Contains(err.Error(), unix.ENOSPC.Error()) {
		return err
	}
	return hearth.Wrap(hearth.ResourceExhausted, err, "machine %s: no checkpoint: the node's disk is full", id)
}

// manifest describes the machine's next checkpoint, as one that stands alone.
func (m *machine) manifest() (manifest, error) {
	man := manifest{
		ID: newCheckpointID(), Key: m.state.Key, DiskMiB: m.state.Resources.DiskMiB,
		Memory: m.state.Resources.MemoryMiB, Network: m.state.Net.NetNS != "",
	}
	var err error
	if man.Layer, err = driver.LayerID(m.state.Layer); err != nil {
		return man, err
	}
	if m.state.Guest != "" {
		man.Guest = filepath.Base(m.state.Guest)
		man.GuestID, err = driver.LayerID(m.state.Guest)
	}
	return man, err
}

// write adds the manifest to the files that gVisor wrote, and makes all of them
// private, and nobody's to change: machines may map them for as long as they run.
func (man manifest) write(dir string, files ...string) error {
	if slices.Contains(files, pagesFile) {
		info, err := os.Stat(filepath.Join(dir, pagesFile))
		if err != nil {
			return err
		}
		man.Bytes = info.Size()
	}
	raw, err := json.Marshal(man)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, manifestFile), raw, 0o600); err != nil {
		return err
	}
	for _, name := range append(files, manifestFile) {
		if err := os.Chmod(filepath.Join(dir, name), 0o400); err != nil {
			return err
		}
	}
	return nil
}

// origin decides what a machine is made of, and refuses a checkpoint that does
// not fit this host, this build or the spec, before anything runs.
func (d *Driver) origin(spec driver.Spec) (origin, error) { return d.originBy(spec, d.key) }

// originBy is origin for a build of another key.
func (d *Driver) originBy(spec driver.Spec, key func() (string, error)) (from origin, err error) {
	if from.key, err = key(); err != nil {
		return from, hearth.Wrap(hearth.Internal, err, "processor cannot be identified")
	}
	layer, err := driver.LayerID(spec.Layers[0])
	if err != nil {
		return from, hearth.Wrap(hearth.InvalidArgument, err, "layer %s cannot be used", filepath.Base(spec.Layers[0]))
	}
	if spec.From == nil {
		from.guest = d.cfg.Guest
		return from, nil
	}
	if spec.From.Driver != Name || spec.From.Key != from.key {
		return from, hearth.Errorf(hearth.FailedPrecondition, "checkpoint needs %s %q, this host is %s %q",
			spec.From.Driver, spec.From.Key, Name, from.key)
	}
	files := checkpointFiles[:]
	if spec.From.FilesOnly {
		files = []string{upperFile}
	}
	man, err := readManifest(spec.From.Dir, files)
	if err != nil {
		return from, hearth.Wrap(hearth.Internal, err, "checkpoint is damaged")
	}
	from.guest, err = d.checkMatch(man, spec, from.key, layer)
	if err != nil || spec.From.FilesOnly {
		return from, err
	}
	if from.layers, err = layersOf(spec.From, man); err != nil {
		return from, err
	}
	if d.cfg.share() {
		from.hot = d.lessons.of(man.ID, man.Bytes).Hot
	}
	return from, nil
}

func readManifest(dir string, files []string) (manifest, error) {
	var man manifest
	for _, name := range files {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return man, err
		}
	}
	raw, err := os.ReadFile(filepath.Join(dir, manifestFile))
	if err != nil {
		return man, err
	}
	return man, json.Unmarshal(raw, &man)
}

// checkMatch compares what gVisor would not, or would with a panic.
func (d *Driver) checkMatch(man manifest, spec driver.Spec, key, layer string) (guest string, err error) {
	refuse := func(format string, args ...any) (string, error) {
		return "", hearth.Errorf(hearth.FailedPrecondition, "checkpoint "+format, args...)
	}
	switch {
	case man.Key != key:
		return refuse("was written by %q, this host is %q", man.Key, key)
	case man.Layer != layer:
		return refuse("was written over another layer than %s", filepath.Base(spec.Layers[0]))
	case man.DiskMiB != spec.Resources.DiskMiB || man.Memory != spec.Resources.MemoryMiB:
		return refuse("has %d MiB of memory and %d of disk, not %d and %d", man.Memory, man.DiskMiB,
			spec.Resources.MemoryMiB, spec.Resources.DiskMiB)
	case man.Network != (spec.Net.NetNS != ""):
		return refuse("has network %t, the machine %t", man.Network, spec.Net.NetNS != "")
	case (man.Guest == "") != (d.cfg.Guest == ""):
		return refuse("was written with guest image %q, this host has %q", man.Guest, d.cfg.Guest)
	case man.Guest == "":
		return "", nil
	case man.Guest != filepath.Base(man.Guest):
		return refuse("names guest image %q", man.Guest)
	}
	guest = filepath.Join(filepath.Dir(d.cfg.Guest), man.Guest)
	id, err := driver.LayerID(guest)
	if err != nil {
		return "", hearth.Wrap(hearth.FailedPrecondition, err, "checkpoint needs guest image %s, which is not here", man.Guest)
	}
	if id != man.GuestID {
		return refuse("needs another guest image %s than the one here", man.Guest)
	}
	return guest, nil
}
