package builder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"hearth/internal/blob"
	"hearth/internal/blob/fileblob"
	"hearth/internal/hearth"
	"hearth/internal/image"
	"hearth/internal/node"
	"hearth/internal/store/memstore"
)

const team = hearth.TeamID("team-a")

// scripted is a node whose answers a test sets.
type scripted struct {
	blobs blob.Local

	mu       sync.Mutex
	machines map[hearth.SandboxID]string // and their drivers
	paused   map[hearth.SnapshotID]*hearth.Snapshot
	key      string
	starts   int
	refuse   []error // of the next starts
	pauseErr error
}

func (n *scripted) Start(_ context.Context, req node.StartRequest) (*node.Instance, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.starts++
	if len(n.refuse) > 0 {
		err := n.refuse[0]
		n.refuse = n.refuse[1:]
		if err != nil {
			return nil, err
		}
	}
	n.machines[req.Sandbox.ID] = req.Driver
	return &node.Instance{ID: req.Sandbox.ID}, nil
}

func (n *scripted) Pause(ctx context.Context, id hearth.SandboxID, req node.PauseRequest) (*hearth.Snapshot, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.paused[req.Into]; s != nil {
		return s, nil
	}
	driver, ok := n.machines[id]
	if !ok {
		return nil, hearth.Errorf(hearth.NotFound, "no machine")
	}
	if n.pauseErr != nil {
		return nil, n.pauseErr
	}
	if !req.Forget {
		return nil, errors.New("a template's snapshot must forget")
	}
	key := "snapshots/" + string(req.Into) + "/pages"
	if err := n.blobs.Put(ctx, key, strings.NewReader("pages"), 5); err != nil {
		return nil, err
	}
	delete(n.machines, id)
	s := &hearth.Snapshot{ID: req.Into, Driver: driver, Key: n.key, Memory: true, Created: time.Now(), Files: []hearth.File{{Name: "pages", Blob: key, Bytes: 5}}}
	n.paused[req.Into] = s
	return s, nil
}

func (n *scripted) Stop(_ context.Context, id hearth.SandboxID, _ string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.machines, id)
	return nil
}

func (n *scripted) List(context.Context) ([]*node.Instance, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var list []*node.Instance
	for id := range n.machines {
		list = append(list, &node.Instance{ID: id})
	}
	return list, nil
}

// source writes nothing; the maker below does not ask it to.
type source struct{ key string }

func (s source) Key(context.Context) (string, error) { return s.key, nil }

func (s source) Unpack(context.Context, string, image.Progress) error { return nil }

type maker struct {
	dir string
	err error
	mu  sync.Mutex
	n   int
}

func (m *maker) Key(ctx context.Context, src image.Source) (string, error) { return src.Key(ctx) }

func (m *maker) Sweep(context.Context) error { return nil }

func (m *maker) Make(ctx context.Context, src image.Source, report image.Progress) (image.Image, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.n++
	if m.err != nil {
		return image.Image{}, m.err
	}
	key, _ := src.Key(ctx)
	path := filepath.Join(m.dir, key)
	report(image.Event{Step: "image", Message: "packed", Done: 3 << 20, Unit: "bytes"})
	return image.Image{Path: path, SHA256: fmt.Sprintf("%064s", key)}, os.WriteFile(path, []byte(key), 0o600)
}

// shell is a guest that answers commands by their text.
type shell struct {
	mu      sync.Mutex
	ready   []int // exit statuses of the ready command, the last for ever
	crash   bool  // the start command ends with 3
	started []Command
}

func (g *shell) Run(_ context.Context, c Command, out func(Output)) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.User == "root123" {
		return 0, hearth.Errorf(hearth.Unauthenticated, "unauthenticated: invalid username: 'root123'")
	}
	out(Output{Stream: "stdout", Text: "checking"})
	code := g.ready[0]
	if len(g.ready) > 1 {
		g.ready = g.ready[1:]
	}
	return code, nil
}

func (g *shell) Start(_ context.Context, c Command, out func(Output)) (<-chan int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.started = append(g.started, c)
	ch := make(chan int, 1)
	if g.crash {
		ch <- 3
	}
	out(Output{Stream: "stderr", Text: "listening"})
	return ch, nil
}

// shelfOf removes what lies below snapshots/ID/.
type shelfOf struct{ blobs blob.Local }

func (s shelfOf) Remove(ctx context.Context, id hearth.SnapshotID) error {
	for info, err := range s.blobs.List(ctx, "snapshots/"+string(id)+"/") {
		if err == nil {
			err = s.blobs.Delete(ctx, info.Key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Readable says yes to what has a plain file, and to what was packed.
func (s shelfOf) Readable(ctx context.Context, id hearth.SnapshotID) error {
	_, err := s.blobs.Stat(ctx, "snapshots/"+string(id)+"/pages")
	if err != nil {
		_, err = s.blobs.Stat(ctx, "snapshots/"+string(id)+"/packed")
	}
	return err
}

// Layers compares a file with its name, as maker gives both.
func (s shelfOf) Layers(ctx context.Context, keys []string) (files []string, err error) {
	for _, key := range keys {
		file, err := s.blobs.Path(ctx, key)
		if err != nil {
			return nil, hearth.Wrap(hearth.FailedPrecondition, err, "layer %s is damaged", key)
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if key != layerPrefix+fmt.Sprintf("%064s", content) {
			return nil, hearth.Errorf(hearth.FailedPrecondition, "layer %s is damaged", key)
		}
		files = append(files, file)
	}
	return files, nil
}

type rig struct {
	*Builder
	node  *scripted
	maker *maker
	guest *shell
	rows  *memstore.Store
	blobs blob.Local
}

// newRig runs a builder until the test ends.
func newRig(t *testing.T, change func(*Deps)) *rig {
	t.Helper()
	blobs, err := fileblob.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{
		node:  &scripted{blobs: blobs, machines: map[hearth.SandboxID]string{}, paused: map[hearth.SnapshotID]*hearth.Snapshot{}, key: "key-1"},
		maker: &maker{dir: t.TempDir()}, guest: &shell{ready: []int{0}}, rows: memstore.New(), blobs: blobs,
	}
	if err := r.rows.CreateTeam(t.Context(), &hearth.Team{ID: team, Name: "a", Slug: "a"}); err != nil {
		t.Fatal(err)
	}
	r.Builder = r.again(t, change)
	return r
}

// again is a builder on the same rows, blobs and node, as after a restart.
func (r *rig) again(t *testing.T, change func(*Deps)) *Builder {
	t.Helper()
	deps := Deps{
		Rows: r.rows, Blobs: r.blobs, Shelf: shelfOf{r.blobs}, Node: r.node, Images: r.maker, Daemon: "d1",
		Drivers: []Target{{Driver: "fake", Key: "key-1"}},
		Guest:   func(hearth.SandboxID, string) Guest { return r.guest },
	}
	if change != nil {
		change(&deps)
	}
	b := New(deps)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = b.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return b
}

func recipe() Recipe {
	return Recipe{Name: "web", Source: source{"img1"}, Start: "serve", Ready: "check", Env: map[string]string{"A": "b"}, User: "user"}
}

func (r *rig) keys(t *testing.T, prefix string) (list []string) {
	t.Helper()
	for info, err := range r.blobs.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, info.Key)
	}
	return list
}

func TestEnsure(t *testing.T) {
	r := newRig(t, nil)
	r.guest.ready = []int{1, 7, 0}
	var lines []string
	build, err := r.Ensure(t.Context(), team, recipe(), func(e LogEntry) { lines = append(lines, e.Message) })
	if err != nil {
		t.Fatal(err)
	}
	tpl, got, err := r.rows.ResolveTemplate(t.Context(), team, "web")
	if err != nil || got.ID != build.ID || tpl.Build != build.ID {
		t.Fatalf("resolved %v, %v", got, err)
	}
	snap, err := r.rows.Snapshot(t.Context(), got.Warm["fake"])
	if err != nil || snap.Build != build.ID || snap.Key != "key-1" {
		t.Fatalf("snapshot %+v, %v", snap, err)
	}
	if got.Resources != (hearth.Resources{VCPUs: 2, MemoryMiB: 1024, DiskMiB: 512}) || len(got.Layers) != 1 || got.Env["A"] != "b" {
		t.Errorf("build %+v", got)
	}
	if c := r.guest.started[0]; c.Line != "serve" || c.User != "user" || c.Env["A"] != "b" {
		t.Errorf("start command ran as %+v", c)
	}
	log := strings.Join(lines, "\n")
	for _, want := range []string{
		fmt.Sprintf("Building template %s/%s", tpl.ID, build.ID), "[base] packed, 3 MiB", "Running start command: serve",
		"[start] [stderr]: listening", "Waiting for template to be ready: check", "Template is ready", "Build finished, took ",
	} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %q:\n%s", want, log)
		}
	}
	if len(r.node.machines) != 0 {
		t.Errorf("machines left: %v", r.node.machines)
	}

	again, err := r.Ensure(t.Context(), team, recipe(), nil)
	if err != nil || again.ID != build.ID || r.maker.n != 1 || r.node.starts != 1 {
		t.Errorf("a second Ensure built again: %v %v", again, err)
	}
	if got := r.Logs(build.ID, 2, 1); len(got) != 1 || got[0].Message != lines[2] {
		t.Errorf("Logs(2, 1) = %v", got)
	}
	if got := r.Logs(build.ID, len(lines), 100); len(got) != 0 {
		t.Errorf("Logs past the end = %v", got)
	}
}

func TestWhatNeedsANewBuild(t *testing.T) {
	for _, tc := range []struct {
		name   string
		recipe func(*Recipe)
		deps   func(*Deps)
		before func(*testing.T, *rig, *hearth.Build)
		makes  int // images made in all
		starts int
	}{
		{name: "nothing", makes: 1, starts: 1},
		{name: "another source", recipe: func(r *Recipe) { r.Source = source{"img2"} }, makes: 2, starts: 2},
		{name: "another command", recipe: func(r *Recipe) { r.Start = "serve2" }, makes: 1, starts: 2},
		{name: "more memory", recipe: func(r *Recipe) { r.Resources.MemoryMiB = 2048 }, makes: 1, starts: 2},
		{name: "another driver", deps: func(d *Deps) { d.Drivers[0].Key = "key-2" }, makes: 1, starts: 2},
		{name: "another daemon", deps: func(d *Deps) { d.Daemon = "d2" }, makes: 1, starts: 2},
		{name: "layer lost", makes: 2, starts: 2, before: func(t *testing.T, r *rig, b *hearth.Build) {
			if err := r.blobs.Delete(t.Context(), b.Layers[0]); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "layer damaged, and another daemon", makes: 2, starts: 2, deps: func(d *Deps) { d.Daemon = "d2" },
			before: func(t *testing.T, r *rig, b *hearth.Build) {
				if err := errors.Join(r.blobs.Delete(t.Context(), b.Layers[0]), r.blobs.Put(t.Context(), b.Layers[0], strings.NewReader("img0"), 4)); err != nil {
					t.Fatal(err)
				}
			}},
		{name: "nothing: the snapshot is packed only", makes: 1, starts: 1, before: func(t *testing.T, r *rig, b *hearth.Build) {
			at := "snapshots/" + string(b.Warm["fake"])
			if err := errors.Join(r.blobs.Put(t.Context(), at+"/packed", strings.NewReader(""), 0), r.blobs.Delete(t.Context(), at+"/pages")); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "snapshot lost", makes: 1, starts: 2, before: func(t *testing.T, r *rig, b *hearth.Build) {
			if err := r.blobs.Delete(t.Context(), "snapshots/"+string(b.Warm["fake"])+"/pages"); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, nil)
			first, err := r.Ensure(t.Context(), team, recipe(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if tc.before != nil {
				tc.before(t, r, first)
			}
			b := r.Builder
			if tc.deps != nil {
				b = r.again(t, tc.deps)
				r.node.key = b.deps.Drivers[0].Key
			}
			rec := recipe()
			if tc.recipe != nil {
				tc.recipe(&rec)
			}
			second, err := b.Ensure(t.Context(), team, rec, nil)
			if err != nil {
				t.Fatal(err)
			}
			if r.maker.n != tc.makes || r.node.starts != tc.starts {
				t.Errorf("%d images and %d starts, want %d and %d", r.maker.n, r.node.starts, tc.makes, tc.starts)
			}
			if _, err := (shelfOf{r.blobs}).Layers(t.Context(), second.Layers); err != nil {
				t.Error(err)
			}
			if tpl, _, err := r.rows.ResolveTemplate(t.Context(), team, "web"); err != nil || tpl.Build != second.ID {
				t.Errorf("the template points at %v, %v", tpl, err)
			}
			if tc.name == "another driver" {
				if _, err := r.rows.Snapshot(t.Context(), first.Warm["fake"]); hearth.KindOf(err) != hearth.NotFound {
					t.Errorf("the outdated snapshot is still there: %v", err)
				}
				if got := r.keys(t, "snapshots/"+string(first.Warm["fake"])); len(got) != 0 {
					t.Errorf("files of the outdated snapshot: %v", got)
				}
			}
		})
	}
}

func TestFailures(t *testing.T) {
	for _, tc := range []struct {
		name   string
		set    func(*rig, *Recipe)
		reason string
	}{
		{"image", func(r *rig, _ *Recipe) {
			r.maker.err = hearth.Errorf(hearth.ResourceExhausted, "the disk of /data is full; free some space and try again")
		}, "the disk of /data is full; free some space and try again"},
		{"hidden cause", func(r *rig, _ *Recipe) { r.maker.err = errors.New("secret /path") }, "internal error; the server's log says more"},
		{"boot", func(r *rig, _ *Recipe) {
			r.node.refuse = []error{hearth.Errorf(hearth.FailedPrecondition, "no gVisor")}
		}, "no gVisor"},
		{"start command", func(r *rig, _ *Recipe) { r.guest.crash = true; r.guest.ready = []int{1} }, "start command failed: exit status 3"},
		{"unknown user", func(_ *rig, c *Recipe) { c.User = "root123"; c.Ready = "whoami"; c.Start = "" },
			"failed to run command 'whoami': command failed: unauthenticated: invalid username: 'root123'"},
		{"checkpoint", func(r *rig, _ *Recipe) { r.node.pauseErr = hearth.Errorf(hearth.Internal, "checkpoint failed") }, "checkpoint failed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, nil)
			good, err := r.Ensure(t.Context(), team, recipe(), nil)
			if err != nil {
				t.Fatal(err)
			}
			rec := recipe()
			rec.Source = source{"img2"}
			tc.set(r, &rec)
			bad, err := r.Ensure(t.Context(), team, rec, nil)
			if err == nil || bad == nil || bad.Status != hearth.BuildError || bad.Reason != tc.reason {
				t.Fatalf("build %+v, %v; want the reason %q", bad, err, tc.reason)
			}
			tpl, now, err := r.rows.ResolveTemplate(t.Context(), team, "web")
			if err != nil || tpl.Build != good.ID || now.ID != good.ID {
				t.Errorf("the template moved to %v, %v", tpl, err)
			}
			if len(r.node.machines) != 0 {
				t.Errorf("machines left: %v", r.node.machines)
			}
			if got := r.keys(t, "snapshots/"); len(got) != 1 || !strings.Contains(got[0], string(good.Warm["fake"])) {
				t.Errorf("snapshot files: %v", got)
			}
			logs := r.Logs(bad.ID, 0, 100)
			if last := logs[len(logs)-1]; last.Level != Error || last.Message != "Build failed: "+tc.reason {
				t.Errorf("last entry %+v", last)
			}
		})
	}
}

func TestSweepAfterACrash(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, nil)
	good, err := r.Ensure(ctx, team, recipe(), nil)
	if err != nil {
		t.Fatal(err)
	}
	// A build that died after its checkpoint, before its snapshot had a row; and
	// one that died with its machine running; and a layer nobody has.
	for i, running := range []bool{false, true} {
		b := &hearth.Build{
			ID: hearth.NewBuildID(), Template: good.Template, Status: hearth.BuildBuilding, Source: fmt.Sprint(i),
			Layers: []string{"layers/stray"}, Warm: map[string]hearth.SnapshotID{"fake": hearth.NewSnapshotID()}, CreatedAt: time.Now(),
		}
		if err := r.rows.CreateBuild(ctx, b); err != nil {
			t.Fatal(err)
		}
		r.node.machines[hearth.BuildMachineID(b.ID)] = "fake"
		if !running {
			if _, err := r.node.Pause(ctx, hearth.BuildMachineID(b.ID), node.PauseRequest{Into: b.Warm["fake"], Forget: true}); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.node.machines["i00000000000000000000"] = "fake" // a user's
	if err := r.blobs.Put(ctx, "layers/stray", strings.NewReader("x"), 1); err != nil {
		t.Fatal(err)
	}

	if err := r.again(t, nil).Sweep(ctx, []hearth.TeamID{team}); err != nil {
		t.Fatal(err)
	}
	list, err := r.rows.ListBuilds(ctx, good.Template)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range list {
		if b.ID != good.ID && (b.Status != hearth.BuildError || !strings.Contains(b.Reason, "interrupted")) {
			t.Errorf("build %+v", b)
		}
	}
	if len(r.node.machines) != 1 || r.node.machines["i00000000000000000000"] == "" {
		t.Errorf("machines %v", r.node.machines)
	}
	if got := r.keys(t, "layers/"); len(got) != 1 || got[0] != good.Layers[0] {
		t.Errorf("layers %v", got)
	}
	if got := r.keys(t, "snapshots/"); len(got) != 1 {
		t.Errorf("snapshots %v", got)
	}
	again, err := r.Ensure(ctx, team, recipe(), nil)
	if err != nil || again.ID != good.ID {
		t.Errorf("the good build was not kept: %v, %v", again, err)
	}
}

func TestConcurrentEnsureBuildsOnce(t *testing.T) {
	r := newRig(t, nil)
	var wg sync.WaitGroup
	ids := make([]hearth.BuildID, 8)
	for i := range ids {
		wg.Go(func() {
			b, err := r.Ensure(t.Context(), team, recipe(), nil)
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = b.ID
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Errorf("builds %v", ids)
		}
	}
	if r.maker.n != 1 {
		t.Errorf("%d images made", r.maker.n)
	}
}

func TestStopWhileBuilding(t *testing.T) {
	r := newRig(t, nil)
	r.guest.ready = []int{1} // never
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	b := New(r.deps)
	done := make(chan struct{})
	go func() { defer close(done); _ = b.Run(ctx) }()
	build, err := b.Enqueue(t.Context(), team, recipe())
	if err != nil {
		t.Fatal(err)
	}
	for e := range b.Follow(t.Context(), build.ID) {
		if strings.HasPrefix(e.Message, "Waiting for template") {
			cancel()
		}
	}
	<-done
	if got, err := b.Wait(t.Context(), build.ID); err == nil || !strings.Contains(got.Reason, "interrupted") {
		t.Errorf("build %+v, %v", got, err)
	}
	if len(r.node.machines) != 0 {
		t.Errorf("machines %v", r.node.machines)
	}
}

func TestQueueIsBounded(t *testing.T) {
	r := newRig(t, nil)
	b := New(r.deps) // not running
	for i := range maxQueue + 1 {
		rec := recipe()
		rec.Name = fmt.Sprintf("t%d", i)
		_, err := b.Enqueue(t.Context(), team, rec)
		if want := i == maxQueue; want != (hearth.KindOf(err) == hearth.ResourceExhausted && err != nil) {
			t.Fatalf("enqueue %d: %v", i, err)
		}
	}
}

func TestRecipeIsChecked(t *testing.T) {
	for _, tc := range []struct {
		field  string
		change func(*Recipe)
	}{
		{"name", func(r *Recipe) { r.Name = "Bad Name" }},
		{"name", func(r *Recipe) { r.Name = "" }},
		{"source", func(r *Recipe) { r.Source = nil }},
		{"vcpus", func(r *Recipe) { r.Resources.VCPUs = 33 }},
		{"vcpus", func(r *Recipe) { r.Resources.VCPUs = -1 }},
		{"memory_mib", func(r *Recipe) { r.Resources.MemoryMiB = 64 }},
		{"disk_mib", func(r *Recipe) { r.Resources.DiskMiB = 1 }},
		{"start", func(r *Recipe) { r.Start = "a\nb" }},
		{"ready", func(r *Recipe) { r.Ready = strings.Repeat("x", maxLine+1) }},
		{"user", func(r *Recipe) { r.User = "a b" }},
		{"workdir", func(r *Recipe) { r.Workdir = "relative" }},
		{"env", func(r *Recipe) { r.Env = map[string]string{"A=B": "c"} }},
		{"env", func(r *Recipe) { r.Env = map[string]string{"A": "c\x00"} }},
	} {
		r := recipe()
		tc.change(&r)
		err := r.validate()
		if hearth.KindOf(err) != hearth.InvalidArgument || !strings.HasPrefix(err.Error(), tc.field+":") {
			t.Errorf("%s: %v", tc.field, err)
		}
	}
}

func TestBuiltinRecipes(t *testing.T) {
	names := BuiltinNames()
	if len(names) != 2 {
		t.Fatalf("built-in: %v", names)
	}
	cache := image.NewCache(t.TempDir())
	var packages []string
	for _, n := range names {
		r, err := Builtin(n, cache)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.validate(); err != nil {
			t.Errorf("%s: %v", n, err)
		}
		packages = append(packages, strings.Join(r.Source.(*image.Debian).Packages(), " "))
	}
	if packages[0] != packages[1] {
		t.Errorf("the built-in templates do not share their packages: %v", packages)
	}
	if _, err := Builtin("../base", cache); hearth.KindOf(err) != hearth.NotFound {
		t.Error(err)
	}
}

func TestLogKeepsTheNewest(t *testing.T) {
	r := newRing()
	for i := range 3 * maxEntries {
		r.add(Info, "base", fmt.Sprint(i))
	}
	r.add(Info, "base", strings.Repeat("y", 2*maxMessage))
	list, next, _ := r.read(0, 10*maxEntries)
	if len(list) > maxEntries || len(list) < maxEntries/2 || next != 3*maxEntries+1 {
		t.Errorf("%d entries, next %d", len(list), next)
	}
	if last := list[len(list)-1]; len(last.Message) != maxMessage {
		t.Errorf("last has %d bytes", len(last.Message))
	}
	r.close()
	if _, _, more := r.read(next, 1); more != nil {
		t.Error("a closed log promises more")
	}
}
