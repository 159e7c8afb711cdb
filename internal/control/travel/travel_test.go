package travel_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hearth/internal/control/archive"
	"hearth/internal/control/travel"
	"hearth/internal/hearth"
	"hearth/internal/store"
	"hearth/internal/store/memstore"
)

// world is what outlives a process: rows, and the files of snapshots.
type world struct {
	*memstore.Store
	files map[hearth.SnapshotID]bool
	build hearth.Build // what imports bring

	mu   sync.Mutex
	left int  // writes until the process dies
	late bool // the last one of them is made
	dead bool
}

var errDead = errors.New("the process is dead")

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		Store: memstore.New(), files: map[hearth.SnapshotID]bool{}, left: -1,
		build: hearth.Build{Resources: hearth.Resources{VCPUs: 2, MemoryMiB: 512, DiskMiB: 1024}, Layers: []string{"layers/a"}, User: "user"},
	}
	for _, err := range []error{
		w.Store.CreateTemplate(t.Context(), &hearth.Template{ID: "tpl", Team: "t1", Aliases: []string{"base"}}),
		w.Store.CreateBuild(t.Context(), &hearth.Build{ID: "b1", Template: "tpl", Status: hearth.BuildReady, Source: "from here", Layers: []string{"layers/a"}, Env: map[string]string{"A": "b"}}),
		w.Store.CreateSnapshot(t.Context(), &hearth.Snapshot{ID: "s00000000000000000001", Team: "t1", Build: "b1", Template: "tpl", Kind: hearth.KeptSnapshot, Alias: "golden", Tag: "default", Resources: w.build.Resources}),
		w.Store.CreateSnapshot(t.Context(), &hearth.Snapshot{ID: "s00000000000000000002", Team: "t2", Build: "b1", Template: "tpl", Kind: hearth.KeptSnapshot}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// desk is that of a process that has just started, after its sweep.
func (w *world) desk(t *testing.T) (*travel.Desk, *archive.Archive) {
	t.Helper()
	a := archive.New(archive.Deps{
		Store: w, Shelf: w, Log: slog.New(slog.DiscardHandler),
		Detached: func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		},
	})
	if err := a.Sweep(t.Context(), hearth.SnapshotDropped, hearth.SnapshotGone); err != nil {
		t.Fatal(err)
	}
	return travel.New(a, w, w, time.Now), a
}

// write is one write: the world's last if it dies now.
func (w *world) write(do func() error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dead {
		return errDead
	}
	if w.left--; w.left != 0 {
		return do()
	}
	w.dead = true
	if w.late {
		_ = do()
	}
	return errDead
}

func (w *world) CreateBuild(ctx context.Context, b *hearth.Build) error {
	return w.write(func() error { return w.Store.CreateBuild(ctx, b) })
}

func (w *world) CreateTemplate(ctx context.Context, t *hearth.Template) error {
	return w.write(func() error { return w.Store.CreateTemplate(ctx, t) })
}

func (w *world) CreateSnapshot(ctx context.Context, s *hearth.Snapshot) error {
	return w.write(func() error { return w.Store.CreateSnapshot(ctx, s) })
}

func (w *world) UpdateSnapshot(ctx context.Context, id hearth.SnapshotID, change func(*hearth.Snapshot) error) (out *hearth.Snapshot, err error) {
	err = w.write(func() (err error) { out, err = w.Store.UpdateSnapshot(ctx, id, change); return err })
	return out, err
}

func (w *world) DeleteTemplate(ctx context.Context, id hearth.TemplateID) error {
	return w.write(func() error { return w.Store.DeleteTemplate(ctx, id) })
}

func (w *world) DeleteSnapshot(ctx context.Context, id hearth.SnapshotID) error {
	return w.write(func() error { return w.Store.DeleteSnapshot(ctx, id) })
}

func (w *world) Weigh(context.Context, hearth.SnapshotID, ...hearth.SnapshotID) (whole, added int64, err error) {
	return 0, 0, nil
}

func (w *world) Remove(_ context.Context, id hearth.SnapshotID) error {
	return w.write(func() error { delete(w.files, id); return nil })
}

func (w *world) Export(_ context.Context, id hearth.SnapshotID, b hearth.Build, out io.Writer) error {
	_, err := io.WriteString(out, string(id)+" with "+strings.Join(b.Layers, ",")+" from "+b.Source+string(b.ID)+b.Env["A"])
	return err
}

func (w *world) Import(_ context.Context, id hearth.SnapshotID, owner hearth.SandboxID, r io.Reader) (*hearth.Snapshot, *hearth.Build, error) {
	raw, err := io.ReadAll(r)
	if err != nil || string(raw) == "bad" {
		return nil, nil, errors.Join(err, hearth.Errorf(hearth.InvalidArgument, "damaged"))
	}
	build := w.build
	err = w.write(func() error { w.files[id] = true; return nil })
	return &hearth.Snapshot{ID: id, Driver: "fake", Key: "k", Memory: true, Sandbox: owner, Files: []hearth.File{{Name: "state"}}}, &build, err
}

// untouched checks that there is nothing but what was there at first.
func (w *world) untouched(t *testing.T, when string) {
	t.Helper()
	list, err := w.ListSnapshots(t.Context())
	if err != nil || len(list) != 2 {
		t.Errorf("%s: %d snapshots, %v", when, len(list), err)
	}
	for _, team := range []hearth.TeamID{"t1", "t2"} {
		all, _, err := w.ListTemplates(t.Context(), team, store.Page{Limit: 10})
		if err != nil || team == "t1" && len(all) != 1 || team == "t2" && len(all) != 0 {
			t.Errorf("%s: team %s has %d templates, %v", when, team, len(all), err)
		}
	}
	if len(w.files) != 0 {
		t.Errorf("%s: files of %v", when, slices.Collect(maps.Keys(w.files)))
	}
}

func TestExport(t *testing.T) {
	w := newWorld(t)
	d, a := w.desk(t)
	for _, name := range []string{"s00000000000000000001", "golden"} {
		var b bytes.Buffer
		if err := d.Export(t.Context(), "t1", name, &b); err != nil || name == "s00000000000000000001" && b.String() != "s00000000000000000001 with layers/a from b" {
			t.Errorf("%s: %q, %v", name, &b, err)
		}
	}
	for _, name := range []string{"s00000000000000000002", "s00000000000000000009", "none"} {
		var b bytes.Buffer
		if err := d.Export(t.Context(), "t1", name, &b); hearth.KindOf(err) != hearth.NotFound || b.Len() > 0 {
			t.Errorf("%s: %q, %v", name, &b, err)
		}
	}
	if a.Held("s00000000000000000001") {
		t.Error("an export that ended holds its snapshot")
	}
}

func TestImport(t *testing.T) {
	w := newWorld(t)
	d, a := w.desk(t)
	var got []*hearth.Snapshot
	for range 2 {
		snap, err := d.Import(t.Context(), "t2", strings.NewReader("good"))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, snap)
	}
	one := got[0]
	if one.ID == got[1].ID || one.Sandbox == got[1].Sandbox || one.Template == got[1].Template {
		t.Errorf("two imports are %+v and %+v", one, got[1])
	}
	if one.Team != "t2" || one.Status != hearth.SnapshotReady || one.Kind != hearth.KeptSnapshot || one.Alias != "" ||
		one.Driver != "fake" || one.Key != "k" || !one.Memory || len(one.Files) != 1 || one.Resources != w.build.Resources {
		t.Errorf("got %+v", one)
	}
	b, err := w.Build(t.Context(), one.Build)
	if err != nil || b.Status != hearth.BuildReady || b.Template != one.Template || !slices.Equal(b.Layers, w.build.Layers) || b.User != "user" {
		t.Errorf("its build is %+v, %v", b, err)
	}
	if _, _, err := w.ResolveTemplate(t.Context(), "t2", string(one.Template)); hearth.KindOf(err) != hearth.FailedPrecondition {
		t.Errorf("sandboxes that do not come after the snapshot can be made on its build: %v", err)
	}

	// What comes after it keeps its template, though the snapshot is deleted.
	heir := &hearth.Snapshot{ID: "s3", Team: "t2", After: one.ID, Template: one.Template, Build: one.Build, Kind: hearth.KeptSnapshot}
	if err := w.CreateSnapshot(t.Context(), heir); err != nil {
		t.Fatal(err)
	}
	drop := func(id hearth.SnapshotID) {
		t.Helper()
		if err := errors.Join(a.Drop(t.Context(), id), a.Collect(t.Context(), id)); err != nil {
			t.Fatal(err)
		}
	}
	drop(one.ID)
	if _, err := w.Build(t.Context(), one.Build); err != nil || w.files[one.ID] {
		t.Errorf("of a deleted snapshot with an heir: build %v, files %v", err, w.files)
	}
	drop(heir.ID)
	drop(got[1].ID)
	w.untouched(t, "all deleted")
}

func TestRefusedImports(t *testing.T) {
	for name, change := range map[string]func(*hearth.Build){
		"no layers":  func(b *hearth.Build) { b.Layers = nil },
		"no memory":  func(b *hearth.Build) { b.Resources.MemoryMiB = 0 },
		"no disk":    func(b *hearth.Build) { b.Resources.DiskMiB = -1 },
		"processors": func(b *hearth.Build) { b.Resources.VCPUs = 1000 },
		"start":      func(b *hearth.Build) { b.Start = "a\nb" },
		"user":       func(b *hearth.Build) { b.User = "root:root" },
		"workdir":    func(b *hearth.Build) { b.Workdir = "relative" },
		"env":        func(b *hearth.Build) { b.Env = map[string]string{"A=B": "c"} },
		"big env":    func(b *hearth.Build) { b.Env = map[string]string{"A": strings.Repeat("x", 1<<20)} },
		"damaged":    nil,
	} {
		w := newWorld(t)
		d, _ := w.desk(t)
		body := "good"
		if change == nil {
			body = "bad"
		} else {
			change(&w.build)
		}
		if _, err := d.Import(t.Context(), "t1", strings.NewReader(body)); hearth.KindOf(err) != hearth.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
		w.untouched(t, name)
	}
	w := newWorld(t)
	d, _ := w.desk(t)
	ctx, cancel := context.WithCancel(t.Context())
	r, wr := io.Pipe()
	go func() { cancel(); wr.Close() }()
	if _, err := d.Import(ctx, "t1", r); err == nil {
		t.Error("imported for nobody")
	}
	w.untouched(t, "canceled")
}

// TestTurns: no more than four at once.
func TestTurns(t *testing.T) {
	w := newWorld(t)
	d, _ := w.desk(t)
	hold, release := io.Pipe()
	defer release.Close()
	errs := make(chan error, 5)
	for range 5 {
		go func() { _, err := d.Import(t.Context(), "t1", hold); errs <- err }()
	}
	if err := <-errs; hearth.KindOf(err) != hearth.ResourceExhausted {
		t.Errorf("the fifth: %v", err)
	}
	release.CloseWithError(hearth.Errorf(hearth.InvalidArgument, "enough"))
	for range 4 {
		if err := <-errs; hearth.KindOf(err) != hearth.InvalidArgument {
			t.Errorf("one of the four: %v", err)
		}
	}
	w.untouched(t, "given up")
}

// TestImportDiesAnywhere cuts the process off at every write, before and after it is
// made. The next one has all of the snapshot or nothing of it.
func TestImportDiesAnywhere(t *testing.T) {
	for n := 1; ; n++ {
		for _, late := range []bool{false, true} {
			w := newWorld(t)
			d, _ := w.desk(t)
			w.left, w.late = n, late
			_, err := d.Import(t.Context(), "t1", strings.NewReader("good"))
			if !w.dead {
				if err != nil || n < 6 {
					t.Fatalf("%d writes, %v", n, err)
				}
				return
			}
			w.left, w.dead = -1, false
			_, a := w.desk(t)
			list, _, lerr := a.List(t.Context(), store.SnapshotFilter{Team: "t1"}, store.Page{Limit: 10})
			if lerr != nil {
				t.Fatal(lerr)
			}
			for _, snap := range list {
				if snap.ID == "s00000000000000000001" {
					continue
				}
				if b, err := w.Build(t.Context(), snap.Build); err != nil || !w.files[snap.ID] || len(b.Layers) == 0 || !late {
					t.Errorf("after write %d there is half a snapshot: %v", n, err)
				}
				if err := errors.Join(a.Drop(t.Context(), snap.ID), a.Collect(t.Context(), snap.ID)); err != nil {
					t.Fatal(err)
				}
			}
			w.untouched(t, fmt.Sprint("after write ", n))
		}
	}
}
