package agent_test

import (
	"context"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/node/agent"
)

// TestFullDiskMakesRoom lets checkpoints fail on a full disk: once, where plain files
// of a packed snapshot can go, they are tried again; where none can, the error says
// why and the sandbox runs on.
func TestFullDiskMakesRoom(t *testing.T) {
	for name, checkpoint := range map[string]func(*agent.Agent, context.Context, hearth.SandboxID) (*hearth.Snapshot, error){
		"pause": func(a *agent.Agent, ctx context.Context, id hearth.SandboxID) (*hearth.Snapshot, error) {
			return a.Pause(ctx, id, node.PauseRequest{Into: hearth.NewSnapshotID()})
		},
		"snapshot": func(a *agent.Agent, ctx context.Context, id hearth.SandboxID) (*hearth.Snapshot, error) {
			return a.Snapshot(ctx, id, node.SnapshotRequest{Into: hearth.NewSnapshotID()})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.pack()
				w.cache = 1 << 30
				a := w.open(agent.Config{})
				w.warm(a)
				if err := w.shelf.Tidy(t.Context()); err != nil {
					t.Fatal(err)
				}
				plain := func() int {
					return len(slices.DeleteFunc(w.blobs.keys(), func(k string) bool { return !strings.HasSuffix(k, "guest.json") }))
				}
				if n := plain(); n != 1 {
					t.Fatalf("%d plain files before: %q", n, w.blobs.keys())
				}
				req := w.request()
				w.start(a, req)
				w.poke(a, req, "precious")
				left := 1
				w.on(func(_ context.Context, op string) error {
					if op == "driver.checkpoint" && left > 0 {
						left--
						return syscall.ENOSPC
					}
					return nil
				})
				snap, err := checkpoint(a, t.Context(), req.Sandbox.ID)
				if err != nil || snap == nil {
					t.Fatalf("with room to make: %v", err)
				}
				if name == "pause" {
					req.Restore, req.Sandbox.Generation = snap, 2
					w.start(a, req)
				}
				w.wantWord(a, req, "precious")

				left = 100
				_, err = checkpoint(a, t.Context(), req.Sandbox.ID)
				if hearth.KindOf(err) != hearth.ResourceExhausted || !strings.Contains(err.Error(), "disk is full") || left != 99 {
					t.Fatalf("without: %v after %d tries", err, 100-left)
				}
				w.wantWord(a, req, "precious")
				w.wantHeld(1)
				w.shutdown(a)
			})
		})
	}
}

// TestRollbackOnAFullDisk: the sandbox goes on where it was, the error says why, and
// with room the same rollback succeeds.
func TestRollbackOnAFullDisk(t *testing.T) {
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
		w.on(func(_ context.Context, op string) error {
			if op == "driver.start" {
				return syscall.ENOSPC
			}
			return nil
		})
		back := req
		back.Sandbox.Generation, back.Restore, back.Revert = 2, snap, true
		_, err = a.Start(t.Context(), back)
		if hearth.KindOf(err) != hearth.ResourceExhausted || !strings.Contains(err.Error(), "disk is full") {
			t.Errorf("the rollback: %v", err)
		}
		w.wantWord(a, req, "after")
		w.wantHeld(1)
		w.on(nil)
		w.start(a, back)
		w.wantWord(a, req, "before")
		w.shutdown(a)
	})
}
