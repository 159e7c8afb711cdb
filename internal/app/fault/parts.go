package fault

import (
	"context"
	"io"

	"hearth/internal/blob"
	"hearth/internal/driver"
	"hearth/internal/guest"
	"hearth/internal/hearth"
	"hearth/internal/node/agent"
	"hearth/internal/store"
)

// Driver is a driver with points.
type Driver struct {
	driver.Driver
	*Points
}

// Start implements driver.Driver.
func (d Driver) Start(ctx context.Context, spec driver.Spec) (m driver.Machine, err error) {
	if d.path() != "" {
		d.note("machines", spec.ID)
	}
	err = d.around("driver.start", func() error {
		m, err = d.Driver.Start(ctx, spec)
		return err
	})
	if err != nil {
		return nil, err
	}
	return machine{m, d.Points}, nil
}

// Prepare implements driver.Preparer where the driver does.
func (d Driver) Prepare(ctx context.Context, spec driver.Spec) (b driver.Blank, err error) {
	p, able := d.Driver.(driver.Preparer)
	if !able {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "driver %q prepares no machines", d.Name())
	}
	if d.path() != "" {
		d.note("machines", spec.ID)
	}
	err = d.around("driver.prepare", func() error {
		b, err = p.Prepare(ctx, spec)
		return err
	})
	if err != nil {
		return nil, err
	}
	return blank{b, d.Points}, nil
}

// blank is one with points.
type blank struct {
	driver.Blank
	*Points
}

// Restore implements driver.Blank.
func (b blank) Restore(ctx context.Context, from *driver.Checkpoint) (m driver.Machine, err error) {
	err = b.around("driver.restore", func() error {
		m, err = b.Blank.Restore(ctx, from)
		return err
	})
	if err != nil {
		return nil, err
	}
	return machine{m, b.Points}, nil
}

// Attach implements driver.Driver.
func (d Driver) Attach(ctx context.Context, h driver.Handle) (driver.Machine, error) {
	m, err := d.Driver.Attach(ctx, h)
	if err != nil {
		return nil, err
	}
	return machine{m, d.Points}, nil
}

// machine is one with points; it keeps files alone if its driver's machines do.
type machine struct {
	driver.Machine
	*Points
}

// Freeze implements driver.Machine.
func (m machine) Freeze(ctx context.Context) error {
	return m.around("driver.freeze", func() error { return m.Machine.Freeze(ctx) })
}

// Thaw implements driver.Machine.
func (m machine) Thaw(ctx context.Context) error {
	return m.around("driver.thaw", func() error { return m.Machine.Thaw(ctx) })
}

// Checkpoint implements driver.Machine.
func (m machine) Checkpoint(ctx context.Context, dir string) (c *driver.Checkpoint, err error) {
	err = m.around("driver.checkpoint", func() error {
		c, err = m.Machine.Checkpoint(ctx, dir)
		return err
	})
	return c, err
}

// CheckpointFiles implements driver.FileKeeper.
func (m machine) CheckpointFiles(ctx context.Context, dir string) (c *driver.Checkpoint, err error) {
	keeper, able := m.Machine.(driver.FileKeeper)
	if !able {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "the driver cannot keep files without memory")
	}
	err = m.around("driver.checkpoint", func() error {
		c, err = keeper.CheckpointFiles(ctx, dir)
		return err
	})
	return c, err
}

// ExactTimers implements driver.Timekeeper.
func (m machine) ExactTimers() { driver.ExactTimers(m.Machine) }

// Close implements driver.Machine.
func (m machine) Close(ctx context.Context) error {
	return m.around("driver.close", func() error { return m.Machine.Close(ctx) })
}

// Network is a node's network with points.
type Network struct {
	agent.Network
	*Points
}

// Acquire implements agent.Network.
func (n Network) Acquire(ctx context.Context) (s agent.Slot, err error) {
	err = n.around("net.acquire", func() error {
		s, err = n.Network.Acquire(ctx)
		return err
	})
	return s, err
}

// SetPolicy implements agent.Network.
func (n Network) SetPolicy(ctx context.Context, index int, rules hearth.Network) error {
	return n.around("net.policy", func() error { return n.Network.SetPolicy(ctx, index, rules) })
}

// Release implements agent.Network.
func (n Network) Release(ctx context.Context, index int) error {
	return n.around("net.release", func() error { return n.Network.Release(ctx, index) })
}

// Guest is a guest daemon with points.
type Guest struct {
	agent.Guest
	*Points
}

// Init implements guest.Agent.
func (g Guest) Init(ctx context.Context, req guest.InitRequest) error {
	return g.around("guest.init", func() error { return g.Guest.Init(ctx, req) })
}

// Quiesce implements guest.Agent.
func (g Guest) Quiesce(ctx context.Context, req guest.QuiesceRequest) error {
	return g.around("guest.quiesce", func() error { return g.Guest.Quiesce(ctx, req) })
}

// Blobs are a host's blobs with points.
type Blobs struct {
	blob.Local
	*Points
}

// Put implements blob.Store.
func (b Blobs) Put(ctx context.Context, key string, r io.Reader, size int64) error {
	return b.around("blob.put", func() error { return b.Local.Put(ctx, key, r, size) })
}

// Adopt implements blob.Local.
func (b Blobs) Adopt(ctx context.Context, key, path string) error {
	return b.around("blob.adopt", func() error { return b.Local.Adopt(ctx, key, path) })
}

// Delete implements blob.Store.
func (b Blobs) Delete(ctx context.Context, key string) error {
	return b.around("blob.delete", func() error { return b.Local.Delete(ctx, key) })
}

// Rows are a server's metadata with points.
type Rows struct {
	store.Store
	*Points
}

// CreateSandbox implements store.Sandboxes.
func (r Rows) CreateSandbox(ctx context.Context, s *hearth.Sandbox) error {
	return r.around("row.sandbox", func() error { return r.Store.CreateSandbox(ctx, s) })
}

// UpdateSandbox implements store.Sandboxes.
func (r Rows) UpdateSandbox(ctx context.Context, id hearth.SandboxID, change func(*hearth.Sandbox) error) (s *hearth.Sandbox, err error) {
	err = r.around("row.sandbox", func() error {
		s, err = r.Store.UpdateSandbox(ctx, id, change)
		return err
	})
	return s, err
}

// CreateSnapshot implements store.Snapshots.
func (r Rows) CreateSnapshot(ctx context.Context, s *hearth.Snapshot) error {
	return r.around("row.snapshot", func() error { return r.Store.CreateSnapshot(ctx, s) })
}

// UpdateSnapshot implements store.Snapshots.
func (r Rows) UpdateSnapshot(ctx context.Context, id hearth.SnapshotID, change func(*hearth.Snapshot) error) (s *hearth.Snapshot, err error) {
	err = r.around("row.snapshot", func() error {
		s, err = r.Store.UpdateSnapshot(ctx, id, change)
		return err
	})
	return s, err
}

// DeleteSnapshot implements store.Snapshots.
func (r Rows) DeleteSnapshot(ctx context.Context, id hearth.SnapshotID) error {
	return r.around("row.snapshot", func() error { return r.Store.DeleteSnapshot(ctx, id) })
}

// CreateTemplate implements store.Templates.
func (r Rows) CreateTemplate(ctx context.Context, t *hearth.Template) error {
	return r.around("row.template", func() error { return r.Store.CreateTemplate(ctx, t) })
}

// DeleteTemplate implements store.Templates.
func (r Rows) DeleteTemplate(ctx context.Context, id hearth.TemplateID) error {
	return r.around("row.template", func() error { return r.Store.DeleteTemplate(ctx, id) })
}

// CreateBuild implements store.Builds.
func (r Rows) CreateBuild(ctx context.Context, b *hearth.Build) error {
	return r.around("row.build", func() error { return r.Store.CreateBuild(ctx, b) })
}
