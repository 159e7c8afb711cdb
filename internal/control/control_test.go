package control_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"hearth/internal/control"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/store"
)

// in runs a test in a bubble, with a world and a server.
func in(t *testing.T, limits control.Limits, test func(t *testing.T, w *world, p *process)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.run(limits)
		test(t, w, p)
		time.Sleep(20 * time.Second)
		for _, wrong := range w.audit(p) {
			t.Error(wrong)
		}
		p.end()
	})
}

func create(t *testing.T, p *process, change ...func(*control.CreateRequest)) *hearth.Sandbox {
	t.Helper()
	req := control.CreateRequest{Team: "t1", Template: "base", Timeout: 5 * time.Minute}
	for _, fn := range change {
		fn(&req)
	}
	sb, err := p.Create(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

func wants(t *testing.T, err error, kind hearth.Kind, msg string) {
	t.Helper()
	if err == nil || hearth.KindOf(err) != kind || !strings.Contains(err.Error(), msg) {
		t.Errorf("error %v, want kind %s and %q", err, kind, msg)
	}
}

func TestCreate(t *testing.T) {
	in(t, control.Limits{}, func(t *testing.T, w *world, p *process) {
		no := false
		req := control.CreateRequest{
			Team: "t1", Template: " Second:default ", Timeout: time.Minute, OnTimeout: hearth.PauseOnTimeout, AutoResume: true,
			Env: map[string]string{"A": "1"}, Metadata: map[string]string{"k": "v"},
			Network: hearth.Network{AllowInternet: &no, PrivateIngress: true},
		}
		sb, err := p.Create(context.Background(), req)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now().UTC()
		want := &hearth.Sandbox{
			Team: "t1", Template: "tpl", Alias: "second", Build: "b1", Driver: "fake", Isolation: hearth.HardwareVM, State: hearth.Running,
			Resources: hearth.Resources{VCPUs: 2, MemoryMiB: 512, DiskMiB: 1024}, Network: req.Network,
			Env: req.Env, Metadata: req.Metadata, OnTimeout: hearth.PauseOnTimeout, AutoResume: true, Timeout: time.Minute,
			CreatedAt: now, StartedAt: now, EndsAt: now.Add(time.Minute), Generation: 2, Launch: 1,
		}
		if diff := cmp.Diff(want, sb, cmpopts.IgnoreFields(hearth.Sandbox{}, "ID", "Node")); diff != "" {
			t.Errorf("created (-want +got):\n%s", diff)
		}
		got, err := p.Sandbox(context.Background(), "t1", sb.ID)
		if err != nil || !cmp.Equal(got, sb) {
			t.Errorf("read: %+v, %v", got, err)
		}
		r, ok := p.Route(sb.ID)
		if !ok || r.Access != "token of "+string(sb.ID) || r.Traffic != "traffic token of "+string(sb.ID) || !r.AutoResume || r.Node != sb.Node {
			t.Errorf("route %+v", r)
		}
		open := create(t, p, func(r *control.CreateRequest) { r.Open = true; r.Template = "tpl" })
		if r, _ := p.Route(open.ID); r.Access != "" || r.Traffic != "" || open.Alias != "base" {
			t.Errorf("open sandbox %+v has the route %+v", open, r)
		}
	})
}

func TestCreateRefused(t *testing.T) {
	long := strings.Repeat("x", 70<<10)
	many := map[string]string{}
	for i := range 2000 {
		many[fmt.Sprint(i)] = ""
	}
	type req = control.CreateRequest
	for name, tc := range map[string]struct {
		change func(*req)
		kind   hearth.Kind
		msg    string
	}{
		"no template":       {func(r *req) { r.Template = "" }, hearth.InvalidArgument, "Invalid template reference"},
		"path":              {func(r *req) { r.Template = "../etc" }, hearth.InvalidArgument, "Invalid template reference"},
		"NUL":               {func(r *req) { r.Template = "a\x00" }, hearth.InvalidArgument, "Invalid template reference"},
		"two slashes":       {func(r *req) { r.Template = "a/b/c" }, hearth.InvalidArgument, "Invalid template reference"},
		"empty tag":         {func(r *req) { r.Template = "base:" }, hearth.InvalidArgument, "Invalid template reference"},
		"long reference":    {func(r *req) { r.Template = long }, hearth.InvalidArgument, "256 bytes"},
		"unknown":           {func(r *req) { r.Template = "nope" }, hearth.NotFound, "template 'nope' not found"},
		"unknown namespace": {func(r *req) { r.Template = "them/base" }, hearth.NotFound, "template 'them/base' not found"},
		"unknown tag":       {func(r *req) { r.Template = "base:v2" }, hearth.NotFound, "tag 'v2' does not exist for template 'base'"},
		"being built":       {func(r *req) { r.Template = "soon" }, hearth.Unavailable, "template 'soon' is being built"},
		"not there yet":     {func(r *req) { r.Template = "arriving" }, hearth.Unavailable, "template 'arriving' has no build yet"},
		"not built":         {func(r *req) { r.Template = "broken" }, hearth.FailedPrecondition, "template 'broken' could not be built: no such package"},
		"no timeout":        {func(r *req) { r.Timeout = 0 }, hearth.InvalidArgument, "Timeout must be greater than 0"},
		"negative timeout":  {func(r *req) { r.Timeout = -1 }, hearth.InvalidArgument, "Timeout must be greater than 0"},
		"long timeout":      {func(r *req) { r.Timeout = 25 * time.Hour }, hearth.InvalidArgument, "Timeout cannot be greater than 24 hours"},
		"odd action":        {func(r *req) { r.OnTimeout = "explode" }, hearth.InvalidArgument, "kill or pause"},
		"metadata count":    {func(r *req) { r.Metadata = many }, hearth.InvalidArgument, "metadata has 2000 entries, at most 128"},
		"metadata value":    {func(r *req) { r.Metadata = map[string]string{"a": long} }, hearth.InvalidArgument, "metadata has a value of 71680 bytes, at most 4096"},
		"metadata text":     {func(r *req) { r.Metadata = map[string]string{"a": "\xff"} }, hearth.InvalidArgument, "metadata is not valid UTF-8"},
		"env count":         {func(r *req) { r.Env = many }, hearth.InvalidArgument, "envVars has 2000 entries, at most 1024"},
		"env name":          {func(r *req) { r.Env = map[string]string{strings.Repeat("n", 300): ""} }, hearth.InvalidArgument, "envVars has a name of 300 bytes, at most 256"},
		"env value":         {func(r *req) { r.Env = map[string]string{"a": long} }, hearth.InvalidArgument, "envVars has a value of 71680 bytes, at most 65536"},
		"env total": {func(r *req) {
			r.Env = map[string]string{"a": long[:60000], "b": long[:60000], "c": long[:60000], "d": long[:60000], "e": long[:60000]}
		}, hearth.InvalidArgument, "envVars has 300005 bytes in all, at most 262144"},
		"env NUL":       {func(r *req) { r.Env = map[string]string{"a": "b\x00c"} }, hearth.InvalidArgument, "envVars holds a NUL byte"},
		"env equals":    {func(r *req) { r.Env = map[string]string{"a=b": "c"} }, hearth.InvalidArgument, "envVars has a name that is empty or has a '='"},
		"env nameless":  {func(r *req) { r.Env = map[string]string{"": "c"} }, hearth.InvalidArgument, "envVars has a name that is empty"},
		"network count": {func(r *req) { r.Network.DenyOut = make([]string, 1001) }, hearth.InvalidArgument, "network.denyOut has 1001 entries, at most 1000"},
		"network text":  {func(r *req) { r.Network.MaskRequestHost = "\x00" }, hearth.InvalidArgument, "NUL"},
		"network entry": {func(r *req) { r.Network.AllowOut = []string{long} }, hearth.InvalidArgument, "network.allowOut has an entry of 71680 bytes, at most 256"},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, control.Limits{}, func(t *testing.T, w *world, p *process) {
				r := req{Team: "t1", Template: "base", Timeout: time.Minute}
				tc.change(&r)
				_, err := p.Create(context.Background(), r)
				wants(t, err, tc.kind, tc.msg)
				if n, err := w.store.CountSandboxes(context.Background(), store.SandboxFilter{}); err != nil || n != 0 {
					t.Errorf("%d rows after a refused create (%v)", n, err)
				}
			})
		})
	}
}

func TestConcurrencyLimit(t *testing.T) {
	in(t, control.Limits{Sandboxes: 3}, func(t *testing.T, w *world, p *process) {
		w.set(func() { w.delay["start"] = time.Second })
		ctx := context.Background()
		var callers sync.WaitGroup
		var mu sync.Mutex
		var made []*hearth.Sandbox
		for range 10 {
			callers.Go(func() {
				sb, err := p.Create(ctx, control.CreateRequest{Team: "t1", Template: "base", Timeout: time.Minute})
				if err != nil {
					wants(t, err, hearth.ResourceExhausted, "you have reached the maximum number of concurrent E2B sandboxes (3)")
					return
				}
				mu.Lock()
				defer mu.Unlock()
				made = append(made, sb)
			})
		}
		callers.Wait()
		if len(made) != 3 {
			t.Fatalf("%d sandboxes were made, want 3", len(made))
		}
		if _, err := p.Create(ctx, control.CreateRequest{Team: "t2", Template: "base", Timeout: time.Minute}); err != nil {
			t.Errorf("another team: %v", err)
		}
		if err := p.Pause(ctx, "t1", made[0].ID); err != nil { // a paused one does not count
			t.Fatal(err)
		}
		fourth := create(t, p)
		_, _, err := p.Connect(ctx, "t1", made[0].ID, time.Minute)
		wants(t, err, hearth.ResourceExhausted, "maximum number")
		if err := p.Kill(ctx, "t1", fourth.ID); err != nil {
			t.Fatal(err)
		}
		if _, resumed, err := p.Connect(ctx, "t1", made[0].ID, time.Minute); err != nil || !resumed {
			t.Errorf("with room again: %v", err)
		}
	})
}

// TestStartFails lets starts fail in each way and looks at what is left.
func TestStartFails(t *testing.T) {
	for _, kind := range []hearth.Kind{
		hearth.Internal, hearth.ResourceExhausted, hearth.Unavailable, hearth.DeadlineExceeded, hearth.FailedPrecondition,
	} {
		in(t, control.Limits{}, func(t *testing.T, w *world, p *process) {
			w.set(func() { w.refuse["start"] = hearth.Errorf(kind, "no luck") })
			_, err := p.Create(context.Background(), control.CreateRequest{Team: "t1", Template: "base", Timeout: time.Minute})
			wants(t, err, kind, "no luck")
			rows, _, err := w.store.ListSandboxes(context.Background(), store.SandboxFilter{}, store.Page{})
			if err != nil || len(rows) != 1 || rows[0].State != hearth.Stopped || rows[0].StopReason != "could not be created: no luck" {
				t.Errorf("%s: rows %+v (%v)", kind, rows, err)
			}
			w.set(func() { clear(w.refuse) })
			create(t, p)
		})
	}
}

// TestWarmRefused makes the warm snapshot unusable: the sandbox boots instead.
func TestWarmRefused(t *testing.T) {
	in(t, control.Limits{}, func(t *testing.T, w *world, p *process) {
		w.set(func() { delete(w.files, "warm") })
		create(t, p)
	})
}

// TestCreateAbandoned has a client that does not wait: no sandbox is left that
// nobody knows.
func TestCreateAbandoned(t *testing.T) {
	in(t, control.Limits{}, func(t *testing.T, w *world, p *process) {
		w.set(func() { w.delay["start"] = time.Minute })
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := p.Create(ctx, control.CreateRequest{Team: "t1", Template: "base", Timeout: time.Hour})
		wants(t, err, hearth.DeadlineExceeded, "")
		synctest.Wait()
		if n := len(p.Live()); n != 0 {
			t.Errorf("%d sandboxes live", n)
		}
	})
}

func TestWords(t *testing.T) {
	in(t, control.Limits{}, func(t *testing.T, w *world, p *process) {
		ctx := context.Background()
		sb := create(t, p)
		const unknown = `doesn't exist or you don't have access to it`
		for _, who := range []struct {
			team hearth.TeamID
			id   hearth.SandboxID
		}{{"t2", sb.ID}, {"t1", "inone"}} {
			_, err := p.Sandbox(ctx, who.team, who.id)
			wants(t, err, hearth.NotFound, fmt.Sprintf("Sandbox %q "+unknown, who.id))
			_, _, err = p.Connect(ctx, who.team, who.id, time.Minute)
			wants(t, err, hearth.NotFound, unknown)
			wants(t, p.Pause(ctx, who.team, who.id), hearth.NotFound, unknown)
			wants(t, p.Kill(ctx, who.team, who.id), hearth.NotFound, unknown)
			wants(t, p.SetTimeout(ctx, who.team, who.id, time.Minute), hearth.NotFound, unknown)
			wants(t, p.Extend(ctx, who.team, who.id, time.Minute), hearth.NotFound, unknown)
			wants(t, p.SetNetwork(ctx, who.team, who.id, hearth.Network{}), hearth.NotFound, unknown)
			_, err = p.Metrics(ctx, who.team, who.id, time.Time{}, time.Time{})
			wants(t, err, hearth.NotFound, unknown)
		}
		_, _, err := p.Connect(ctx, "t1", sb.ID, -time.Second)
		wants(t, err, hearth.InvalidArgument, "negative")
		_, _, err = p.Connect(ctx, "t1", sb.ID, 25*time.Hour)
		wants(t, err, hearth.InvalidArgument, "Timeout cannot be greater than 24 hours")

		if err := p.Pause(ctx, "t1", sb.ID); err != nil {
			t.Fatal(err)
		}
		wants(t, p.Pause(ctx, "t1", sb.ID), hearth.FailedPrecondition, "Error pausing sandbox - sandbox '"+string(sb.ID)+"' is already paused")
		wants(t, p.SetTimeout(ctx, "t1", sb.ID, time.Minute), hearth.FailedPrecondition, "is not running: it is paused")
		wants(t, p.Extend(ctx, "t1", sb.ID, time.Minute), hearth.FailedPrecondition, "is not running: it is paused")
		wants(t, p.SetNetwork(ctx, "t1", sb.ID, hearth.Network{}), hearth.FailedPrecondition, "is not running: it is paused")
		_, _, err = p.Connect(ctx, "t1", sb.ID, 0)
		wants(t, err, hearth.InvalidArgument, "Timeout must be greater than 0")
		paused, err := p.Sandbox(ctx, "t1", sb.ID)
		if err != nil || paused.State != hearth.Paused || !paused.EndsAt.Equal(time.Now()) {
			t.Errorf("paused: %+v, %v", paused, err)
		}
		if err := p.Kill(ctx, "t1", sb.ID); err != nil {
			t.Fatal(err)
		}
		wants(t, p.Kill(ctx, "t1", sb.ID), hearth.NotFound, unknown)

		other := create(t, p)
		w.set(func() { w.refuse["stop"] = hearth.Errorf(hearth.Unavailable, "the node is away") })
		wants(t, p.Kill(ctx, "t1", other.ID), hearth.Unavailable, "the node is away")
		_, err = p.Sandbox(ctx, "t1", other.ID)
		wants(t, err, hearth.NotFound, unknown)
		_, _, err = p.Connect(ctx, "t1", other.ID, time.Minute)
		wants(t, err, hearth.FailedPrecondition, fmt.Sprintf("Sandbox %q is being killed", other.ID))
		wants(t, p.Pause(ctx, "t1", other.ID), hearth.FailedPrecondition, "cannot be paused while in 'killing' state")
		w.set(func() { clear(w.refuse) })
	})
}

func TestTimeouts(t *testing.T) {
	in(t, control.Limits{}, func(t *testing.T, w *world, p *process) {
		ctx := context.Background()
		sb := create(t, p)
		left := func() time.Duration {
			t.Helper()
			got, err := p.Sandbox(ctx, "t1", sb.ID)
			if err != nil {
				t.Fatal(err)
			}
			return time.Until(got.EndsAt)
		}
		for _, tc := range []struct {
			name string
			call func() error
			want time.Duration
		}{
			{"shorter", func() error { return p.SetTimeout(ctx, "t1", sb.ID, time.Minute) }, time.Minute},
			{"extend by less", func() error { return p.Extend(ctx, "t1", sb.ID, 30*time.Second) }, time.Minute},
			{"extend", func() error { return p.Extend(ctx, "t1", sb.ID, 2*time.Minute) }, 2 * time.Minute},
			{"connect for less", func() error { _, _, err := p.Connect(ctx, "t1", sb.ID, time.Minute); return err }, 2 * time.Minute},
			{"connect", func() error { _, _, err := p.Connect(ctx, "t1", sb.ID, time.Hour); return err }, time.Hour},
			{"longest life", func() error { return p.SetTimeout(ctx, "t1", sb.ID, 1000*time.Hour) }, 24 * time.Hour},
		} {
			if err := tc.call(); err != nil {
				t.Errorf("%s: %v", tc.name, err)
			}
			if got := left(); got != tc.want {
				t.Errorf("%s: ends in %s, want %s", tc.name, got, tc.want)
			}
		}
		time.Sleep(10 * time.Hour)
		if err := p.SetTimeout(ctx, "t1", sb.ID, 20*time.Hour); err != nil {
			t.Error(err)
		}
		if got := left(); got != 14*time.Hour {
			t.Errorf("after ten hours it may live for %s more, want 14h", got)
		}
		if err := p.SetTimeout(ctx, "t1", sb.ID, 90*time.Second); err != nil {
			t.Error(err)
		}
		time.Sleep(90*time.Second - time.Nanosecond)
		synctest.Wait()
		if got := left(); got != 1 {
			t.Errorf("a nanosecond before its end: %d", got)
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		row, err := w.store.Sandbox(ctx, sb.ID)
		if err != nil || row.State != hearth.Stopped || row.StopReason != "its timeout was reached" {
			t.Errorf("at its end it is %+v (%v)", row, err)
		}
		now := create(t, p)
		if err := p.SetTimeout(ctx, "t1", now.ID, -time.Hour); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		_, err = p.Sandbox(ctx, "t1", now.ID)
		wants(t, err, hearth.NotFound, "")
	})
}

// TestKillCutsShort kills a sandbox while it is being paused, and while it is
// being resumed.
func TestKillCutsShort(t *testing.T) {
	in(t, control.Limits{}, func(t *testing.T, w *world, p *process) {
		ctx := context.Background()
		for _, during := range []string{"pause", "start"} {
			sb := create(t, p)
			if during == "start" {
				if err := p.Pause(ctx, "t1", sb.ID); err != nil {
					t.Fatal(err)
				}
			}
			w.set(func() { w.delay[during] = 5 * time.Second })
			done := make(chan error, 1)
			go func() {
				if during == "pause" {
					done <- p.Pause(ctx, "t1", sb.ID)
					return
				}
				_, _, err := p.Connect(ctx, "t1", sb.ID, time.Minute)
				done <- err
			}()
			time.Sleep(time.Second)
			if err := p.Kill(ctx, "t1", sb.ID); err != nil {
				t.Errorf("kill during %s: %v", during, err)
			}
			<-done
			_, err := p.Sandbox(ctx, "t1", sb.ID)
			wants(t, err, hearth.NotFound, "")
			w.set(func() { clear(w.delay) })
		}
	})
}

// TestKillCutsSnapshotsShort: a sandbox whose daemon lets a snapshot wait does not
// live on for that when it is killed.
func TestKillCutsSnapshotsShort(t *testing.T) {
	in(t, control.Limits{}, func(t *testing.T, w *world, p *process) {
		ctx := context.Background()
		sb := create(t, p)
		w.set(func() { w.delay["snapshot"] = time.Minute })
		var calls sync.WaitGroup
		calls.Go(func() {
			if _, err := p.Snapshot(ctx, "t1", sb.ID, control.SnapshotRequest{}); err == nil {
				t.Error("there is a snapshot of a machine that is gone")
			}
		})
		time.Sleep(time.Second)
		calls.Go(func() {
			if err := p.Kill(ctx, "t1", sb.ID); err != nil {
				t.Errorf("kill: %v", err)
			}
		})
		time.Sleep(time.Second)
		w.set(func() {
			for node, machines := range w.machines {
				if machines[sb.ID] != nil {
					t.Errorf("a second after the kill the machine runs on %s", node)
				}
			}
		})
		calls.Wait()
		_, err := p.Sandbox(ctx, "t1", sb.ID)
		wants(t, err, hearth.NotFound, "")
		w.set(func() { clear(w.delay) })
	})
}

// TestJoin pauses from two callers, one of which goes away, and connects while
// the pause goes on.
func TestJoin(t *testing.T) {
	in(t, control.Limits{}, func(t *testing.T, w *world, p *process) {
		sb := create(t, p)
		w.set(func() { w.delay["pause"] = 5 * time.Second })
		var callers sync.WaitGroup
		callers.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			wants(t, p.Pause(ctx, "t1", sb.ID), hearth.DeadlineExceeded, "took too long")
		})
		callers.Go(func() {
			if err := p.Pause(context.Background(), "t1", sb.ID); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(2 * time.Second)
		got, resumed, err := p.Connect(context.Background(), "t1", sb.ID, time.Minute)
		if err != nil || !resumed || got.State != hearth.Running {
			t.Errorf("connect during a pause: %+v, %v, %v", got, resumed, err)
		}
		callers.Wait()
	})
}

func TestRoutes(t *testing.T) {
	in(t, control.Limits{}, func(t *testing.T, w *world, p *process) {
		ctx := context.Background()
		var mu sync.Mutex
		var seen []hearth.State
		cancel := p.Subscribe(func(r control.Route) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, r.State)
		})
		sb := create(t, p)
		first, _ := p.Route(sb.ID)
		select {
		case <-first.Gone:
			t.Error("gone while it runs")
		default:
		}
		n := hearth.Network{DenyOut: []string{"0.0.0.0/0"}}
		if err := p.SetNetwork(ctx, "t1", sb.ID, n); err != nil {
			t.Fatal(err)
		}
		var inForce hearth.Network
		w.set(func() { inForce = w.policies[sb.ID] })
		if r, _ := p.Route(sb.ID); r.Gone != first.Gone || !cmp.Equal(r.Network, n) || !cmp.Equal(inForce, n) {
			t.Errorf("after a new policy the route is %+v", r)
		}
		if err := p.Pause(ctx, "t1", sb.ID); err != nil {
			t.Fatal(err)
		}
		<-first.Gone
		if r, ok := p.Route(sb.ID); !ok || r.State != hearth.Paused || r.Gone != nil || r.Node != "" {
			t.Errorf("paused, the route is %+v", r)
		}
		if _, _, err := p.Connect(ctx, "t1", sb.ID, time.Minute); err != nil {
			t.Fatal(err)
		}
		second, _ := p.Route(sb.ID)
		if second.Launch <= first.Launch || second.Gone == first.Gone {
			t.Errorf("resumed, the route is %+v", second)
		}
		w.die(sb.ID, "out of memory")
		<-second.Gone
		synctest.Wait()
		if _, ok := p.Route(sb.ID); ok {
			t.Error("a dead sandbox has a route")
		}
		row, err := w.store.Sandbox(ctx, sb.ID)
		if err != nil || row.StopReason != "out of memory" {
			t.Errorf("dead: %+v (%v)", row, err)
		}
		cancel()
		create(t, p)
		want := []hearth.State{hearth.Running, hearth.Running, hearth.Pausing, hearth.Paused, hearth.Resuming, hearth.Running, hearth.Stopping, hearth.Stopped}
		mu.Lock()
		defer mu.Unlock()
		if diff := cmp.Diff(want, seen); diff != "" {
			t.Errorf("states told (-want +got):\n%s", diff)
		}
	})
}

// TestNetworkFails lets the node refuse a policy: the old one is in force.
func TestNetworkFails(t *testing.T) {
	in(t, control.Limits{}, func(t *testing.T, w *world, p *process) {
		ctx := context.Background()
		sb := create(t, p)
		p.arm(3, fails) // the write, after the lookup and the update
		p.arm(4, fails)
		p.arm(5, fails)
		p.arm(6, fails)
		err := p.SetNetwork(ctx, "t1", sb.ID, hearth.Network{DenyOut: []string{"1.2.3.4"}})
		wants(t, err, hearth.Unavailable, "injected")
		if r, _ := p.Route(sb.ID); len(r.Network.DenyOut) != 0 || len(w.policies[sb.ID].DenyOut) != 0 {
			t.Errorf("route %+v, in force %+v", r.Network, w.policies[sb.ID])
		}
		wants(t, p.SetNetwork(ctx, "t1", sb.ID, hearth.Network{AllowOut: []string{"\xff"}}), hearth.InvalidArgument, "network")
	})
}

func TestCount(t *testing.T) {
	in(t, control.Limits{}, func(t *testing.T, w *world, p *process) {
		ctx := context.Background()
		first := create(t, p)
		create(t, p, func(r *control.CreateRequest) { r.Metadata = map[string]string{"a": "b"} })
		if err := p.Pause(ctx, "t1", first.ID); err != nil {
			t.Fatal(err)
		}
		for _, f := range []store.SandboxFilter{
			{}, {Team: "t1"}, {Team: "t2"}, {Team: "t1", States: []hearth.State{hearth.Running}},
			{Team: "t1", States: []hearth.State{hearth.Running, hearth.Paused, hearth.Running}},
			{Team: "t1", States: []hearth.State{hearth.Running}, Metadata: map[string]string{"a": "b"}},
		} {
			want, err := w.store.CountSandboxes(ctx, f)
			if err != nil {
				t.Fatal(err)
			}
			got, err := p.Count(ctx, f)
			if err != nil || got != want {
				t.Errorf("%+v: %d (%v), want %d", f, got, err, want)
			}
			list, next, err := p.List(ctx, f, store.Page{})
			if err != nil || next != "" || len(list) != want {
				t.Errorf("%+v: %d rows, next %q (%v), want %d", f, len(list), next, err, want)
			}
		}
	})
}

func TestMetrics(t *testing.T) {
	in(t, control.Limits{}, func(t *testing.T, w *world, p *process) {
		ctx := context.Background()
		sb := create(t, p, func(r *control.CreateRequest) { r.Timeout = 3 * time.Hour })
		time.Sleep(2*time.Minute + time.Second)
		all, err := p.Metrics(ctx, "t1", sb.ID, time.Time{}, time.Time{})
		if err != nil || len(all) != 24 {
			t.Errorf("%d samples in two minutes (%v), want 24", len(all), err)
		}
		some, err := p.Metrics(ctx, "t1", sb.ID, all[3].At, all[5].At)
		if err != nil || len(some) != 3 {
			t.Errorf("%d samples between two of them (%v), want 3", len(some), err)
		}
		_, err = p.Metrics(ctx, "t1", sb.ID, time.Now(), time.Now().Add(-time.Second))
		wants(t, err, hearth.InvalidArgument, "start must not be after end")
		time.Sleep(2 * time.Hour)
		all, err = p.Metrics(ctx, "t1", sb.ID, time.Time{}, time.Time{})
		if err != nil || len(all) < 119 || len(all) > 121 {
			t.Errorf("%d samples of a longer range (%v), want one per half minute of the last hour", len(all), err)
		}
	})
}

// TestMissedDeath loses the event of a death: the next sample tells.
func TestMissedDeath(t *testing.T) {
	in(t, control.Limits{}, func(t *testing.T, w *world, p *process) {
		sb := create(t, p)
		w.mu.Lock()
		for _, machines := range w.machines {
			delete(machines, sb.ID)
		}
		w.mu.Unlock()
		time.Sleep(15 * time.Second)
		synctest.Wait()
		_, err := p.Sandbox(context.Background(), "t1", sb.ID)
		wants(t, err, hearth.NotFound, "")
	})
}

// TestLostEvents tells the server that it has missed something, or breaks its
// connection to the node.
func TestLostEvents(t *testing.T) {
	for _, how := range []string{"lost", "broken"} {
		in(t, control.Limits{}, func(t *testing.T, w *world, p *process) {
			sb, other := create(t, p), create(t, p)
			w.set(func() {
				delete(w.machines[sb.Node], sb.ID)
				for _, ch := range w.events {
					ch <- node.Event{Reason: how}
				}
			})
			time.Sleep(time.Second)
			synctest.Wait()
			_, err := p.Sandbox(context.Background(), "t1", sb.ID)
			wants(t, err, hearth.NotFound, "")
			w.die(other.ID, "crashed") // events still come
			synctest.Wait()
			_, err = p.Sandbox(context.Background(), "t1", other.ID)
			wants(t, err, hearth.NotFound, "")
		})
	}
}

// TestStrays starts a server beside machines that it knows nothing of.
func TestStrays(t *testing.T) {
	in(t, control.Limits{}, func(t *testing.T, w *world, p *process) {
		sb := create(t, p)
		w.mu.Lock()
		m := *w.machines[sb.Node][sb.ID]
		other := hearth.NodeID("n1")
		if sb.Node == other {
			other = "n2"
		}
		w.machines[other][sb.ID] = &m // a second machine of a sandbox
		lost := m
		lost.ID = "ilost"
		w.machines["n1"]["ilost"] = &lost
		w.mu.Unlock()
		if err := p.Reconcile(context.Background()); err != nil {
			t.Fatal(err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.machines[other])+len(w.machines[sb.Node]) != 1 || w.machines[sb.Node][sb.ID] == nil {
			t.Errorf("machines left: %v", w.machines)
		}
	})
}

func TestPurge(t *testing.T) {
	in(t, control.Limits{}, func(t *testing.T, w *world, p *process) {
		sb := create(t, p)
		if err := p.Kill(context.Background(), "t1", sb.ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(59 * time.Minute)
		if _, err := w.store.Sandbox(context.Background(), sb.ID); err != nil {
			t.Errorf("forgotten too early: %v", err)
		}
		time.Sleep(12 * time.Minute)
		_, err := w.store.Sandbox(context.Background(), sb.ID)
		wants(t, err, hearth.NotFound, "")
	})
}
