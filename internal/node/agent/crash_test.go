package agent_test

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"hearth/internal/driver"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/node/agent"
)

// crash kills an agent in the middle of an operation: do is run until it
// reaches op, then the agent is dropped, its call stuck, and a new one is opened
// on the same host and directory. The function that is returned lets go of the
// old one; call it when all has been looked at.
func (w *world) crash(a *agent.Agent, op string, do func()) (b *agent.Agent, bury func()) {
	w.t.Helper()
	reached, tomb := make(chan struct{}), make(chan struct{})
	var once, dead atomic.Bool
	w.on(func(_ context.Context, got string) error {
		if got == op && once.CompareAndSwap(false, true) {
			close(reached)
			<-tomb
			return errBoom
		}
		if dead.Load() { // what the old agent still tries comes to nothing
			return errBoom
		}
		return nil
	})
	var stuck sync.WaitGroup
	stuck.Go(do)
	<-reached
	a.Drop()
	synctest.Wait()
	return w.open(agent.Config{}), func() {
		dead.Store(true)
		close(tomb)
		stuck.Wait()
		a.Close()
	}
}

func TestCrashWhileStarting(t *testing.T) {
	for _, op := range []string{"net.acquire", "net.policy", "driver.start", "guest.init", "guest.init.after"} {
		for _, how := range []string{"boot", "restore", "pool"} {
			if how == "pool" && (op == "net.acquire" || op == "driver.start") {
				continue // not on the way
			}
			t.Run(how+"/"+op, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { crashWhileStarting(t, how, op) })
			})
		}
	}
}

func crashWhileStarting(t *testing.T, how, op string) {
	p := newPooling(t, agent.Config{})
	bystander, req := p.request(), p.request()
	p.start(p.a, bystander)
	p.poke(p.a, bystander, "still here")
	if how != "boot" {
		req.Restore = p.snap
	}
	if how == "pool" {
		p.keep(1)
	}
	p.halt() // no refill gets in between
	b, bury := p.crash(p.a, op, func() { _, _ = p.a.Start(t.Context(), req) })
	p.wantHeld(1)
	p.wantWord(b, bystander, "still here")
	list, err := b.List(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != bystander.Sandbox.ID || list[0].Generation != 1 {
		t.Fatalf("List: %v, %v", list, err)
	}
	p.start(b, req)
	p.shutdown(b)
	bury()
}

func TestCrashWhilePausing(t *testing.T) {
	for _, op := range []string{
		"guest.quiesce", "guest.quiesce.after", "driver.freeze", "driver.checkpoint",
		"blob.adopt", "blob.adopt.after", "blob.put", "blob.put.after",
	} {
		t.Run(op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a := w.open(agent.Config{})
				req := w.request()
				w.start(a, req)
				w.poke(a, req, "precious")
				into := node.PauseRequest{Into: hearth.NewSnapshotID()}
				b, bury := w.crash(a, op, func() { _, _ = a.Pause(t.Context(), req.Sandbox.ID, into) })
				w.wantHeld(1)
				w.wantWord(b, req, "precious")
				if k := w.blobs.keys(); len(k) != 0 {
					t.Fatalf("blobs of a pause that came to nothing: %v", k)
				}
				w.shutdown(b)
				bury()
			})
		})
	}
}

// TestCrashWhileTakingASnapshot: the sandbox goes on, and nothing is left of what
// nobody was told of.
func TestCrashWhileTakingASnapshot(t *testing.T) {
	for _, op := range []string{
		"guest.quiesce", "guest.quiesce.after", "driver.freeze", "driver.checkpoint", "driver.thaw", "guest.init", "guest.init.after",
		"blob.adopt", "blob.adopt.after", "blob.put", "blob.put.after",
	} {
		t.Run(op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a := w.open(agent.Config{})
				req := w.request()
				w.start(a, req)
				w.poke(a, req, "precious")
				into := node.SnapshotRequest{Into: hearth.NewSnapshotID()}
				b, bury := w.crash(a, op, func() { _, _ = a.Snapshot(t.Context(), req.Sandbox.ID, into) })
				w.wantHeld(1)
				w.wantWord(b, req, "precious")
				if k := w.blobs.keys(); len(k) != 0 {
					t.Fatalf("blobs of a snapshot that came to nothing: %v", k)
				}
				if _, err := b.Snapshot(t.Context(), req.Sandbox.ID, into); err != nil {
					t.Fatalf("Snapshot: %v", err)
				}
				w.shutdown(b)
				bury()
			})
		})
	}
}

// TestCrashWhileReverting: one machine is left, the old one or, once it was
// ready, the new one.
func TestCrashWhileReverting(t *testing.T) {
	for op, word := range map[string]string{
		"driver.freeze": "after", "net.acquire": "after", "net.policy": "after", "driver.start": "after",
		"guest.init": "after", "guest.init.after": "after", "driver.close": "before", "net.release": "before",
	} {
		t.Run(op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a := w.open(agent.Config{})
				req := w.request()
				w.start(a, req)
				w.poke(a, req, "before")
				snap, err := a.Snapshot(t.Context(), req.Sandbox.ID, node.SnapshotRequest{Into: hearth.NewSnapshotID()})
				if err != nil {
					t.Fatal(err)
				}
				w.poke(a, req, "after")
				back := req
				back.Sandbox.Generation, back.Restore, back.Revert = 2, snap, true
				b, bury := w.crash(a, op, func() { _, _ = a.Start(t.Context(), back) })
				w.wantHeld(1)
				w.wantWord(b, req, word)
				list, err := b.List(t.Context())
				if want := map[string]int64{"before": 2, "after": 1}[word]; err != nil || len(list) != 1 || list[0].Generation != want {
					t.Fatalf("List: %+v, %v; want generation %d", list, err, want)
				}
				w.start(b, back)
				w.wantWord(b, req, "before")
				w.shutdown(b)
				bury()
			})
		})
	}
}

// TestCrashAfterSnapshot: from its commit on a snapshot is what there is of the sandbox.
func TestCrashAfterSnapshot(t *testing.T) {
	for _, op := range []string{"driver.close", "net.release"} {
		t.Run(op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a := w.open(agent.Config{})
				req := w.request()
				w.start(a, req)
				w.poke(a, req, "precious")
				into := node.PauseRequest{Into: hearth.NewSnapshotID()}
				b, bury := w.crash(a, op, func() { _, _ = a.Pause(t.Context(), req.Sandbox.ID, into) })
				w.wantHeld(0)
				w.wantEvent(b, req.Sandbox.ID, hearth.Paused)
				snap, err := b.Pause(t.Context(), req.Sandbox.ID, into)
				if err != nil {
					t.Fatal(err)
				}
				req.Restore, req.Sandbox.Generation = snap, 2
				w.start(b, req)
				w.wantWord(b, req, "precious")
				w.shutdown(b)
				bury()
			})
		})
	}
}

func TestCrashWhileStopping(t *testing.T) {
	for _, op := range []string{"driver.close", "net.release"} {
		t.Run(op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a := w.open(agent.Config{})
				req := w.request()
				w.start(a, req)
				b, bury := w.crash(a, op, func() { _ = a.Stop(t.Context(), req.Sandbox.ID, "test") })
				if err := b.Stop(t.Context(), req.Sandbox.ID, "again"); err != nil {
					t.Fatal(err)
				}
				w.wantHeld(0)
				w.shutdown(b)
				bury()
			})
		})
	}
}

func TestWhatDiedMeanwhileIsReported(t *testing.T) {
	w := newWorld(t)
	a := w.open(agent.Config{})
	dies, lives := w.request(), w.request()
	w.start(a, dies)
	victim := w.host.Machines()[0]
	w.start(a, lives)
	w.poke(a, lives, "here")
	a.Close()
	if err := w.host.Kill(victim, driver.Exit{Reason: "killed"}); err != nil {
		t.Fatal(err)
	}
	b := w.open(agent.Config{})
	w.wantEvent(b, dies.Sandbox.ID, hearth.Stopped)
	w.wantWord(b, lives, "here")
	w.wantHeld(1)
	w.shutdown(b)
}

// TestStoppedWhileItTakesUp: who stops a node that takes up its sandboxes ends none.
func TestStoppedWhileItTakesUp(t *testing.T) {
	for _, op := range []string{"driver.attach", "net.attach", "net.policy"} {
		t.Run(op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a := w.open(agent.Config{})
				req := w.request()
				w.start(a, req)
				w.poke(a, req, "precious")
				a.Close()
				ctx, stop := context.WithCancel(t.Context())
				w.on(func(ctx context.Context, got string) error {
					if got == op {
						stop()
						return ctx.Err()
					}
					return nil
				})
				b := w.agent(agent.Config{})
				err := b.Open(ctx)
				b.Close()
				w.on(nil)
				c := w.open(agent.Config{})
				if t.Logf("stopped, it says %v", err); ctx.Err() == nil {
					t.Error("it was not stopped")
				}
				w.wantWord(c, req, "precious")
				w.wantHeld(1)
				w.shutdown(c)
			})
		})
	}
}

func write(path, content string) error { return os.WriteFile(path, []byte(content), 0o600) }

// TestTornDirectoryIsSwept opens on what a power cut or an operator may leave.
func TestTornDirectoryIsSwept(t *testing.T) {
	w := newWorld(t)
	w.open(agent.Config{}).Close()
	for name, content := range map[string]string{
		"machines/m1.json": "", "machines/m2.json": `{"version":1`, "machines/m3.json.new": "x",
		"machines/m4.json": `{"version":1,"phase":"running","handle":{"driver":"gone","id":"m4"},"slot":7}`,
		"run/m5":           "x", "run/Not a machine": "x", "restore/m6": "x", "checkpoint/m7": "x",
	} {
		if err := write(w.dir+"/"+name, content); err != nil {
			t.Fatal(err)
		}
	}
	a := w.open(agent.Config{})
	w.wantHeld(0)
	w.shutdown(a)
}

// wantEvent reads events until one of the sandbox, which must be of state s.
func (w *world) wantEvent(a *agent.Agent, id hearth.SandboxID, s hearth.State) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	defer cancel()
	for e, err := range a.Events(ctx) {
		if err != nil {
			w.t.Fatal(err)
		}
		if e.ID == id {
			if e.State != s {
				w.t.Fatalf("got %+v, want state %s", e, s)
			}
			return
		}
	}
	w.t.Fatalf("no event of %s", id)
}
