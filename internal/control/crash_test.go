package control_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/control"
	"hearth/internal/hearth"
	"hearth/internal/store"
)

// step is a call that changes a sandbox, with what has to be before it.
type step struct {
	name  string
	setup []string // actions on the one sandbox, without faults
	act   string
	want  hearth.State // when nothing goes wrong
}

func everyStep() []step {
	return []step{
		{"create", nil, "create", hearth.Running},
		{"pause", []string{"create"}, "pause", hearth.Paused},
		{"resume", []string{"create", "pause"}, "connect", hearth.Running},
		{"second pause", []string{"create", "pause", "connect"}, "pause", hearth.Paused},
		{"kill", []string{"create"}, "kill", hearth.Stopped},
		{"kill paused", []string{"create", "pause"}, "kill", hearth.Stopped},
		{"network", []string{"create"}, "network", hearth.Running},
		{"timeout", []string{"create"}, "wait", hearth.Stopped},
		{"pause at timeout", []string{"create paused on timeout"}, "wait", hearth.Paused},
		{"pause by idleness", []string{"create idle"}, "rest", hearth.Paused},
		{"death", []string{"create"}, "die", hearth.Stopped},
		{"snapshot", []string{"create"}, "snapshot", hearth.Running},
		{"second snapshot", []string{"create", "snapshot"}, "snapshot", hearth.Running},
		{"delete snapshot", []string{"create", "snapshot"}, "delete snapshot", hearth.Running},
		{"delete snapshot of a dead sandbox", []string{"create", "snapshot", "kill"}, "delete snapshot", hearth.Stopped},
		{"create from snapshot", []string{"create", "snapshot"}, "create from snapshot", hearth.Running},
		{"fork", []string{"create"}, "fork", hearth.Running},
		{"fork paused", []string{"create", "pause"}, "fork", ""},
		{"kill a fork", []string{"create", "fork"}, "kill", ""},
		{"rollback", []string{"create", "snapshot"}, "rollback", hearth.Running},
		{"rollback of a resumed one", []string{"create", "snapshot", "pause", "connect"}, "rollback", hearth.Running},
		{"step", []string{"create with history"}, "step", hearth.Running},
		{"step that thins", []string{"create with history", "many steps"}, "step", hearth.Running},
		{"step after a rollback", []string{"create with history", "step", "step", "rollback to step"}, "step", hearth.Running},
		{"rollback to a step", []string{"create with history", "step", "step"}, "rollback to step", hearth.Running},
		{"kill with a history", []string{"create with history", "step", "snapshot", "step", "rollback to step"}, "kill", hearth.Stopped},
		{"kill what another was made from", []string{"create with history", "step", "create from snapshot"}, "kill", ""},
		{"kill with snapshots", []string{"create", "snapshot", "rollback"}, "kill", hearth.Stopped},
	}
}

// TestEveryFault lets every single call of every step go wrong in every way,
// and every one after a crash a second time in the recovery.
func TestEveryFault(t *testing.T) {
	for _, s := range everyStep() {
		t.Run(s.name, func(t *testing.T) {
			calls := 0
			synctest.Test(t, func(t *testing.T) { calls = try(t, s, 0, 0, 0) })
			if calls == 0 {
				t.Fatal("the step calls nothing")
			}
			for n := 1; n <= calls+4; n++ {
				for f := range faultKinds {
					synctest.Test(t, func(t *testing.T) { try(t, s, n, f, 0) })
				}
				for again := 1; again <= 6; again++ {
					synctest.Test(t, func(t *testing.T) { try(t, s, n, diesAfter, again) })
				}
			}
		})
	}
}

// try runs a step whose n-th call goes wrong, and again-th call of the recovery
// after a crash; 0 is none. It returns how many calls the step made.
func try(t *testing.T, s step, n int, f fault, again int) (calls int) {
	w := newWorld(t)
	p := w.run(quick)
	a := action{secs: 40}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, a.what = range s.setup {
		act(ctx, w, p, a)
	}
	synctest.Wait()
	p.mu.Lock()
	before := p.calls
	p.mu.Unlock()
	if n > 0 {
		p.arm(n, f)
	}
	a.what = s.act
	act(ctx, w, p, a)
	synctest.Wait()
	p.mu.Lock()
	calls = p.calls - before
	p.mu.Unlock()
	if again > 0 && p.isDead() {
		p.kill()
		p = w.run(quick)
		p.arm(again, diesAfter)
		synctest.Wait()
	}
	if !p.isDead() {
		time.Sleep(15 * time.Second)
		synctest.Wait()
	}
	if p.isDead() {
		p.kill()
		p = w.run(quick)
		time.Sleep(15 * time.Second)
		synctest.Wait()
	}
	for _, wrong := range w.audit(p) {
		t.Errorf("%s with fault %d at call %d, %d after the crash: %s", s.name, f, n, again, wrong)
	}
	rows, _, err := w.store.ListSandboxes(ctx, store.SandboxFilter{}, store.Page{})
	if err != nil {
		t.Fatal(err)
	}
	if n == 0 && s.want != "" && (len(rows) == 0 || slices.ContainsFunc(rows, func(sb *hearth.Sandbox) bool { return sb.State != s.want })) {
		t.Errorf("%s leads to %+v, want state %s", s.name, rows, s.want)
	}
	p.end()
	return calls
}

// TestStorm lets many callers loose on few sandboxes, with faults, and looks at
// what is left.
func TestStorm(t *testing.T) {
	for seed := range 20 {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.set(func() {
				w.delay = map[string]time.Duration{"start": 30 * time.Millisecond, "pause": 200 * time.Millisecond, "snapshot": 150 * time.Millisecond, "stop": 5 * time.Millisecond, "list": time.Millisecond}
			})
			p := w.run(quick)
			ctx := context.Background()
			for range 3 {
				act(ctx, w, p, action{what: "create", secs: 100})
			}
			var callers sync.WaitGroup
			whats := []string{"pause", "connect", "kill", "timeout", "extend", "network", "die", "connect", "pause", "create",
				"snapshot", "fork", "rollback", "delete snapshot", "create from snapshot", "rollback", "create with history", "step", "step"}
			for i := range 12 {
				callers.Go(func() {
					for k := range 8 {
						x := seed*7 + i*5 + k*3
						ctx, cancel := context.WithTimeout(ctx, time.Duration(x%9+1)*100*time.Millisecond)
						act(ctx, w, p, action{what: whats[x%len(whats)], who: i + k, secs: 60 + x%9})
						cancel()
						if x%4 == 0 {
							p.arm(x%5+1, []fault{fails, losesRace, silent}[x%3])
						}
					}
				})
			}
			callers.Wait()
			p.disarm()
			time.Sleep(30 * time.Second)
			for _, wrong := range w.audit(p) {
				t.Errorf("seed %d: %s", seed, wrong)
			}
			p.end()
		})
	}
}

// TestOneResume connects to a paused sandbox from many callers at once: one
// machine is started, everyone gets it, for as long as the longest asked.
func TestOneResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.run(control.Limits{})
		ctx := context.Background()
		sb, err := p.Create(ctx, control.CreateRequest{Team: "t1", Template: "base", Timeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Pause(ctx, "t1", sb.ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) // paused sandboxes do not end
		w.set(func() { w.delay["start"] = time.Second })
		before := w.starts
		var callers sync.WaitGroup
		for i := range 10 {
			callers.Go(func() {
				got, _, err := p.Connect(ctx, "t1", sb.ID, time.Duration(i+1)*time.Minute)
				if err != nil || got.State != hearth.Running {
					t.Errorf("caller %d: %+v, error %v", i, got, err)
				}
			})
		}
		callers.Wait()
		if w.starts != before+1 {
			t.Errorf("%d machines were started, want 1", w.starts-before)
		}
		got, err := p.Sandbox(ctx, "t1", sb.ID)
		if err != nil {
			t.Fatal(err)
		}
		if left := time.Until(got.EndsAt); left != 10*time.Minute {
			t.Errorf("it ends in %s, want 10m", left)
		}
		if got.Launch <= sb.Launch {
			t.Errorf("launch %d after %d", got.Launch, sb.Launch)
		}
		p.end()
	})
}

// TestConnectAfterACrash connects to a sandbox that the server died pausing, resuming
// or taking back: nobody is told to try again, and it does not wait for the next look
// at what is unclear.
func TestConnectAfterACrash(t *testing.T) {
	for name, cut := range map[string]struct {
		op string
		do func(context.Context, *process, hearth.SandboxID, hearth.SnapshotID) error
	}{
		"pause": {"pause", func(ctx context.Context, p *process, id hearth.SandboxID, _ hearth.SnapshotID) error {
			return p.Pause(ctx, "t1", id)
		}},
		"resume": {"start", func(ctx context.Context, p *process, id hearth.SandboxID, _ hearth.SnapshotID) error {
			err := p.Pause(ctx, "t1", id)
			if err == nil {
				_, _, err = p.Connect(ctx, "t1", id, time.Minute)
			}
			return err
		}},
		"rollback": {"start", func(ctx context.Context, p *process, id hearth.SandboxID, snap hearth.SnapshotID) error {
			_, err := p.Rollback(ctx, "t1", id, string(snap))
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				p := w.run(control.Limits{})
				ctx := context.Background()
				sb, err := p.Create(ctx, control.CreateRequest{Team: "t1", Template: "base", Timeout: time.Hour})
				if err != nil {
					t.Fatal(err)
				}
				snap, err := p.Snapshot(ctx, "t1", sb.ID, control.SnapshotRequest{})
				if err != nil {
					t.Fatal(err)
				}
				w.set(func() { w.delay[cut.op] = time.Second })
				called := make(chan struct{})
				go func() {
					defer close(called)
					_ = cut.do(ctx, p, sb.ID, snap.ID)
				}()
				time.Sleep(500 * time.Millisecond)
				p.kill()
				<-called
				w.set(func() { clear(w.delay) })
				p = w.run(control.Limits{})
				began := time.Now()
				got, _, err := p.Connect(ctx, "t1", sb.ID, time.Minute)
				if err != nil || got.State != hearth.Running {
					t.Errorf("%+v, %v", got, err)
				}
				if took := time.Since(began); took > 100*time.Millisecond {
					t.Errorf("it took %s", took)
				}
				for _, wrong := range w.audit(p) {
					t.Error(wrong)
				}
				p.end()
			})
		})
	}
}

// TestNodeAway starts a server while its node does not answer: nothing is
// stopped, and all is settled when the node is back.
func TestNodeAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.run(control.Limits{})
		ctx := context.Background()
		var ids []hearth.SandboxID
		for range 3 {
			sb, err := p.Create(ctx, control.CreateRequest{Team: "t1", Template: "base", Timeout: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, sb.ID)
		}
		p.kill()
		for _, machines := range w.machines { // one died meanwhile
			delete(machines, ids[0])
		}
		w.set(func() { w.refuse["list"] = hearth.Errorf(hearth.Unavailable, "away") })
		p = w.run(control.Limits{})
		time.Sleep(time.Minute)
		for _, id := range ids {
			if sb, err := p.Sandbox(ctx, "t1", id); err != nil || sb.State != hearth.Running {
				t.Errorf("%s while its node is away: %+v, %v", id, sb, err)
			}
		}
		w.set(func() { clear(w.refuse) })
		time.Sleep(time.Minute)
		for _, wrong := range w.audit(p) {
			t.Error(wrong)
		}
		if n := len(p.Live()); n != 2 {
			t.Errorf("%d sandboxes live, want 2", n)
		}
		p.end()
	})
}

// TestTimeoutsThatPassed stops the server, lets time pass, and starts it again.
func TestTimeoutsThatPassed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.run(control.Limits{})
		ctx := context.Background()
		var got []hearth.SandboxID
		for i, action := range []hearth.TimeoutAction{hearth.KillOnTimeout, hearth.PauseOnTimeout, hearth.KillOnTimeout} {
			sb, err := p.Create(ctx, control.CreateRequest{Team: "t1", Template: "base", OnTimeout: action, Timeout: time.Duration(i*i+1) * time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, sb.ID)
		}
		p.kill()
		time.Sleep(3 * time.Minute)
		p = w.run(control.Limits{})
		time.Sleep(time.Second)
		synctest.Wait()
		for i, want := range []hearth.State{hearth.Stopped, hearth.Paused, hearth.Running} {
			sb, err := w.store.Sandbox(ctx, got[i])
			if err != nil || sb.State != want {
				t.Errorf("sandbox %d is %+v (%v), want %s", i, sb, err, want)
			}
		}
		p.end()
	})
}

// TestCannotPause lets every pause at a timeout fail for an hour: the sandbox runs
// on and is paused then. It ends where a pause can never be.
func TestCannotPause(t *testing.T) {
	for kind, want := range map[hearth.Kind]hearth.State{hearth.Internal: hearth.Paused, hearth.Unimplemented: hearth.Stopped} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			p := w.run(control.Limits{})
			ctx := context.Background()
			sb, err := p.Create(ctx, control.CreateRequest{Team: "t1", Template: "base", OnTimeout: hearth.PauseOnTimeout, Timeout: time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			w.set(func() { w.refuse["pause"] = hearth.Errorf(kind, "the disk is full") })
			time.Sleep(time.Hour)
			now, err := w.store.Sandbox(ctx, sb.ID)
			if err != nil || (now.State == hearth.Running) != (want == hearth.Paused) {
				t.Errorf("%s: an hour later it is %+v (%v)", kind, now, err)
			}
			w.set(func() { delete(w.refuse, "pause") })
			time.Sleep(time.Minute)
			synctest.Wait()
			if now, err = w.store.Sandbox(ctx, sb.ID); err != nil || now.State != want {
				t.Errorf("%s: in the end it is %+v (%v)", kind, now, err)
			}
			if reason := "its timeout was reached and it could not be paused: Error pausing sandbox - the disk is full"; want == hearth.Stopped && now.StopReason != reason {
				t.Errorf("reason %q, want %q", now.StopReason, reason)
			}
			for _, wrong := range w.audit(p) {
				t.Error(wrong)
			}
			p.end()
		})
	}
}
