// Package travel lets snapshots leave as one file, and come in from one.
//
// A snapshot that comes in brings its build, which has a template of its own
// here, without a name: hearth.ImportTemplateID. The order of writes makes every
// cut harmless: the snapshot's row, as one that is being taken; the template,
// empty; the files; the build with its layers; and the row is ready. Until that
// last write nobody finds the snapshot. What was cut off the archive drops, at
// once or at the next start: files, then template and build, then the row. Layers
// without a build go with the builder's sweep, which comes after that.
//
// All sandboxes and snapshots on that build come after the imported snapshot in
// its line, so its row, and with that the template, outlives them.
package travel

import (
	"context"
	"io"
	"path"
	"strings"
	"time"

	"hearth/internal/control/archive"
	"hearth/internal/control/wish"
	"hearth/internal/hearth"
)

// Limits of what comes in.
const (
	MaxBytes   = 64 << 30 // of a snapshot with all that it needs, unpacked
	atOnce     = 4        // in both directions
	maxLine    = 16 << 10 // bytes of a command
	maxEnv     = 64 << 10 // bytes of an environment
	maxPath    = 4096
	maxUser    = 100
	maxVCPUs   = 32
	maxMiB     = 1 << 20
	minMemory  = 128
	minDiskMiB = 64
)

// rows is the part of store.Store that a desk uses.
type rows interface {
	Build(ctx context.Context, id hearth.BuildID) (*hearth.Build, error)
	CreateBuild(ctx context.Context, b *hearth.Build) error
	CreateTemplate(ctx context.Context, t *hearth.Template) error
	CreateSnapshot(ctx context.Context, s *hearth.Snapshot) error
}

// courier moves the files. After an error of Import nothing is left of them but
// layers.
type courier interface {
	Export(ctx context.Context, id hearth.SnapshotID, build hearth.Build, w io.Writer) error
	Import(ctx context.Context, id hearth.SnapshotID, owner hearth.SandboxID, r io.Reader) (*hearth.Snapshot, *hearth.Build, error)
}

// Desk is where snapshots leave and arrive. Its methods are safe for concurrent use.
type Desk struct {
	archive *archive.Archive
	store   rows
	courier courier
	now     func() time.Time
	turns   chan struct{}
}

// New returns a desk for the snapshots of an archive.
func New(a *archive.Archive, store rows, c courier, now func() time.Time) *Desk {
	return &Desk{archive: a, store: store, courier: c, now: now, turns: make(chan struct{}, atOnce)}
}

func (d *Desk) begin() (end func(), err error) {
	select {
	case d.turns <- struct{}{}:
		return func() { <-d.turns }, nil
	default:
		return nil, hearth.Errorf(hearth.ResourceExhausted, "%d snapshots are being exported and imported already; try again later", atOnce)
	}
}

// Export writes a team's snapshot, by ID or name, with all that it needs to w. A
// reader that saw no end of the stream has no snapshot. NotFound when the team has
// none. An error before the first write leaves w as it was.
func (d *Desk) Export(ctx context.Context, team hearth.TeamID, name string, w io.Writer) error {
	ref, err := wish.ParseRef(name)
	if err != nil {
		return err
	}
	end, err := d.begin()
	if err != nil {
		return err
	}
	defer end()
	snap, err := d.archive.Take(ctx, team, ref)
	if err != nil {
		return err
	}
	defer d.archive.Let(context.WithoutCancel(ctx), snap.ID)
	b, err := d.store.Build(ctx, snap.Build)
	if err != nil {
		return err
	}
	return d.courier.Export(ctx, snap.ID, hearth.Build{ // nothing of its place here
		Resources: snap.Resources, Layers: b.Layers, Start: b.Start, Ready: b.Ready,
		Env: b.Env, User: b.User, Workdir: b.Workdir, CreatedAt: b.CreatedAt,
	}, w)
}

// Import makes a team's snapshot of what Export wrote, without a name. It can be
// used at once where there is the driver that it needs, version, processor and
// kernel included; a create says what is missing. InvalidArgument when the file is
// not whole, or no snapshot. After an error nothing is left.
func (d *Desk) Import(ctx context.Context, team hearth.TeamID, r io.Reader) (*hearth.Snapshot, error) {
	end, err := d.begin()
	if err != nil {
		return nil, err
	}
	defer end()
	id := hearth.NewSnapshotID()
	row := hearth.Snapshot{
		ID: id, Team: team, Kind: hearth.KeptSnapshot, Status: hearth.SnapshotTaking, Created: d.now().UTC().Round(0),
		Sandbox: hearth.NewSandboxID(), // not the one it was taken of: that name may be another's here
		Build:   hearth.NewBuildID(), Template: hearth.ImportTemplateID(id),
	}
	d.archive.Hold(id)
	defer d.archive.Let(context.WithoutCancel(ctx), id)
	snap, err := d.take(ctx, row, r)
	if err != nil {
		d.archive.Discard(ctx, id)
		return nil, err
	}
	return snap, nil
}

// take does the writes of an import in the order that the package promises.
func (d *Desk) take(ctx context.Context, row hearth.Snapshot, r io.Reader) (*hearth.Snapshot, error) {
	if err := d.store.CreateSnapshot(ctx, &row); err != nil {
		return nil, err
	}
	t := &hearth.Template{ID: row.Template, Team: row.Team, CreatedAt: row.Created, UpdatedAt: row.Created}
	if err := d.store.CreateTemplate(ctx, t); err != nil {
		return nil, err
	}
	got, b, err := d.courier.Import(ctx, row.ID, row.Sandbox, r)
	if err != nil {
		return nil, err
	}
	if err := check(b); err != nil {
		return nil, err
	}
	build := &hearth.Build{
		ID: row.Build, Template: t.ID, Status: hearth.BuildReady, Source: "snapshot " + string(row.ID), Resources: b.Resources,
		Driver: got.Driver, Layers: b.Layers, Start: b.Start, Ready: b.Ready, Env: b.Env, User: b.User, Workdir: b.Workdir,
		CreatedAt: row.Created, FinishedAt: d.now().UTC().Round(0),
	}
	if err := d.store.CreateBuild(ctx, build); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx) // nobody would know the snapshot
	}
	return d.archive.Rewrite(ctx, row.ID, func(s *hearth.Snapshot) {
		s.Driver, s.Key, s.Memory, s.Files, s.Base, s.Parent = got.Driver, got.Key, got.Memory, got.Files, got.Base, got.Parent
		s.Resources, s.Status = b.Resources, hearth.SnapshotReady
	})
}

func bad(field string) error {
	return hearth.Errorf(hearth.InvalidArgument, "the snapshot's %s is not what a template can have", field)
}

func checkSize(r hearth.Resources) error {
	switch {
	case r.VCPUs < 1 || r.VCPUs > maxVCPUs:
		return bad("number of processors")
	case r.MemoryMiB < minMemory || r.MemoryMiB > maxMiB:
		return bad("size of memory")
	case r.DiskMiB < minDiskMiB || r.DiskMiB > maxMiB:
		return bad("size of disk")
	}
	return nil
}

// check refuses a build that no server would have made.
func check(b *hearth.Build) error {
	if err := checkSize(b.Resources); err != nil {
		return err
	}
	switch {
	case len(b.Layers) == 0:
		return bad("list of layers")
	case !line(b.Start) || !line(b.Ready):
		return bad("start or ready command")
	case len(b.User) > maxUser || strings.ContainsAny(b.User, "\x00\n:/"):
		return bad("user")
	case b.Workdir != "" && !path.IsAbs(b.Workdir), len(b.Workdir) > maxPath, strings.Contains(b.Workdir, "\x00"):
		return bad("working directory")
	}
	if !environment(b.Env) {
		return bad("environment")
	}
	return nil
}

func environment(env map[string]string) bool {
	size := 0
	for k, v := range env {
		size += len(k) + len(v)
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(v, "\x00") || size > maxEnv {
			return false
		}
	}
	return true
}

func line(s string) bool { return len(s) <= maxLine && !strings.ContainsAny(s, "\x00\n") }
