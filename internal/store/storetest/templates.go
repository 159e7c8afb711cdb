package storetest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"hearth/internal/hearth"
	"hearth/internal/store"
)

func template(id string, aliases ...string) *hearth.Template {
	return &hearth.Template{ID: hearth.TemplateID(id), Team: "t1", Aliases: aliases, CreatedAt: epoch, UpdatedAt: epoch}
}

func build(id, tpl string) *hearth.Build {
	return &hearth.Build{
		ID: hearth.BuildID(id), Template: hearth.TemplateID(tpl), Status: hearth.BuildWaiting, Source: "key",
		Resources: hearth.Resources{VCPUs: 2, MemoryMiB: 1024, DiskMiB: 512},
		Layers:    []string{"layers/a", "layers/b"}, Driver: "qemu", Warm: map[string]hearth.SnapshotID{"gvisor": "s1", "qemu": "s2"}, Start: "serve &", Ready: "check", Env: map[string]string{"PATH": "/bin"},
		User: "user", Workdir: "/code", CreatedAt: epoch,
	}
}

func templateRoundTrip(t *testing.T, s store.Store) {
	ctx := context.Background()
	want := template("tpl1", "zeta", "alpha")
	want.Public = true
	ok(t, s.CreateTemplate(ctx, want))
	got, err := s.Template(ctx, "tpl1")
	ok(t, err)
	same(t, "template", got, want)
	got, err = s.TemplateByAlias(ctx, "t1", "alpha")
	ok(t, err)
	same(t, "template by alias", got, want)
	_, err = s.TemplateByAlias(ctx, "t2", "alpha")
	fails(t, err, hearth.NotFound)
	_, err = s.Template(ctx, "alpha")
	fails(t, err, hearth.NotFound)

	fails(t, s.CreateTemplate(ctx, template("tpl1")), hearth.AlreadyExists)
	fails(t, s.CreateTemplate(ctx, template("tpl2", "fresh", "alpha")), hearth.AlreadyExists)
	_, err = s.Template(ctx, "tpl2")
	fails(t, err, hearth.NotFound)
	_, err = s.TemplateByAlias(ctx, "t1", "fresh")
	fails(t, err, hearth.NotFound)
	fails(t, s.CreateTemplate(ctx, template("tpl2", "a\x00")), hearth.InvalidArgument)
	other := template("tpl2", "alpha")
	other.Team = "t2"
	ok(t, s.CreateTemplate(ctx, other))
}

func templateResolve(t *testing.T, s store.Store) {
	ctx := context.Background()
	ok(t, s.CreateTeam(ctx, &hearth.Team{ID: "t1", Slug: "one"}))
	ok(t, s.CreateTeam(ctx, &hearth.Team{ID: "t2", Slug: "two"}))
	add := func(id string, team hearth.TeamID, public, built bool, age time.Duration, aliases ...string) {
		tpl := template(id, aliases...)
		tpl.Team, tpl.Public, tpl.CreatedAt = team, public, epoch.Add(-age)
		ok(t, s.CreateTemplate(ctx, tpl))
		if built {
			b := build("b-"+id, id)
			ok(t, s.CreateBuild(ctx, b))
			b.Status = hearth.BuildReady
			ok(t, s.FinishBuild(ctx, b))
		}
	}
	add("mine", "t1", false, true, 0, "base", "own")
	add("theirs", "t2", true, true, 0, "base", "shared")
	add("older", "t3", true, true, time.Hour, "shared")
	add("secret", "t2", false, true, 0, "hidden")
	add("unbuilt", "t1", false, false, 0, "soon")
	add("decoy", "t2", true, true, 0, "mine") // an alias that is another's ID
	for _, tc := range []struct {
		team hearth.TeamID
		name string
		want hearth.TemplateID
		kind hearth.Kind
	}{
		{"t1", "base", "mine", ""},
		{"t1", "own", "mine", ""},
		{"t1", "mine", "mine", ""},
		{"t2", "base", "theirs", ""},
		{"t2", "own", "", hearth.NotFound},
		{"t2", "mine", "decoy", ""}, // the ID is private
		{"t1", "theirs", "theirs", ""},
		{"t1", "shared", "older", ""},
		{"t2", "shared", "theirs", ""},
		{"t1", "hidden", "", hearth.NotFound},
		{"t1", "secret", "", hearth.NotFound},
		{"t1", "two/base", "theirs", ""},
		{"t1", "two/hidden", "", hearth.NotFound},
		{"t2", "two/hidden", "secret", ""},
		{"t1", "one/base", "mine", ""},
		{"t1", "nobody/base", "", hearth.NotFound},
		{"t1", "soon", "unbuilt", hearth.FailedPrecondition},
		{"t1", "", "", hearth.NotFound},
		{"t1", "base' OR '1'='1", "", hearth.NotFound},
	} {
		tpl, b, err := s.ResolveTemplate(ctx, tc.team, tc.name)
		if tc.kind != "" {
			fails(t, err, tc.kind)
		} else {
			ok(t, err)
			same(t, tc.name+": build", b.ID, hearth.BuildID("b-"+string(tc.want)))
			same(t, tc.name+": template's build", tpl.Build, b.ID)
		}
		if tc.want != "" && (tpl == nil || tpl.ID != tc.want) {
			t.Errorf("%s asks for %q: template %v, want %s", tc.team, tc.name, tpl, tc.want)
		}
	}
}

func templateList(t *testing.T, s store.Store) {
	ctx := context.Background()
	var want []hearth.TemplateID
	for i := range 25 {
		tpl := template(fmt.Sprintf("tpl%02d", i), fmt.Sprintf("b%d", i), fmt.Sprintf("a%d", i))
		tpl.CreatedAt = epoch.Add(time.Duration(i/2) * time.Second)
		ok(t, s.CreateTemplate(ctx, tpl))
		want = append([]hearth.TemplateID{tpl.ID}, want...)
	}
	other := template("zz", "b1")
	other.Team = "t2"
	ok(t, s.CreateTemplate(ctx, other))
	var got []hearth.TemplateID
	p := store.Page{Limit: 4}
	for {
		list, next, err := s.ListTemplates(ctx, "t1", p)
		ok(t, err)
		for _, tpl := range list {
			got = append(got, tpl.ID)
			same(t, "aliases", len(tpl.Aliases), 2)
		}
		if next == "" {
			break
		}
		p.Cursor = next
	}
	same(t, "templates, newest first", got, want)
	_, _, err := s.ListTemplates(ctx, "t1", store.Page{Cursor: "nonsense"})
	fails(t, err, hearth.InvalidArgument)
}

func templateDelete(t *testing.T, s store.Store) {
	ctx := context.Background()
	ok(t, s.CreateTemplate(ctx, template("tpl1", "base")))
	ok(t, s.CreateBuild(ctx, build("b1", "tpl1")))
	ok(t, s.DeleteTemplate(ctx, "tpl1"))
	fails(t, s.DeleteTemplate(ctx, "tpl1"), hearth.NotFound)
	_, err := s.Build(ctx, "b1")
	fails(t, err, hearth.NotFound)
	ok(t, s.CreateTemplate(ctx, template("tpl2", "base"))) // the name is free again
}

func buildLife(t *testing.T, s store.Store) {
	ctx := context.Background()
	fails(t, s.CreateBuild(ctx, build("b1", "tpl1")), hearth.NotFound)
	ok(t, s.CreateTemplate(ctx, template("tpl1", "base")))
	want := build("b1", "tpl1")
	ok(t, s.CreateBuild(ctx, want))
	fails(t, s.CreateBuild(ctx, want), hearth.AlreadyExists)
	got, err := s.Build(ctx, "b1")
	ok(t, err)
	same(t, "build", got, want)

	got.Warm["gvisor"] = "changed"
	got, err = s.Build(ctx, "b1")
	ok(t, err)
	same(t, "build after the copy changed", got, want)

	want.Status, want.Layers, want.Warm, want.Env = hearth.BuildBuilding, []string{"layers/c"}, nil, nil
	want.Driver, want.Start, want.Ready = "", "", "again"
	changed := *want
	changed.Template, changed.CreatedAt = "elsewhere", epoch.Add(time.Hour) // not the caller's to change
	ok(t, s.UpdateBuild(ctx, &changed))
	got, err = s.Build(ctx, "b1")
	ok(t, err)
	same(t, "updated build", got, want)
	fails(t, s.UpdateBuild(ctx, build("b9", "tpl1")), hearth.NotFound)
	changed.Status = hearth.BuildReady
	fails(t, s.UpdateBuild(ctx, &changed), hearth.InvalidArgument)

	later := build("b0", "tpl1")
	later.CreatedAt = epoch.Add(time.Second)
	ok(t, s.CreateBuild(ctx, later))
	list, err := s.ListBuilds(ctx, "tpl1")
	ok(t, err)
	same(t, "builds, newest first", list, []*hearth.Build{later, want})
	list, err = s.ListBuilds(ctx, "tpl9")
	ok(t, err)
	same(t, "builds of nothing", len(list), 0)
}

func buildFinish(t *testing.T, s store.Store) {
	ctx := context.Background()
	ok(t, s.CreateTemplate(ctx, template("tpl1", "base")))
	finish := func(id string, created time.Duration, status hearth.BuildStatus) *hearth.Build {
		b := build(id, "tpl1")
		b.CreatedAt = epoch.Add(created)
		ok(t, s.CreateBuild(ctx, b))
		b.Status, b.Reason, b.FinishedAt = status, "why", epoch.Add(time.Hour)
		ok(t, s.FinishBuild(ctx, b))
		got, err := s.Build(ctx, b.ID)
		ok(t, err)
		same(t, "finished build", got, b)
		return b
	}
	points := func(want hearth.BuildID) {
		t.Helper()
		tpl, err := s.Template(ctx, "tpl1")
		ok(t, err)
		same(t, "the template's build", tpl.Build, want)
	}
	finish("b1", 0, hearth.BuildError)
	points("")
	b2 := finish("b2", 2*time.Second, hearth.BuildReady)
	points("b2")
	tpl, err := s.Template(ctx, "tpl1")
	ok(t, err)
	same(t, "updated at", tpl.UpdatedAt, epoch.Add(time.Hour))
	finish("b3", 3*time.Second, hearth.BuildError)
	points("b2")
	finish("b4", time.Second, hearth.BuildReady) // asked for before b2, ready after it
	points("b2")
	finish("b5", 4*time.Second, hearth.BuildReady)
	points("b5")

	fails(t, s.FinishBuild(ctx, b2), hearth.FailedPrecondition)
	b2.Status = hearth.BuildBuilding
	fails(t, s.UpdateBuild(ctx, b2), hearth.FailedPrecondition)
	fails(t, s.FinishBuild(ctx, b2), hearth.InvalidArgument)
	missing := build("b9", "tpl1")
	missing.Status = hearth.BuildReady
	fails(t, s.FinishBuild(ctx, missing), hearth.NotFound)
	points("b5")
}

// buildConcurrentFinish finishes one build from many goroutines: one succeeds.
func buildConcurrentFinish(t *testing.T, s store.Store) {
	ctx := context.Background()
	ok(t, s.CreateTemplate(ctx, template("tpl1", "base")))
	ok(t, s.CreateBuild(ctx, build("b1", "tpl1")))
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for i := range 8 {
		wg.Go(func() {
			b := build("b1", "tpl1")
			b.Status, b.Warm = hearth.BuildReady, map[string]hearth.SnapshotID{"gvisor": hearth.SnapshotID(fmt.Sprint(i))}
			if err := s.FinishBuild(ctx, b); err == nil {
				mu.Lock()
				won++
				mu.Unlock()
			} else if hearth.KindOf(err) != hearth.FailedPrecondition {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	same(t, "goroutines that finished the build", won, 1)
}
