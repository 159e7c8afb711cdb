package gvisor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/state/statefile"
	"gvisor.dev/gvisor/runsc/sandbox"

	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// manifestFile is ours, the others are gVisor's: kernel state, where which page
// lies, and the pages.
const manifestFile = "machine.json"

var checkpointFiles = [...]string{"checkpoint.img", "pages_meta.img", "pages.img"}

// manifest says what a checkpoint must be restored over. gVisor itself only
// notices a wrong image when it reads it, by panicking.
type manifest struct {
	Key     string `json:"key"`
	Layer   string `json:"layer"`             // imageID of the root's image
	Guest   string `json:"guest,omitempty"`   // base name of the guest image
	GuestID string `json:"guestid,omitempty"` // its imageID
	DiskMiB int    `json:"disk_mib"`
	Memory  int    `json:"memory_mib"`
	Network bool   `json:"network"`
}

// imageID identifies an EROFS image by its superblock, which holds a UUID, and
// its size. It is cheap enough for every start.
func imageID(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	const superblock, superblockSize = 1024, 128
	head := make([]byte, superblockSize)
	if _, err := f.ReadAt(head, superblock); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("it is too short")
		}
		return "", err
	}
	if magic := []byte{0xe2, 0xe1, 0xf5, 0xe0}; !slices.Equal(head[:4], magic) {
		return "", errors.New("it is not an EROFS image")
	}
	sum := sha256.Sum256(fmt.Appendf(head, "%d", st.Size()))
	return hex.EncodeToString(sum[:16]), nil
}

// Checkpoint writes the frozen machine. Memory that the guest has not yet read
// since its own restore is read first.
func (m *machine) Checkpoint(ctx context.Context, dir string) (*driver.Checkpoint, error) {
	err := m.control(ctx, "checkpoint", func() error {
		if !m.frozen {
			return hearth.Errorf(hearth.FailedPrecondition, "machine %s is not frozen", m.id)
		}
		if err := m.writeManifest(dir); err != nil {
			return err
		}
		if err := m.box.Checkpoint(m.d.conf, m.id, dir, sandbox.CheckpointOpts{Compression: statefile.CompressionLevelNone, Resume: true}); err != nil {
			return err
		}
		return syncAll(dir)
	})
	if err != nil {
		return nil, diskFull(m.id, err)
	}
	return &driver.Checkpoint{Driver: Name, Key: m.state.Key, Dir: dir, Files: append(checkpointFiles[:], manifestFile)}, nil
}

// diskFull gives the error of a checkpoint for which there was no room its kind.
// What the sandbox writes fails over there, and only the text comes back.
func diskFull(id string, err error) error {
	if !errors.Is(err, unix.ENOSPC) && !strings.Contains(err.Error(), unix.ENOSPC.Error()) {
		return err
	}
	return hearth.Wrap(hearth.ResourceExhausted, err, "machine %s: no checkpoint: the node's disk is full", id)
}

func (m *machine) writeManifest(dir string) error {
	layer, err := imageID(m.state.Layer)
	if err != nil {
		return err
	}
	man := manifest{
		Key: m.state.Key, Layer: layer, DiskMiB: m.state.Resources.DiskMiB,
		Memory: m.state.Resources.MemoryMiB, Network: m.state.Net.NetNS != "",
	}
	if m.state.Guest != "" {
		man.Guest = filepath.Base(m.state.Guest)
		if man.GuestID, err = imageID(m.state.Guest); err != nil {
			return err
		}
	}
	raw, err := json.Marshal(man)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, manifestFile), raw, 0o600)
}

// syncAll makes a checkpoint survive a power cut, and private.
func syncAll(dir string) error {
	for _, name := range append(checkpointFiles[:], manifestFile, ".") {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if name != "." {
			err = f.Chmod(0o600)
		}
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// origin decides with which guest image a machine runs, and refuses a checkpoint
// that does not fit this host, this build or the spec, before anything runs.
func (d *Driver) origin(spec driver.Spec) (key, guest string, err error) {
	if key, err = d.key(); err != nil {
		return "", "", hearth.Wrap(hearth.Internal, err, "processor cannot be identified")
	}
	layer, err := imageID(spec.Layers[0])
	if err != nil {
		return "", "", hearth.Wrap(hearth.InvalidArgument, err, "layer %s cannot be used", filepath.Base(spec.Layers[0]))
	}
	if spec.From == nil {
		return key, d.cfg.Guest, nil
	}
	if spec.From.Driver != Name || spec.From.Key != key {
		return "", "", hearth.Errorf(hearth.FailedPrecondition, "checkpoint needs %s %q, this host is %s %q",
			spec.From.Driver, spec.From.Key, Name, key)
	}
	man, err := readManifest(spec.From.Dir)
	if err != nil {
		return "", "", hearth.Wrap(hearth.Internal, err, "checkpoint is damaged")
	}
	guest, err = d.checkMatch(man, spec, key, layer)
	return key, guest, err
}

func readManifest(dir string) (manifest, error) {
	var man manifest
	for _, name := range checkpointFiles {
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
	id, err := imageID(guest)
	if err != nil {
		return "", hearth.Wrap(hearth.FailedPrecondition, err, "checkpoint needs guest image %s, which is not here", man.Guest)
	}
	if id != man.GuestID {
		return refuse("needs another guest image %s than the one here", man.Guest)
	}
	return guest, nil
}
