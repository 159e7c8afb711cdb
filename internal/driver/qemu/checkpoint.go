package qemu

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/driver"
	"hearth/internal/driver/microvm"
	"hearth/internal/driver/microvm/channel"
	"hearth/internal/driver/qemu/install"
	"hearth/internal/driver/qemu/qmp"
	"hearth/internal/driver/qemu/ram"
	"hearth/internal/hearth"
)

// The files of a checkpoint; the disk is called as in a machine's directory.
const (
	manifestFile = "machine.json"
	deviceFile   = "device.state"
	indexFile    = "ram.index"
	pagesFile    = "ram.pages"

	// maxState bounds what QEMU writes of its devices: 18 KiB, with 64 processors some hundred.
	maxState    = 16 << 20
	maxManifest = 1 << 20
)

func checkpointFiles() []string {
	return []string{manifestFile, deviceFile, indexFile, pagesFile, diskFile}
}

// filesOnly are the files of a checkpoint without memory.
func filesOnly() []string { return []string{manifestFile, diskFile} }

// manifest says what a checkpoint is of, and must be restored over.
type manifest struct {
	ID   string `json:"id"`             // random
	Base string `json:"base,omitempty"` // ID of the checkpoint whose memory this one's differs from
	microvm.Fit
}

// chain is a checkpoint with what it refers to.
type chain struct {
	dir      string // the checkpoint's own
	own      bool   // its memory differs from the template's
	template templateRef
}

// Checkpoint writes the frozen machine: its devices, what it has written to its
// memory, and its disk.
func (m *machine) Checkpoint(ctx context.Context, dir string) (*driver.Checkpoint, error) {
	err := m.control(ctx, "checkpoint", func(ctx context.Context, q *qmp.Conn) error {
		if m.motion != frozen {
			return hearth.Errorf(hearth.FailedPrecondition, "machine %s is not frozen", m.id)
		}
		if err := m.writeManifest(dir, m.state.Template); err != nil {
			return err
		}
		if err := m.saveDevices(ctx, q, filepath.Join(dir, deviceFile)); err != nil {
			return err
		}
		if err := m.saveMemory(ctx, dir); err != nil {
			return err
		}
		return m.saveDisk(ctx, dir)
	})
	if err != nil {
		return nil, diskFull(m.id, err)
	}
	c := &driver.Checkpoint{Driver: Name, Key: m.state.Key, Dir: dir, Files: checkpointFiles()}
	if t := m.state.Template; t != nil {
		c.Base = &driver.Checkpoint{Driver: Name, Key: m.state.Key, Dir: t.Dir, Files: slices.Clone(t.Files)}
	}
	return c, nil
}

// saveDisk copies the disk, the last of a checkpoint's files.
func (m *machine) saveDisk(ctx context.Context, dir string) error {
	if _, err := microvm.CopySparse(ctx, filepath.Join(m.dir, diskFile), filepath.Join(dir, diskFile), microvm.Synced); err != nil {
		return err
	}
	return syncDir(dir)
}

// diskFull gives an error for which there was no room its kind.
func diskFull(id string, err error) error {
	if !errors.Is(err, unix.ENOSPC) {
		return err
	}
	return hearth.Wrap(hearth.ResourceExhausted, err, "machine %s: no checkpoint: the node's disk is full", id)
}

// CheckpointFiles writes the frozen machine's disk. The guest's kernel has a part
// of it in memory, so it runs for as long as it takes to write that out.
func (m *machine) CheckpointFiles(ctx context.Context, dir string) (*driver.Checkpoint, error) {
	err := m.control(ctx, "checkpoint of files", func(ctx context.Context, q *qmp.Conn) error {
		if m.motion != frozen {
			return hearth.Errorf(hearth.FailedPrecondition, "machine %s is not frozen", m.id)
		}
		if err := m.settle(ctx, q); err != nil {
			return err
		}
		if err := m.writeManifest(dir, nil); err != nil {
			return err
		}
		return m.saveDisk(ctx, dir)
	})
	if err != nil {
		return nil, diskFull(m.id, err)
	}
	return &driver.Checkpoint{Driver: Name, Key: m.state.Key, Dir: dir, Files: filesOnly(), FilesOnly: true}, nil
}

// settle lets the guest write out what it has, and stops it again, whether it did
// or not. Nobody writes to its disk from then on until it is told its settings.
func (m *machine) settle(ctx context.Context, q *qmp.Conn) error {
	ctx, cancel := context.WithTimeoutCause(ctx, settleTime, fmt.Errorf("the guest did not write out its files in %s", settleTime))
	defer cancel()
	m.motion = unsure
	err := m.resume(ctx, q, boots)
	if err == nil {
		var ch *channel.Channel
		if ch, _, err = m.link.open(ctx, boots); err == nil {
			err = ch.Settle(ctx)
		}
	}
	return errors.Join(err, m.stopAgain(ctx, q))
}

func (m *machine) writeManifest(dir string, over *templateRef) error {
	is := driver.Spec{Layers: m.state.Layers, Resources: m.state.Resources, Net: m.state.Net}
	fit, err := microvm.NewFit(m.state.Key, is, m.state.Guest)
	if err != nil {
		return err
	}
	man := manifest{ID: rand.Text(), Fit: fit}
	if over != nil {
		man.Base = over.ID
	}
	raw, err := json.Marshal(man)
	if err != nil {
		return err
	}
	return writeSynced(filepath.Join(dir, manifestFile), func(w io.Writer) error {
		_, err := w.Write(raw)
		return err
	})
}

// writeSynced makes a private file that survives a power cut.
func writeSynced(path string, write func(io.Writer) error) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err = write(f); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// saveDevices lets QEMU write the state of its devices into a memory file, which
// counts against its own control group, and copies it to disk.
func (m *machine) saveDevices(ctx context.Context, q *qmp.Conn, path string) error {
	fd, err := unix.MemfdCreate("hearth-state", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	state := os.NewFile(uintptr(fd), "state")
	defer state.Close()
	w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer w.Close()
	set := map[string]any{"fdset-id": stateSet}
	if _, err := q.Call(ctx, qmp.Command{Name: "add-fd", Arguments: set, File: w}); err != nil {
		return err
	}
	_, err = q.Call(ctx, qmp.Command{Name: install.SaveCommand, Arguments: map[string]any{
		"filename": fmt.Sprintf("/dev/fdset/%d", stateSet), "live": false,
	}})
	_, removeErr := q.Call(ctx, qmp.Command{Name: "remove-fd", Arguments: set})
	if err = errors.Join(err, removeErr); err != nil {
		return err
	}
	st, err := state.Stat()
	if err != nil {
		return err
	}
	if st.Size() == 0 || st.Size() > maxState {
		return fmt.Errorf("the devices' state has %d bytes, not 1 to %d", st.Size(), maxState)
	}
	return writeSynced(path, func(w io.Writer) error {
		_, err := io.Copy(w, io.NewSectionReader(state, 0, st.Size()))
		return err
	})
}

func (m *machine) saveMemory(ctx context.Context, dir string) error {
	memory, err := ram.Find(m.state.PID, int64(m.state.Resources.MemoryMiB)<<20)
	if err != nil {
		return err
	}
	zeros := ram.DropZeros
	if m.state.Template != nil {
		zeros = ram.NoteZeros
	}
	var index *ram.Index
	err = writeSynced(filepath.Join(dir, pagesFile), func(w io.Writer) (err error) {
		index, err = memory.Save(ctx, w, zeros)
		return err
	})
	if err != nil {
		return err
	}
	return writeSynced(filepath.Join(dir, indexFile), func(w io.Writer) error {
		_, err := index.WriteTo(w)
		return err
	})
}

// load puts back what a checkpoint holds: the memory first, which the devices
// look into when their state is loaded.
func (m *machine) load(ctx context.Context, q *qmp.Conn, from origin) error {
	if from.chain.own {
		if err := m.loadMemory(ctx, from); err != nil {
			return fmt.Errorf("the checkpoint's memory: %w", err)
		}
	}
	if err := loadDevices(ctx, q, filepath.Join(from.chain.dir, deviceFile)); err != nil {
		return fmt.Errorf("the checkpoint's devices: %w", err)
	}
	return nil
}

func (m *machine) loadMemory(ctx context.Context, from origin) error {
	index, err := readIndex(from.chain.dir, from.memory)
	if err != nil {
		return err
	}
	memory, err := ram.Find(m.state.PID, from.memory)
	if err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(from.chain.dir, pagesFile))
	if err != nil {
		return err
	}
	defer f.Close()
	return memory.Load(ctx, index, bufio.NewReaderSize(f, 64<<10))
}

// loadDevices sends the state by a pipe, as a migration from elsewhere would come.
func loadDevices(ctx context.Context, q *qmp.Conn, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(w, io.LimitReader(f, maxState))
		sent <- errors.Join(err, w.Close())
	}()
	defer func() { // a QEMU that does not read cannot hold the sender up
		_ = w.SetDeadline(time.Unix(1, 0))
		<-sent
	}()
	if _, err := q.Call(ctx, qmp.Command{Name: "getfd", Arguments: map[string]string{"fdname": stateFD}, File: r}); err != nil {
		return err
	}
	if _, err := q.Call(ctx, qmp.Command{Name: "migrate-incoming", Arguments: map[string]string{"uri": "fd:" + stateFD}}); err != nil {
		return err
	}
	return awaitLoaded(ctx, q)
}

// awaitLoaded asks again and again. QEMU would tell by an event, too (7.2 does, seen),
// which saves a millisecond at most, and depends on more of QEMU.
func awaitLoaded(ctx context.Context, q *qmp.Conn) error {
	for {
		var migration struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		if err := q.Ask(ctx, "query-migrate", &migration); err != nil {
			return err
		}
		switch migration.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("they were not loaded: %s %q", migration.Status, migration.Error)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pollTime):
		}
	}
}

// origin decides what a machine is made of, and refuses a checkpoint that does
// not fit this host, this build or the spec, before anything runs.
func (d *Driver) origin(ctx context.Context, spec driver.Spec) (origin, error) {
	f, err := d.host.find(ctx)
	if err != nil {
		return origin{}, err
	}
	from := origin{facts: f, guest: d.cfg.Guest, memory: int64(spec.Resources.MemoryMiB) << 20}
	c := spec.From
	if c == nil {
		return from, nil
	}
	if c.Driver != Name {
		return origin{}, hearth.Errorf(hearth.FailedPrecondition, "checkpoint is of driver %q, not %q", c.Driver, Name)
	}
	if c.Key != f.key.String() {
		return origin{}, hearth.Errorf(hearth.FailedPrecondition, "checkpoint does not fit this host: %s", f.key.difference(c.Key))
	}
	files := checkpointFiles()
	if c.FilesOnly {
		files = filesOnly()
	}
	man, err := readManifest(c.Dir, files)
	if err != nil {
		return origin{}, hearth.Wrap(hearth.Internal, err, "checkpoint is damaged")
	}
	if from.guest, err = man.Check(f.key.String(), spec, d.cfg.Guest); err != nil {
		return origin{}, err
	}
	if err := microvm.CheckDisk(filepath.Join(c.Dir, diskFile), spec.Resources.DiskMiB); err != nil {
		return origin{}, err
	}
	from.disk = c.Dir
	if !c.FilesOnly {
		from.chain, err = resolve(man, c)
	}
	return from, err
}

// resolve finds the template of a checkpoint: itself, or its base.
func resolve(man manifest, c *driver.Checkpoint) (*chain, error) {
	if man.Base == "" {
		return &chain{dir: c.Dir, template: templateRef{ID: man.ID, Dir: c.Dir, Files: c.Files}}, nil
	}
	if c.Base == nil {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "checkpoint refers to another, which is not here")
	}
	base, err := readManifest(c.Base.Dir, checkpointFiles())
	if err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "checkpoint that this one refers to is damaged")
	}
	if base.ID != man.Base || base.Base != "" || base.Key != man.Key || base.Resources.MemoryMiB != man.Resources.MemoryMiB {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "checkpoint refers to another than the one that is given as its base")
	}
	return &chain{dir: c.Dir, own: true, template: templateRef{ID: base.ID, Dir: c.Base.Dir, Files: c.Base.Files}}, nil
}

func readManifest(dir string, files []string) (manifest, error) {
	var man manifest
	for _, name := range files {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return man, err
		}
	}
	f, err := os.Open(filepath.Join(dir, manifestFile))
	if err != nil {
		return man, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxManifest))
	if err != nil {
		return man, err
	}
	if err := json.Unmarshal(raw, &man); err != nil {
		return man, err
	}
	if man.ID == "" {
		return man, errors.New("it has no ID")
	}
	return man, nil
}
