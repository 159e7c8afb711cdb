package nodetest

import (
	"context"
	"sync"
	"testing"

	"hearth/internal/hearth"
	"hearth/internal/node"
)

// snapshot takes a snapshot that has to work.
func (e *Env) snapshot(ctx context.Context, t *testing.T, req node.StartRequest) *hearth.Snapshot {
	t.Helper()
	into := node.SnapshotRequest{Into: hearth.NewSnapshotID()}
	snap, err := e.Node.Snapshot(ctx, req.Sandbox.ID, into)
	if err != nil {
		t.Fatalf("Snapshot: %v", err)
	}
	if snap.ID != into.Into || snap.Sandbox != req.Sandbox.ID || snap.Build != req.Build.ID ||
		snap.Resources != req.Sandbox.Resources || len(snap.Files) == 0 {
		t.Fatalf("Snapshot: got %+v", snap)
	}
	again, err := e.Node.Snapshot(ctx, req.Sandbox.ID, into)
	if err != nil || again.ID != snap.ID || !again.Created.Equal(snap.Created) {
		t.Fatalf("asked again: %+v, %v", again, err)
	}
	return snap
}

// snapshotGoesOn: the sandbox is the same machine afterwards, and each snapshot
// is the moment at which it was taken.
func snapshotGoesOn(ctx context.Context, t *testing.T, e *Env) {
	req := e.Request()
	e.start(ctx, t, req)
	snaps := map[string]*hearth.Snapshot{}
	for _, word := range []string{"first", "second"} {
		e.poke(ctx, t, req, word)
		snaps[word] = e.snapshot(ctx, t, req)
		e.wantWord(ctx, t, req, word)
	}
	if n := e.Machines(); n != 1 {
		t.Fatalf("%d machines", n)
	}
	for word, snap := range snaps {
		other := e.Request()
		other.Build, other.Restore = req.Build, snap
		e.start(ctx, t, other)
		e.wantWord(ctx, t, other, word)
	}
	_, err := e.Node.Snapshot(ctx, req.Sandbox.ID, node.SnapshotRequest{Into: "../x"})
	wantKind(t, "snapshot ID with a path", err, hearth.InvalidArgument)
	_, err = e.Node.Snapshot(ctx, hearth.NewSandboxID(), node.SnapshotRequest{Into: hearth.NewSnapshotID()})
	wantKind(t, "unknown sandbox", err, hearth.NotFound)
	_, err = e.Node.Snapshot(ctx, hearth.NewSandboxID(), node.SnapshotRequest{Into: snaps["first"].ID})
	wantKind(t, "snapshot of another sandbox", err, hearth.AlreadyExists)
}

// forksAreTheirOwn: sandboxes started from a snapshot of a living one share
// nothing with it that opens or changes it.
func forksAreTheirOwn(ctx context.Context, t *testing.T, e *Env) {
	parent := e.Request()
	e.start(ctx, t, parent)
	e.poke(ctx, t, parent, "parent's")
	snap := e.snapshot(ctx, t, parent)
	forks := make([]node.StartRequest, 3)
	var all sync.WaitGroup
	for i := range forks {
		forks[i] = e.Request()
		forks[i].Build, forks[i].Restore = parent.Build, snap
		all.Go(func() {
			if _, err := e.Node.Start(ctx, forks[i]); err != nil {
				t.Errorf("Start: %v", err)
			}
		})
	}
	all.Wait()
	for _, f := range forks {
		e.wantWord(ctx, t, f, "parent's")
		if _, err := e.Peek(ctx, e.dial(f.Sandbox.ID), parent.Token); err == nil {
			t.Fatal("the parent's token opens a fork")
		}
		if _, err := e.Peek(ctx, e.dial(parent.Sandbox.ID), f.Token); err == nil {
			t.Fatal("a fork's token opens its parent")
		}
		e.poke(ctx, t, f, "of "+string(f.Sandbox.ID))
	}
	e.wantWord(ctx, t, parent, "parent's")
	for _, f := range forks { // and they can be paused, forked and resumed like any other
		e.wantWord(ctx, t, f, "of "+string(f.Sandbox.ID))
		paused, err := e.Node.Pause(ctx, f.Sandbox.ID, node.PauseRequest{Into: hearth.NewSnapshotID()})
		if err != nil {
			t.Fatalf("Pause: %v", err)
		}
		f.Restore, f.Sandbox.Generation = paused, 2
		e.start(ctx, t, f)
		e.wantWord(ctx, t, f, "of "+string(f.Sandbox.ID))
	}
}

func revert(ctx context.Context, t *testing.T, e *Env) {
	req := e.Request()
	e.start(ctx, t, req)
	e.poke(ctx, t, req, "before")
	snap := e.snapshot(ctx, t, req)
	for gen := int64(2); gen < 5; gen++ {
		e.poke(ctx, t, req, "after")
		req.Sandbox.Generation, req.Restore, req.Revert = gen, snap, true
		e.start(ctx, t, req)
		e.wantWord(ctx, t, req, "before")
		e.start(ctx, t, req) // asked again
		if n := e.Machines(); n != 1 {
			t.Fatalf("%d machines after a revert", n)
		}
	}
	stranger := e.Request()
	stranger.Restore, stranger.Revert = snap, true
	_, err := e.Node.Start(ctx, stranger)
	wantKind(t, "revert of a sandbox that does not run", err, hearth.NotFound)
}

func revertFails(ctx context.Context, t *testing.T, e *Env) {
	req := e.Request()
	e.start(ctx, t, req)
	e.poke(ctx, t, req, "before")
	snap := e.snapshot(ctx, t, req)
	e.poke(ctx, t, req, "after")
	back := req
	wrong := *snap
	wrong.Key = "of another build"
	back.Sandbox.Generation, back.Restore, back.Revert = 2, &wrong, true
	_, err := e.Node.Start(ctx, back)
	wantKind(t, "snapshot of another build", err, hearth.FailedPrecondition)
	e.wantWord(ctx, t, req, "after")
	list, err := e.Node.List(ctx)
	if err != nil || len(list) != 1 || list[0].Generation != 1 || list[0].State != hearth.Running {
		t.Fatalf("List: %v, %v", list, err)
	}
	back.Sandbox.Generation, back.Restore = 3, snap
	e.start(ctx, t, back)
	e.wantWord(ctx, t, back, "before")
}

func stopRacingSnapshot(ctx context.Context, t *testing.T, e *Env) {
	for range 5 {
		req := e.Request()
		e.start(ctx, t, req)
		race(ctx, t, e, req, func() {
			_, _ = e.Node.Snapshot(ctx, req.Sandbox.ID, node.SnapshotRequest{Into: hearth.NewSnapshotID()})
		})
	}
}

func stopRacingRevert(ctx context.Context, t *testing.T, e *Env) {
	for range 5 {
		req := e.Request()
		e.start(ctx, t, req)
		snap := e.snapshot(ctx, t, req)
		back := req
		back.Sandbox.Generation, back.Restore, back.Revert = 2, snap, true
		race(ctx, t, e, req, func() { _, _ = e.Node.Start(ctx, back) })
	}
}

// race runs do beside a Stop, which must leave nothing.
func race(ctx context.Context, t *testing.T, e *Env, req node.StartRequest, do func()) {
	t.Helper()
	var both sync.WaitGroup
	both.Go(do)
	both.Go(func() {
		if err := e.Node.Stop(ctx, req.Sandbox.ID, "race"); err != nil {
			t.Errorf("Stop: %v", err)
		}
	})
	both.Wait()
	if err := e.Node.Stop(ctx, req.Sandbox.ID, "after the race"); err != nil {
		t.Fatal(err)
	}
	if list, _ := e.Node.List(ctx); len(list) != 0 {
		t.Fatalf("a machine is left: %v", list)
	}
}

// pauseFiles: after a pause of the files alone the guest boots, its daemon knows
// nobody, and the sandbox is the same to its owner.
func pauseFiles(ctx context.Context, t *testing.T, e *Env) {
	req := e.Request()
	e.start(ctx, t, req)
	for range 3 {
		e.poke(ctx, t, req, "in memory")
		snap, err := e.Node.Pause(ctx, req.Sandbox.ID, node.PauseRequest{Into: hearth.NewSnapshotID(), FilesOnly: true})
		if hearth.KindOf(err) == hearth.FailedPrecondition {
			e.wantWord(ctx, t, req, "in memory")
			t.Skip("the driver cannot keep files without memory")
		}
		if err != nil || snap.Memory || len(snap.Files) == 0 {
			t.Fatalf("Pause: %+v, %v", snap, err)
		}
		req.Restore = snap
		req.Sandbox.Generation++
		e.start(ctx, t, req)
		e.wantWord(ctx, t, req, "")
		if _, err := e.Peek(ctx, e.dial(req.Sandbox.ID), "another token"); err == nil {
			t.Fatal("another token opens a sandbox that has booted again")
		}
	}
}
