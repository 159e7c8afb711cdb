package agent_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"hearth/internal/driver"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/node/agent"
)

// reverting takes a sandbox back while the closing of machines hangs. It returns the
// agent with the sandbox's two machines: the new one has it, the old one is closed.
func reverting(w *world) (a *agent.Agent, back node.StartRequest, old string, let func()) {
	w.t.Helper()
	a = w.open(agent.Config{})
	req := w.request()
	w.start(a, req)
	old = w.host.Machines()[0]
	w.poke(a, req, "before")
	snap, err := a.Snapshot(w.t.Context(), req.Sandbox.ID, node.SnapshotRequest{Into: hearth.NewSnapshotID()})
	if err != nil {
		w.t.Fatal(err)
	}
	w.poke(a, req, "after")
	back = req
	back.Sandbox.Generation, back.Restore, back.Revert = 2, snap, true
	gate := make(chan struct{})
	w.on(func(_ context.Context, op string) error {
		if op == "driver.close" {
			<-gate
		}
		return nil
	})
	w.start(a, back)
	if n := len(w.host.Machines()); n != 2 {
		w.t.Fatalf("%d machines while the old one is closed", n)
	}
	return a, back, old, func() {
		w.on(nil)
		close(gate)
	}
}

// TestRevertDoesNotWaitForTheOldMachine: the sandbox is there meanwhile, whatever becomes
// of the old machine; who wants to change it waits.
func TestRevertDoesNotWaitForTheOldMachine(t *testing.T) {
	changes := map[string]func(context.Context, *agent.Agent, node.StartRequest) error{
		"pause": func(ctx context.Context, a *agent.Agent, req node.StartRequest) error {
			_, err := a.Pause(ctx, req.Sandbox.ID, node.PauseRequest{Into: hearth.NewSnapshotID()})
			return err
		},
		"revert": func(ctx context.Context, a *agent.Agent, req node.StartRequest) error {
			req.Sandbox.Generation++
			_, err := a.Start(ctx, req)
			return err
		},
		"stop": func(ctx context.Context, a *agent.Agent, req node.StartRequest) error {
			return a.Stop(ctx, req.Sandbox.ID, "test")
		},
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a, req, old, let := reverting(w)
				if err := w.host.Kill(old, driver.Exit{Reason: "killed"}); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				w.wantWord(a, req, "before")
				if list, err := a.List(t.Context()); err != nil || len(list) != 1 || list[0].Generation != 2 || list[0].State != hearth.Running {
					t.Fatalf("List: %+v, %v", list, err)
				}
				var done atomic.Bool
				go func() {
					defer done.Store(true)
					if err := change(t.Context(), a, req); err != nil {
						t.Error(err)
					}
				}()
				synctest.Wait()
				if done.Load() {
					t.Error("it did not wait for the old machine's end")
				}
				let()
				synctest.Wait()
				if !done.Load() {
					t.Fatal("it waits on")
				}
				w.wantHeld(map[string]int{"revert": 1}[name])
				w.shutdown(a)
			})
		})
	}
}

// TestCloseWaitsForTheOldMachine: the next process finds nothing of it.
func TestCloseWaitsForTheOldMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, req, _, let := reverting(w)
		var closed atomic.Bool
		go func() {
			a.Close()
			closed.Store(true)
		}()
		synctest.Wait()
		if closed.Load() {
			t.Fatal("closed with a machine half gone")
		}
		let()
		synctest.Wait()
		if !closed.Load() {
			t.Fatal("not closed")
		}
		w.wantHeld(1)
		b := w.open(agent.Config{})
		w.wantWord(b, req, "before")
		w.shutdown(b)
	})
}
