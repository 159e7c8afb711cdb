package fake

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// The one file of a checkpoint: guest memory, a JSON object; or, of one that has
// a base, an object of what changed, null for what is gone.
const (
	stateFile = "guest.json"
	deltaFile = "delta.json"
)

// Driver starts machines on a Host.
type Driver struct{ host *Host }

// New returns a driver of host. Several may share one: a driver that is dropped
// without closing its machines has crashed, and the next one can Attach to them.
func New(host *Host) *Driver { return &Driver{host: host} }

// Name is the host's Config.Name.
func (d *Driver) Name() string { return d.host.cfg.Name }

// Probe fails only when it was told to.
func (d *Driver) Probe(ctx context.Context) (driver.Capabilities, error) {
	if err := d.host.before(ctx, Probe, ""); err != nil {
		return driver.Capabilities{}, err
	}
	return driver.Capabilities{Isolation: d.host.cfg.Isolation, MemorySnapshot: !d.host.cfg.DiskOnly, FileSnapshot: true, Blanks: true, Rests: true, Tap: d.host.cfg.Tap, Key: d.host.cfg.Key}, nil
}

// Start runs the host's Program in a new guest.
func (d *Driver) Start(ctx context.Context, spec driver.Spec) (driver.Machine, error) {
	if err := d.check(spec); err != nil {
		return nil, err
	}
	memory := map[string]string{}
	if spec.From != nil {
		var err error
		if memory, err = d.load(spec.From); err != nil {
			return nil, err
		}
	}
	if err := d.host.before(ctx, Start, spec.ID); err != nil {
		return nil, err
	}
	m, err := d.place(spec, memory)
	if err != nil {
		return nil, err
	}
	d.run(m)
	return m, nil
}

func (d *Driver) check(spec driver.Spec) error {
	if err := spec.Check(); err != nil {
		return err
	}
	if tap := spec.Net.Tap != ""; spec.Net.NetNS != "" && tap != d.host.cfg.Tap {
		return hearth.Errorf(hearth.InvalidArgument, "net.tap is %q on a host with Tap %t", spec.Net.Tap, d.host.cfg.Tap)
	}
	return nil
}

// place puts a machine into the host and its directory.
func (d *Driver) place(spec driver.Spec, memory map[string]string) (*machine, error) {
	m := newMachine(d.host, spec, memory)
	if err := d.host.add(m); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(spec.Dir, "machine"), []byte(spec.ID), 0o600); err != nil {
		d.host.remove(m)
		return nil, hearth.Wrap(hearth.Internal, err, "cannot write the machine's directory")
	}
	return m, nil
}

func (d *Driver) run(m *machine) {
	if d.host.cfg.Program != nil {
		d.host.cfg.Program(m.guest)
	}
}

// load reads a checkpoint, after the checks that the contract asks for.
func (d *Driver) load(from *driver.Checkpoint) (map[string]string, error) {
	if from.Driver != d.Name() || from.Key != d.host.cfg.Key {
		return nil, hearth.Errorf(hearth.FailedPrecondition,
			"checkpoint was written by %s %q, this host is %s %q", from.Driver, from.Key, d.Name(), d.host.cfg.Key)
	}
	name, memory := stateFile, map[string]string{}
	if from.Base != nil {
		var err error
		if memory, err = d.load(from.Base); err != nil {
			return nil, err
		}
		name = deltaFile
	}
	raw, err := os.ReadFile(filepath.Join(from.Dir, name))
	if err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "checkpoint cannot be read")
	}
	changed := map[string]*string{}
	if err := json.Unmarshal(raw, &changed); err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "checkpoint is damaged")
	}
	for k, v := range changed {
		if v == nil {
			delete(memory, k)
		} else {
			memory[k] = *v
		}
	}
	return memory, nil
}

// difference is what a layer on top of base holds.
func difference(base, memory map[string]string) map[string]*string {
	changed := map[string]*string{}
	for k := range base {
		if _, still := memory[k]; !still {
			changed[k] = nil
		}
	}
	for k, v := range memory {
		if before, was := base[k]; !was || before != v {
			changed[k] = &v
		}
	}
	return changed
}

// Attach finds a living machine by its handle. A handle of an earlier machine
// with the same ID does not match.
func (d *Driver) Attach(ctx context.Context, h driver.Handle) (driver.Machine, error) {
	if err := d.host.before(ctx, Attach, h.ID); err != nil {
		return nil, err
	}
	m := d.host.lookup(h.ID)
	if m == nil || h.Driver != d.Name() || string(m.Handle().State) != string(h.State) || m.spec.Dir != h.Dir {
		return nil, hearth.Errorf(hearth.NotFound, "machine %s is gone", h.ID)
	}
	return m, nil
}

// Sweep kills the machine if it lives and removes its directory.
func (d *Driver) Sweep(ctx context.Context, h driver.Handle) error {
	if err := d.host.before(ctx, Sweep, h.ID); err != nil {
		return err
	}
	if err := driver.CheckID(h.ID); err != nil {
		return err
	}
	if m := d.host.lookup(h.ID); m != nil {
		return m.free(ctx)
	}
	if !filepath.IsAbs(h.Dir) {
		return hearth.Errorf(hearth.InvalidArgument, "dir %q is not absolute", h.Dir)
	}
	return os.RemoveAll(h.Dir)
}

// save writes a guest's memory into a file and syncs it.
func save(file string, memory []byte) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(memory)
	return errors.Join(err, f.Sync(), f.Close())
}
