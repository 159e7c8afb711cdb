package gvisor

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"hearth/internal/driver"
	"hearth/internal/driver/gvisor/console"
	"hearth/internal/driver/gvisor/launcher"
	"hearth/internal/driver/hostproc"
	"hearth/internal/hearth"
)

const cleanupTime = 10 * time.Second

// Name is "gvisor".
func (d *Driver) Name() string { return Name }

// Start boots or restores a machine.
func (d *Driver) Start(ctx context.Context, spec driver.Spec) (driver.Machine, error) {
	m, err := begin(ctx, d, spec, d.start)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// begin checks the spec, reserves users and makes something of it. When it fails
// nothing is left.
func begin[M any](ctx context.Context, d *Driver, spec driver.Spec, make func(context.Context, driver.Spec, origin) (M, error)) (made M, err error) {
	if err := d.checkSpec(spec); err != nil {
		return made, err
	}
	from, err := d.origin(spec)
	if err != nil {
		return made, err
	}
	firstUID, err := d.uids.Take(spec.ID)
	if err != nil {
		if hearth.KindOf(err) != hearth.Internal {
			return made, err
		}
		return made, hearth.Wrap(hearth.Internal, err, "no range of user IDs can be reserved")
	}
	from.firstUID = firstUID
	if made, err = make(ctx, spec, from); err != nil {
		d.undo(ctx, spec)
	}
	return made, err
}

// undo removes what a start that failed left.
func (d *Driver) undo(ctx context.Context, spec driver.Spec) {
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	if err := d.clear(clean, spec.ID, spec.Dir, hostproc.KeepDir); err != nil {
		d.cfg.Log.Error("machine that did not start left something behind", "id", spec.ID, "error", err)
	}
}

// origin is what a machine was made of, beyond its spec.
type origin struct {
	key      string // of the checkpoints it will write
	guest    string // guest image, absolute
	firstUID uint32
	layers   []heldLayer // of the checkpoint, oldest first, its own last
	hot      []uint64
}

func (d *Driver) checkSpec(spec driver.Spec) error {
	if err := spec.Check(); err != nil {
		return err
	}
	if len(spec.Layers) != 1 {
		return hearth.Errorf(hearth.InvalidArgument, "layers: the gvisor driver takes exactly one, got %d", len(spec.Layers))
	}
	if spec.Net.NetNS != "" && !spec.Net.Guest.IsValid() {
		return hearth.Errorf(hearth.InvalidArgument, "net: there is a namespace but no guest address")
	}
	return nil
}

func (d *Driver) start(ctx context.Context, spec driver.Spec, from origin) (*machine, error) {
	req, err := d.describe(spec, from)
	if err != nil {
		return nil, err
	}
	if spec.From != nil && !spec.From.FilesOnly {
		req.Image, req.Memory = spec.From.Dir, d.memoryOf(from)
	}
	con := &console.Console{}
	if req.Image == "" {
		if con, err = console.New(); err != nil {
			return nil, hearth.Wrap(hearth.Internal, err, "console cannot be made")
		}
	}
	l, err := d.launchers.Get(spec.ID, con)
	if err != nil {
		con.Close()
		return nil, err
	}
	pid, err := d.launchers.Last(ctx, l, req)
	if err != nil {
		con.Close()
		return nil, err
	}
	return d.started(pid, spec, from, con)
}

// describe writes the machine's bundle and says how to make the sandbox.
func (d *Driver) describe(spec driver.Spec, from origin) (launcher.Request, error) {
	req := launcher.Request{
		Flags:  d.cfg.flags(),
		ID:     spec.ID,
		Bundle: spec.Dir,
		Limit:  memoryLimit(spec.Resources),
	}
	if spec.Net.NetNS == "" {
		req.Flags = withoutNetwork(req.Flags)
	}
	if err := os.MkdirAll(d.cfg.Root, 0o711); err != nil {
		return req, hearth.Wrap(hearth.Internal, err, "gvisor root cannot be made")
	}
	oci := d.ociSpec(spec, from.guest, from.firstUID)
	filesOf(oci.Annotations, spec.From)
	if err := writeBundle(spec.Dir, oci); err != nil {
		return req, hearth.Wrap(hearth.Internal, err, "machine's directory cannot be written")
	}
	return req, nil
}

// memoryOf says where the pages of a checkpoint are.
func (d *Driver) memoryOf(from origin) launcher.Memory {
	m := launcher.Memory{Share: d.cfg.share(), Hot: from.hot}
	for _, l := range from.layers[:len(from.layers)-1] {
		m.Layers = append(m.Layers, filepath.Join(l.Dir, pagesFile))
	}
	return m
}

// started makes a machine of a sandbox in which a guest runs. The console is its own, also
// when it fails.
func (d *Driver) started(pid int, spec driver.Spec, from origin, con *console.Console) (*machine, error) {
	state, err := newState(pid, spec, from)
	if err != nil {
		con.Close()
		return nil, hearth.Wrap(hearth.Unavailable, err, "machine %s ended as it started", spec.ID)
	}
	m, err := d.adopt(spec.ID, spec.Dir, state, con)
	if err != nil {
		con.Close()
		return nil, err
	}
	return m, nil
}
