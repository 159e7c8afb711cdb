package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/driver"
	"hearth/internal/driver/firecracker/jail"
	"hearth/internal/driver/firecracker/pager"
	"hearth/internal/driver/firecracker/vmm"
	"hearth/internal/driver/microvm"
	"hearth/internal/hearth"
)

const (
	loadTime     = 2 * time.Minute
	maxManifest  = 64 << 10
	userfaultDev = "/dev/userfaultfd"
)

// restoration is a checkpoint that fits.
type restoration struct {
	guest  string  // guest image, absolute; empty: none
	id     string  // of the checkpoint
	memory []layer // lowest first; none: of a checkpoint without memory, whose machine boots
}

// layer is the memory of one checkpoint.
type layer struct {
	path   string
	packed driver.Packed // nil: it is at path
	pages  []byte        // those that it has, as the pager reads them
}

// memoryOf finds the memory of a checkpoint, which must be of size bytes.
func memoryOf(c *driver.Checkpoint, size int64) (layer, error) {
	l := layer{path: filepath.Join(c.Dir, checkpointMemory), packed: c.Packed[checkpointMemory]}
	var has int64
	if l.packed != nil {
		has = l.packed.Size()
	} else if info, err := os.Stat(l.path); err != nil {
		return l, err
	} else {
		has = info.Size()
	}
	if has != size {
		return l, fmt.Errorf("it has %d bytes", has)
	}
	f, err := os.Open(filepath.Join(c.Dir, checkpointPages))
	if err != nil {
		return l, err
	}
	defer f.Close()
	if l.pages, err = io.ReadAll(io.LimitReader(f, pager.MaxPagesFile)); err != nil {
		return l, err
	}
	_, err = pager.ParsePages(l.pages, size)
	return l, err
}

// open opens it for a pager.
func (l layer) open(ctx context.Context) (pager.Memory, error) {
	if l.packed == nil {
		f, err := os.Open(l.path)
		return pager.Memory{File: f, Pages: l.pages}, err
	}
	layout, files, err := l.packed.Lend(ctx)
	if err != nil {
		return pager.Memory{}, err
	}
	m := pager.Memory{Pages: l.pages, Packed: true, Packs: files}
	if m.File, err = secretFile(layout); err != nil {
		return m, errors.Join(err, m.Close())
	}
	return m, nil
}

// secretFile returns a file that lies nowhere: what is told of packed files may hold
// their keys.
func secretFile(content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("layout", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "layout")
	if _, err := f.Write(content); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// boots says whether a machine boots: r is nil when it begins with an empty disk, too.
func (r *restoration) boots() bool { return r == nil || len(r.memory) == 0 }

// scattered says whether memory is in any other form than one file of this host.
func (r *restoration) scattered() bool { return len(r.memory) > 1 || r.packed() }

// packed says whether some of it can be had by a pager only.
func (r *restoration) packed() bool {
	return slices.ContainsFunc(r.memory, func(l layer) bool { return l.packed != nil })
}

// examine refuses a checkpoint that does not fit this host or the spec, before
// anything runs.
func (d *Driver) examine(h *host, spec driver.Spec) (*restoration, error) {
	r := &restoration{}
	var above manifest
	for c := spec.From; c != nil; c = c.Base {
		man, err := h.readFitting(c)
		if err != nil {
			return nil, err
		}
		if c == spec.From {
			if r.guest, err = man.Check(h.key.String(), spec, d.cfg.Guest); err != nil {
				return nil, err
			}
			if err := microvm.CheckDisk(filepath.Join(c.Dir, checkpointDisk), spec.Resources.DiskMiB); err != nil {
				return nil, err
			}
			r.id = man.ID
			if c.FilesOnly {
				return r, nil
			}
		} else if man.ID != above.Base {
			return nil, hearth.Errorf(hearth.FailedPrecondition, "checkpoint lies over another one than it is given with")
		}
		memory, err := memoryOf(c, int64(spec.Resources.MemoryMiB)<<20)
		if err != nil {
			return nil, hearth.Wrap(hearth.Internal, err, "checkpoint is damaged: its memory is not of %d MiB", spec.Resources.MemoryMiB)
		}
		r.memory = append(r.memory, memory)
		above = man
		if man.Base == "" {
			slices.Reverse(r.memory)
			if r.packed() && !canPage() {
				return nil, hearth.Errorf(hearth.FailedPrecondition, "checkpoint's memory is packed, and this host has no %s to read it while the machine runs", userfaultDev)
			}
			return r, nil
		}
		if len(r.memory) == driver.MaxLayers {
			return nil, hearth.Errorf(hearth.FailedPrecondition, "checkpoint has more than %d layers", driver.MaxLayers)
		}
	}
	return nil, hearth.Errorf(hearth.FailedPrecondition, "checkpoint lies over one that is not given")
}

// readFitting reads a checkpoint's manifest, if it was written on a host like this.
func (h *host) readFitting(c *driver.Checkpoint) (manifest, error) {
	if err := h.key.Check(c); err != nil {
		return manifest{}, err
	}
	files := checkpointFiles()
	if c.FilesOnly {
		files = filesOnly()
	}
	man, err := readManifest(c.Dir, slices.DeleteFunc(files, func(name string) bool { return c.Packed[name] != nil }))
	if err != nil {
		return man, hearth.Wrap(hearth.Internal, err, "checkpoint is damaged")
	}
	if man.Key != c.Key {
		return man, hearth.Errorf(hearth.FailedPrecondition, "checkpoint is damaged: it holds another key than it is kept under")
	}
	return man, nil
}

func readManifest(dir string, files []string) (manifest, error) {
	var man manifest
	for _, name := range files {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return man, err
		}
	}
	f, err := os.Open(filepath.Join(dir, checkpointManifest))
	if err != nil {
		return man, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxManifest))
	if err != nil {
		return man, err
	}
	return parseManifest(raw)
}

// parseManifest reads a manifest, of which nothing is trusted.
func parseManifest(raw []byte) (manifest, error) {
	var man manifest
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&man); err != nil {
		return man, err
	}
	if !isID(man.ID) || man.Base != "" && !isID(man.Base) {
		return man, fmt.Errorf("it is called %.80q, over %.80q", man.ID, man.Base)
	}
	if man.Guest != "" && (filepath.Base(man.Guest) != man.Guest || man.Guest == "." || man.Guest == "..") {
		return man, fmt.Errorf("it names guest image %.80q", man.Guest)
	}
	return man, nil
}

// furnishRestored puts disk and memory of a checkpoint into the jail.
func (d *Driver) furnishRestored(ctx context.Context, spec driver.Spec, o origin, j jail.Jail) error {
	if _, err := microvm.CopySparse(ctx, filepath.Join(spec.From.Dir, checkpointDisk), j.Path(diskFile), microvm.Cached); err != nil {
		return err
	}
	if err := os.Chown(j.Path(diskFile), j.UID, j.UID); err != nil {
		return hearth.Wrap(hearth.Internal, err, "the disk cannot be given to machine %s", spec.ID)
	}
	if o.from.boots() || o.from.scattered() && canPage() {
		return nil // see load
	}
	if !o.from.scattered() {
		if err := j.Put(o.from.memory[0].path, memoryFile); err != nil {
			return hearth.Wrap(hearth.Internal, err, "memory cannot be put into the jail of machine %s", spec.ID)
		}
		return nil
	}
	if err := flatten(ctx, o.from.memory, j.Path(memoryFile), j.UID); err != nil {
		return hearth.Wrap(hearth.Internal, err, "memory of machine %s cannot be put together", spec.ID)
	}
	return nil
}

// canPage says whether a monitor in a jail can have a userfaultfd: the jailer
// gives it the device, where there is one.
func canPage() bool {
	_, err := os.Stat(userfaultDev)
	return err == nil
}

// flatten puts layered memory together in one file: what a host does that cannot
// answer page faults.
func flatten(ctx context.Context, memory []layer, to string, uid int) error {
	opened, err := openAll(ctx, memory)
	defer closeAll(opened)
	if err != nil {
		return err
	}
	layers, err := pager.Open(opened)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(layers.Flatten(f), f.Chown(uid, uid), f.Close())
}

func openAll(ctx context.Context, memory []layer) ([]pager.Memory, error) {
	var opened []pager.Memory
	for _, l := range memory {
		m, err := l.open(ctx)
		if err != nil {
			return opened, err
		}
		opened = append(opened, m)
	}
	return opened, nil
}

func closeAll(opened []pager.Memory) {
	for _, m := range opened {
		_ = m.Close()
	}
}

// load restores the machine in its monitor and lets the guest run. Tap and socket
// may have other names than in the snapshot.
func (m *machine) load(ctx context.Context, spec driver.Spec, o origin) error {
	req := vmm.SnapshotLoad{
		SnapshotPath: "/" + stateFile, TrackDirtyPages: true, ResumeVM: true,
		MemBackend:    vmm.MemBackend{BackendType: vmm.File, BackendPath: "/" + memoryFile},
		VsockOverride: &vmm.VsockOverride{UDSPath: "/" + vsockSocket},
	}
	if spec.Net.Tap != "" {
		req.NetworkOverrides = []vmm.NetworkOverride{{IfaceID: guestDevice, HostDevName: spec.Net.Tap}}
	}
	if o.from.scattered() && canPage() {
		if err := m.startPager(ctx, o); err != nil {
			return hearth.Wrap(hearth.Internal, err, "machine %s has no pager", m.id)
		}
		req.MemBackend = vmm.MemBackend{BackendType: vmm.Uffd, BackendPath: "/" + pagerSocket}
	}
	ctx, cancel := context.WithTimeout(ctx, loadTime)
	defer cancel()
	return m.api.LoadSnapshot(ctx, req)
}

// isID recognizes the ID of a checkpoint.
func isID(s string) bool {
	return len(s) == idLength && strings.Trim(s, "0123456789abcdef") == ""
}

// exists says whether there is something at path.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// diskFull gives an error for which there was no room its kind.
func diskFull(id string, err error) error {
	if !errors.Is(err, unix.ENOSPC) && !strings.Contains(err.Error(), "No space left on device") {
		return err
	}
	return hearth.Wrap(hearth.ResourceExhausted, err, "machine %s: no checkpoint: the node's disk is full", id)
}
