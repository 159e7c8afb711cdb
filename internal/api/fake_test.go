package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"hearth/internal/control"
	"hearth/internal/control/archive"
	"hearth/internal/control/history"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/store"
)

const (
	testKey  = "e2b_0123456789abcdef0123456789abcdef01234567"
	otherKey = "e2b_ffffffffffffffffffffffffffffffffffffffff"
)

var (
	testTeam  = hearth.Team{ID: "team1", Name: "First", Slug: "first"}
	otherTeam = hearth.Team{ID: "team2", Name: "Second", Slug: "second"}
	testTime  = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
)

// fakeControl is a control plane in memory, with a clock that ticks a second
// per sandbox.
type fakeControl struct {
	mu    sync.Mutex
	made  int
	boxes map[hearth.SandboxID]*hearth.Sandbox
	fail  error // returned by every call when set
	last  control.CreateRequest
	snaps []*hearth.Snapshot

	filesOnly bool          // a pause without memory was asked for
	block     chan struct{} // when set, Create waits for it or for the context
}

func (f *fakeControl) Create(ctx context.Context, req control.CreateRequest) (*hearth.Sandbox, error) {
	if f.block != nil {
		select {
		case <-f.block:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = req
	if f.fail != nil {
		return nil, f.fail
	}
	if name, tag, tagged := strings.Cut(req.Template, ":"); tagged {
		return nil, hearth.Errorf(hearth.NotFound, "tag '%s' does not exist for template '%s'", tag, name)
	}
	if req.Template != "base" && req.Template != "code-interpreter-v1" {
		return nil, hearth.Errorf(hearth.NotFound, "template '%s' not found", req.Template)
	}
	f.made++
	started := testTime.Add(time.Duration(f.made) * time.Second)
	sb := &hearth.Sandbox{
		ID: hearth.SandboxID(fmt.Sprintf("i%020d", f.made)), Team: req.Team, Template: "tpl00000000000000000", Alias: req.Template,
		State: hearth.Running, Resources: hearth.Resources{VCPUs: 2, MemoryMiB: 512, DiskMiB: 1024},
		Network: req.Network, Env: req.Env, Metadata: req.Metadata, Open: req.Open, OnTimeout: req.OnTimeout,
		AutoResume: req.AutoResume, Timeout: req.Timeout, CreatedAt: started, StartedAt: started, EndsAt: started.Add(req.Timeout),
	}
	f.boxes[sb.ID] = sb
	return copyOf(sb), nil
}

func copyOf(sb *hearth.Sandbox) *hearth.Sandbox { c := *sb; return &c }

func (f *fakeControl) change(team hearth.TeamID, id hearth.SandboxID, do func(*hearth.Sandbox) error) (*hearth.Sandbox, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return nil, f.fail
	}
	sb := f.boxes[id]
	if sb == nil || sb.Team != team {
		return nil, hearth.Errorf(hearth.NotFound, "Sandbox %q doesn't exist or you don't have access to it", id)
	}
	if err := do(sb); err != nil {
		return nil, err
	}
	return copyOf(sb), nil
}

func (f *fakeControl) Sandbox(_ context.Context, team hearth.TeamID, id hearth.SandboxID) (*hearth.Sandbox, error) {
	return f.change(team, id, func(*hearth.Sandbox) error { return nil })
}

func (f *fakeControl) matching(flt store.SandboxFilter) []*hearth.Sandbox {
	var out []*hearth.Sandbox
	for _, sb := range f.boxes {
		ok := (flt.Team == "" || sb.Team == flt.Team) && slices.Contains(flt.States, sb.State) &&
			(flt.Template == "" || flt.Template == sb.Template) && !sb.StartedAt.Before(flt.StartedAfter)
		for k, v := range flt.Metadata {
			got, has := sb.Metadata[k]
			ok = ok && has && got == v
		}
		if ok {
			out = append(out, copyOf(sb))
		}
	}
	slices.SortFunc(out, func(a, b *hearth.Sandbox) int { return b.StartedAt.Compare(a.StartedAt) })
	if flt.OldestFirst {
		slices.Reverse(out)
	}
	return out
}

func (f *fakeControl) List(_ context.Context, flt store.SandboxFilter, p store.Page) ([]*hearth.Sandbox, string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return nil, "", f.fail
	}
	from := 0
	if p.Cursor != "" {
		var err error
		if from, err = strconv.Atoi(p.Cursor); err != nil || from < 0 {
			return nil, "", hearth.Errorf(hearth.InvalidArgument, "bad cursor")
		}
	}
	all := f.matching(flt)
	from = min(from, len(all))
	to := min(from+p.Limit, len(all))
	next := ""
	if to < len(all) {
		next = strconv.Itoa(to)
	}
	return all[from:to], next, nil
}

func (f *fakeControl) Count(_ context.Context, flt store.SandboxFilter) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.matching(flt)), f.fail
}

func (f *fakeControl) Connect(_ context.Context, team hearth.TeamID, id hearth.SandboxID, d time.Duration) (*hearth.Sandbox, bool, error) {
	resumed := false
	sb, err := f.change(team, id, func(sb *hearth.Sandbox) error {
		resumed = sb.State == hearth.Paused
		sb.State, sb.EndsAt = hearth.Running, sb.StartedAt.Add(d)
		return nil
	})
	return sb, resumed, err
}

func (f *fakeControl) Pause(_ context.Context, team hearth.TeamID, id hearth.SandboxID) error {
	_, err := f.change(team, id, func(sb *hearth.Sandbox) error {
		if sb.State == hearth.Paused {
			return hearth.Errorf(hearth.FailedPrecondition, "Error pausing sandbox - sandbox '%s' is already paused", id)
		}
		sb.State = hearth.Paused
		return nil
	})
	return err
}

func (f *fakeControl) Kill(_ context.Context, team hearth.TeamID, id hearth.SandboxID) error {
	_, err := f.change(team, id, func(*hearth.Sandbox) error { delete(f.boxes, id); return nil })
	return err
}

func (f *fakeControl) SetTimeout(_ context.Context, team hearth.TeamID, id hearth.SandboxID, d time.Duration) error {
	_, err := f.change(team, id, func(sb *hearth.Sandbox) error { sb.EndsAt = sb.StartedAt.Add(d); return nil })
	return err
}

func (f *fakeControl) Extend(_ context.Context, team hearth.TeamID, id hearth.SandboxID, d time.Duration) error {
	_, err := f.change(team, id, func(sb *hearth.Sandbox) error {
		if end := sb.StartedAt.Add(d); end.After(sb.EndsAt) {
			sb.EndsAt = end
		}
		return nil
	})
	return err
}

func (f *fakeControl) SetNetwork(_ context.Context, team hearth.TeamID, id hearth.SandboxID, n hearth.Network) error {
	_, err := f.change(team, id, func(sb *hearth.Sandbox) error {
		if sb.State != hearth.Running {
			return hearth.Errorf(hearth.FailedPrecondition, "Sandbox '%s' is not running", id)
		}
		sb.Network = n
		return nil
	})
	return err
}

func (f *fakeControl) Metrics(_ context.Context, team hearth.TeamID, id hearth.SandboxID, _, _ time.Time) ([]node.Usage, error) {
	_, err := f.change(team, id, func(*hearth.Sandbox) error { return nil })
	if err != nil {
		return nil, err
	}
	return []node.Usage{
		{At: testTime, VCPUs: 2, CPUPct: 1.5, Memory: 10 << 20, MemoryMax: 512 << 20, Disk: 1 << 20, DiskMax: 1 << 30},
		{At: testTime.Add(5 * time.Second), VCPUs: 2, CPUPct: 2.5, Memory: 11 << 20, MemoryMax: 512 << 20, Disk: 1 << 20, DiskMax: 1 << 30},
	}, nil
}

// fakeTemplates knows "base" of the test team, "shared" (public) and "hidden"
// of the other one, and "empty", which has no ready build.
type fakeTemplates struct {
	mu     sync.Mutex
	all    map[hearth.TemplateID]*hearth.Template
	builds map[hearth.BuildID]*hearth.Build
	fail   error
}

func newFakeTemplates() *fakeTemplates {
	f := &fakeTemplates{all: map[hearth.TemplateID]*hearth.Template{}, builds: map[hearth.BuildID]*hearth.Build{}}
	add := func(id hearth.TemplateID, team hearth.TeamID, alias string, public bool, status hearth.BuildStatus) {
		t := &hearth.Template{ID: id, Team: team, Aliases: []string{alias}, Public: public, CreatedAt: testTime, UpdatedAt: testTime}
		b := &hearth.Build{
			ID: hearth.BuildID("00000000-0000-4000-8000-0000000000" + string(id[len(id)-2:])), Template: id, Status: status,
			Resources: hearth.Resources{VCPUs: 2, MemoryMiB: 512, DiskMiB: 1024}, CreatedAt: testTime,
		}
		switch status {
		case hearth.BuildReady:
			t.Build, b.FinishedAt = b.ID, testTime.Add(time.Minute)
		case hearth.BuildError:
			b.Reason, b.FinishedAt = "start command failed: exit status 1", testTime.Add(time.Minute)
		}
		f.all[id], f.builds[b.ID] = t, b
	}
	add("tpl00000000000000000", testTeam.ID, "base", false, hearth.BuildReady)
	add("tpl00000000000000001", testTeam.ID, "empty", false, hearth.BuildError)
	add("tpl00000000000000002", otherTeam.ID, "shared", true, hearth.BuildReady)
	add("tpl00000000000000003", otherTeam.ID, "hidden", false, hearth.BuildReady)
	return f
}

func (f *fakeTemplates) ResolveTemplate(_ context.Context, team hearth.TeamID, name string) (*hearth.Template, *hearth.Build, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return nil, nil, f.fail
	}
	for _, t := range f.all {
		if (t.Team == team || t.Public) && (string(t.ID) == name || slices.Contains(t.Aliases, name)) {
			if t.Build == "" {
				return nil, nil, hearth.Errorf(hearth.FailedPrecondition, "template '%s' has no ready build", name)
			}
			return t, f.builds[t.Build], nil
		}
	}
	return nil, nil, hearth.Errorf(hearth.NotFound, "template '%s' not found", name)
}

func (f *fakeTemplates) TemplateByAlias(_ context.Context, team hearth.TeamID, alias string) (*hearth.Template, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return nil, f.fail
	}
	for _, t := range f.all {
		if t.Team == team && slices.Contains(t.Aliases, alias) {
			return t, nil
		}
	}
	return nil, hearth.Errorf(hearth.NotFound, "template '%s' not found", alias)
}

func (f *fakeTemplates) Template(_ context.Context, id hearth.TemplateID) (*hearth.Template, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t := f.all[id]; t != nil {
		return t, f.fail
	}
	return nil, hearth.Errorf(hearth.NotFound, "template '%s' not found", id)
}

func (f *fakeTemplates) ListTemplates(_ context.Context, team hearth.TeamID, p store.Page) ([]*hearth.Template, string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*hearth.Template
	for _, id := range slices.Sorted(maps.Keys(f.all)) {
		if t := f.all[id]; t.Team == team && string(id) > p.Cursor {
			out = append(out, t)
		}
	}
	if len(out) > p.Limit {
		return out[:p.Limit], string(out[p.Limit-1].ID), f.fail
	}
	return out, "", f.fail
}

func (f *fakeTemplates) DeleteTemplate(_ context.Context, id hearth.TemplateID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.all, id)
	return f.fail
}

func (f *fakeTemplates) Build(_ context.Context, id hearth.BuildID) (*hearth.Build, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if b := f.builds[id]; b != nil {
		return b, f.fail
	}
	return nil, hearth.Errorf(hearth.NotFound, "build not found")
}

func (f *fakeTemplates) ListBuilds(_ context.Context, template hearth.TemplateID) ([]*hearth.Build, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*hearth.Build
	for _, b := range f.builds {
		if b.Template == template {
			out = append(out, b)
		}
	}
	return out, f.fail
}

type fakeBuilds []LogEntry

func (f fakeBuilds) Logs(_ hearth.BuildID, offset, limit int) []LogEntry {
	offset = min(offset, len(f))
	return f[offset:min(offset+limit, len(f))]
}

type fakeTokens struct{}

func (fakeTokens) Access(id hearth.SandboxID) string  { return "access-" + string(id) }
func (fakeTokens) Traffic(id hearth.SandboxID) string { return "traffic-" + string(id) }

type fakeKeys struct{ fail error }

func (f fakeKeys) Team(_ context.Context, key string) (*hearth.Team, error) {
	switch {
	case f.fail != nil:
		return nil, f.fail
	case key == testKey:
		return &testTeam, nil
	case key == otherKey:
		return &otherTeam, nil
	}
	return nil, hearth.Errorf(hearth.NotFound, "no such key")
}

// fixture is an API over fakes.
type fixture struct {
	t         testing.TB
	handler   http.Handler
	control   *fakeControl
	templates *fakeTemplates
	log       *strings.Builder
}

func newFixture(t testing.TB, change ...func(*Deps)) *fixture {
	t.Helper()
	f := &fixture{
		t: t, control: &fakeControl{boxes: map[hearth.SandboxID]*hearth.Sandbox{}},
		templates: newFakeTemplates(), log: &strings.Builder{},
	}
	d := Deps{
		Sandboxes: f.control, Templates: f.templates, Tokens: fakeTokens{}, Keys: fakeKeys{}, Parcels: &fakeParcels{}, Differences: fakeDifferences{},
		Builds: fakeBuilds{
			{At: testTime, Level: "info", Message: "Building template"},
			{At: testTime.Add(time.Second), Level: "debug", Step: "base", Message: "[base] unpack"},
			{At: testTime.Add(2 * time.Second), Level: "error", Step: "finalize", Message: "Build failed"},
		},
		Log: slog.New(slog.NewTextHandler(&lockedWriter{w: f.log}, nil)),
	}
	for _, c := range change {
		c(&d)
	}
	h, err := New(d)
	if err != nil {
		t.Fatal(err)
	}
	f.handler = h
	return f
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

// do sends one request with the test key; header pairs override.
func (f *fixture) do(method, target, body string, header ...string) *httptest.ResponseRecorder {
	f.t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req := httptest.NewRequest(method, target, r)
	req.Header.Set("X-API-Key", testKey)
	for i := 0; i < len(header); i += 2 {
		if header[i+1] == "" {
			req.Header.Del(header[i])
		} else {
			req.Header.Set(header[i], header[i+1])
		}
	}
	w := httptest.NewRecorder()
	f.handler.ServeHTTP(w, req)
	return w
}

// create makes a sandbox through the API and returns its ID.
func (f *fixture) create(body string) string {
	f.t.Helper()
	w := f.do("POST", "/v2/sandboxes", body)
	if w.Code != http.StatusCreated {
		f.t.Fatalf("create: %d %s", w.Code, w.Body)
	}
	var sb struct{ SandboxID string }
	if err := json.Unmarshal(w.Body.Bytes(), &sb); err != nil {
		f.t.Fatal(err)
	}
	return sb.SandboxID
}

// want fails unless the answer has the status and, for errors, E2B's body with
// a message that holds every fragment.
func want(t testing.TB, w *httptest.ResponseRecorder, status int, fragments ...string) {
	t.Helper()
	if w.Code != status {
		t.Fatalf("status %d, want %d: %s", w.Code, status, w.Body)
	}
	if status < 400 {
		for _, frag := range fragments {
			if !strings.Contains(w.Body.String(), frag) {
				t.Fatalf("body lacks %q: %s", frag, w.Body)
			}
		}
		return
	}
	var e struct {
		Code    int
		Message string
	}
	if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil {
		t.Fatalf("error body is not JSON: %v: %s", err, w.Body)
	}
	if e.Code != status || e.Message == "" {
		t.Fatalf("error body %s does not repeat status %d with a message", w.Body, status)
	}
	for _, frag := range fragments {
		if !strings.Contains(e.Message, frag) {
			t.Fatalf("message %q lacks %q", e.Message, frag)
		}
	}
}

func (f *fakeControl) PauseFiles(ctx context.Context, team hearth.TeamID, id hearth.SandboxID) error {
	f.filesOnly = true
	return f.Pause(ctx, team, id)
}

func (f *fakeControl) Snapshot(_ context.Context, team hearth.TeamID, id hearth.SandboxID, req control.SnapshotRequest) (*hearth.Snapshot, error) {
	var snap *hearth.Snapshot
	_, err := f.change(team, id, func(sb *hearth.Sandbox) error {
		snap = &hearth.Snapshot{
			ID: hearth.SnapshotID(fmt.Sprintf("s%020d", len(f.snaps))), Sandbox: id, Team: team, Alias: req.Alias, Tag: req.Tag,
			Kind: hearth.KeptSnapshot, Created: testTime, Files: []hearth.File{{Name: "memory", Bytes: 7}},
		}
		if snap.Alias != "" && snap.Tag == "" {
			snap.Tag = "default"
		}
		f.snaps = append(f.snaps, snap)
		return nil
	})
	return snap, err
}

func (f *fakeControl) Snapshots(_ context.Context, flt store.SnapshotFilter, p store.Page) (list []*hearth.Snapshot, next string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	from, _ := strconv.Atoi(p.Cursor)
	for i, s := range f.snaps {
		if i < from || s.Team != flt.Team || flt.Sandbox != "" && s.Sandbox != flt.Sandbox || flt.Alias != "" && s.Alias != flt.Alias {
			continue
		}
		if len(list) == p.Limit {
			return list, strconv.Itoa(i), nil
		}
		list = append(list, s)
	}
	return list, "", nil
}

func (f *fakeControl) DeleteSnapshot(_ context.Context, team hearth.TeamID, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, s := range f.snaps {
		if s.Team == team && (name == string(s.ID) || name == s.Alias && s.Tag == "default" && s.Alias != "" || name == s.Alias+":"+s.Tag) {
			f.snaps = slices.Delete(f.snaps, i, i+1)
			return nil
		}
	}
	return hearth.Errorf(hearth.NotFound, "snapshot '%s' not found", name)
}

func (f *fakeControl) Fork(_ context.Context, team hearth.TeamID, id hearth.SandboxID, _ time.Duration, count int) ([]control.Forked, error) {
	sb, err := f.change(team, id, func(*hearth.Sandbox) error { return nil })
	list := make([]control.Forked, count)
	for i := range list {
		list[i].Sandbox = sb
	}
	list[count-1] = control.Forked{Err: hearth.Errorf(hearth.ResourceExhausted, "no room")}
	return list, err
}

func (f *fakeControl) Rollback(_ context.Context, team hearth.TeamID, id hearth.SandboxID, name string) (*hearth.Sandbox, error) {
	return f.change(team, id, func(sb *hearth.Sandbox) error { sb.Head = hearth.SnapshotID(name); return nil })
}

func (f *fakeControl) Tree(_ context.Context, team hearth.TeamID, id hearth.SandboxID) (*control.Tree, error) {
	sb, err := f.change(team, id, func(*hearth.Sandbox) error { return nil })
	weights := map[hearth.SnapshotID]archive.Weight{"s00000000000000000000": {Whole: 5}} // of the others it is not known
	return &control.Tree{Snapshots: f.snaps, Sandboxes: []*hearth.Sandbox{sb}, Weights: weights}, err
}

func (f *fakeControl) History(_ context.Context, team hearth.TeamID, id hearth.SandboxID) (*control.History, error) {
	_, err := f.change(team, id, func(*hearth.Sandbox) error { return nil })
	if err != nil {
		return nil, err
	}
	step := func(s hearth.Snapshot, parent int64) history.Entry {
		s.Kind, s.Created = hearth.StepSnapshot, testTime
		return history.Entry{Snapshot: &s, Parent: parent}
	}
	return &control.History{Budget: 1 << 30, Bytes: 9, Head: 3, Steps: []history.Entry{
		step(hearth.Snapshot{ID: "s1", Step: 1, Label: "ls", Files: []hearth.File{{Bytes: 1 << 30, Stored: 7}}}, 0),
		step(hearth.Snapshot{ID: "s2", Step: 2, Label: "dd", Status: hearth.SnapshotFailed, Reason: "full"}, 1),
		step(hearth.Snapshot{ID: "s3", Step: 3, Label: "<&>", Files: []hearth.File{{Bytes: 2}}}, 1),
	}}, nil
}

func (f *fakeControl) RollbackTo(_ context.Context, team hearth.TeamID, id hearth.SandboxID, step int64) (*hearth.Sandbox, error) {
	return f.change(team, id, func(sb *hearth.Sandbox) error { sb.Lifecycle.Steps = step; return nil })
}

func (f *fakeControl) KeepStep(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, step int64, req control.SnapshotRequest) (*hearth.Snapshot, error) {
	snap, err := f.Snapshot(ctx, team, id, req)
	if err == nil {
		snap.Step = step
	}
	return snap, err
}
