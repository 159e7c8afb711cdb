package nodetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"

	"hearth/internal/hearth"
	"hearth/internal/node"
)

type testCase struct {
	name  string
	needs func(*Env) bool
	run   func(ctx context.Context, t *testing.T, e *Env)
}

var cases = []testCase{
	{name: "StartIsIdempotent", run: startIsIdempotent},
	{name: "TwentyStartsMakeOneMachine", run: twentyStarts},
	{name: "GenerationDecides", run: generationDecides},
	{name: "StoppedGenerationStaysStopped", run: stoppedStays},
	{name: "UnknownSandbox", run: unknownSandbox},
	{name: "PauseAndRestoreKeepMemory", run: pauseAndRestore},
	{name: "PauseAgainReturnsTheSameSnapshot", run: pauseAgain},
	{name: "ForgottenSnapshotStartsMany", run: forgottenStartsMany},
	{name: "SnapshotGoesOn", run: snapshotGoesOn},
	{name: "ForksAreTheirOwn", run: forksAreTheirOwn},
	{name: "Revert", run: revert},
	{name: "RevertThatFailsGoesOn", run: revertFails},
	{name: "PauseOfFilesAlone", run: pauseFiles},
	{name: "StopRacingSnapshot", run: stopRacingSnapshot},
	{name: "StopRacingRevert", run: stopRacingRevert},
	{name: "StopRacingStart", run: stopRacingStart},
	{name: "StopRacingPause", run: stopRacingPause},
	{name: "ClosedPortIsRefused", run: closedPort},
	{name: "LoopbackPortIsReached", needs: func(e *Env) bool { return e.Loopback != 0 }, run: loopbackPort},
	{name: "DeathIsAnEvent", needs: func(e *Env) bool { return e.Kill != nil }, run: deathIsAnEvent},
	{name: "UsageStatusAndUpdate", run: usageStatusUpdate},
	{name: "BadRequests", run: badRequests},
}

func startIsIdempotent(ctx context.Context, t *testing.T, e *Env) {
	req := e.Request()
	first := e.start(ctx, t, req)
	e.poke(ctx, t, req, "one")
	if again := e.start(ctx, t, req); !again.StartedAt.Equal(first.StartedAt) {
		t.Fatalf("started at %v, then at %v", first.StartedAt, again.StartedAt)
	}
	e.wantWord(ctx, t, req, "one")
	if _, err := e.Peek(ctx, e.dial(req.Sandbox.ID), "not the token"); err == nil {
		t.Fatal("the daemon answered a wrong token")
	}
}

func twentyStarts(ctx context.Context, t *testing.T, e *Env) {
	req, before := e.Request(), e.Machines()
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if _, err := e.Node.Start(ctx, req); err != nil {
				t.Errorf("Start: %v", err)
			}
		})
	}
	all.Wait()
	if n := e.Machines() - before; n != 1 {
		t.Fatalf("%d machines, want 1", n)
	}
	if list, err := e.Node.List(ctx); err != nil || len(list) != 1 {
		t.Fatalf("List: %v, %v", list, err)
	}
}

func generationDecides(ctx context.Context, t *testing.T, e *Env) {
	req := e.Request()
	req.Sandbox.Generation = 5
	e.start(ctx, t, req)
	e.poke(ctx, t, req, "old")
	older := req
	older.Sandbox.Generation = 4
	_, err := e.Node.Start(ctx, older)
	wantKind(t, "Start of an earlier generation", err, hearth.Aborted)
	e.wantWord(ctx, t, req, "old")
	newer := req
	newer.Sandbox.Generation = 6
	e.start(ctx, t, newer)
	e.wantWord(ctx, t, newer, "")
}

func stoppedStays(ctx context.Context, t *testing.T, e *Env) {
	req := e.Request()
	e.start(ctx, t, req)
	for range 2 { // stopping what is not there is no error
		if err := e.Node.Stop(ctx, req.Sandbox.ID, "test"); err != nil {
			t.Fatal(err)
		}
	}
	_, err := e.Node.Start(ctx, req)
	wantKind(t, "Start of a stopped generation", err, hearth.Aborted)
	req.Sandbox.Generation++
	e.start(ctx, t, req)
}

func unknownSandbox(ctx context.Context, t *testing.T, e *Env) {
	id := hearth.NewSandboxID()
	if err := e.Node.Stop(ctx, id, "test"); err != nil {
		t.Fatalf("Stop: %v", err)
	}
	_, err := e.Node.Pause(ctx, id, node.PauseRequest{Into: hearth.NewSnapshotID()})
	wantKind(t, "Pause", err, hearth.NotFound)
	_, err = e.Node.Dial(ctx, id, 80)
	wantKind(t, "Dial", err, hearth.NotFound)
	_, err = e.Node.Usage(ctx, id)
	wantKind(t, "Usage", err, hearth.NotFound)
	wantKind(t, "Update", e.Node.Update(ctx, id, hearth.Network{}), hearth.NotFound)
}

func pauseAndRestore(ctx context.Context, t *testing.T, e *Env) {
	req := e.Request()
	e.start(ctx, t, req)
	for n := range 10 {
		word := fmt.Sprintf("word %d", n)
		e.poke(ctx, t, req, word)
		snap, err := e.Node.Pause(ctx, req.Sandbox.ID, node.PauseRequest{Into: hearth.NewSnapshotID()})
		if err != nil {
			t.Fatalf("Pause: %v", err)
		}
		if snap.Build != req.Build.ID || len(snap.Files) == 0 || snap.Driver == "" || snap.Key == "" {
			t.Fatalf("Pause: got %+v", snap)
		}
		if list, _ := e.Node.List(ctx); len(list) != 0 {
			t.Fatalf("a paused sandbox has a machine: %v", list)
		}
		req.Restore = snap
		req.Sandbox.Generation++
		e.start(ctx, t, req)
		e.wantWord(ctx, t, req, word)
	}
}

func pauseAgain(ctx context.Context, t *testing.T, e *Env) {
	req := e.Request()
	e.start(ctx, t, req)
	into := node.PauseRequest{Into: hearth.NewSnapshotID()}
	var ids [3]hearth.SnapshotID
	var all sync.WaitGroup
	for i := range ids {
		all.Go(func() {
			snap, err := e.Node.Pause(ctx, req.Sandbox.ID, into)
			if err != nil {
				t.Errorf("Pause: %v", err)
				return
			}
			ids[i] = snap.ID
		})
	}
	all.Wait()
	for _, id := range ids {
		if id != into.Into {
			t.Fatalf("snapshots %v, want %s three times", ids, into.Into)
		}
	}
}

func forgottenStartsMany(ctx context.Context, t *testing.T, e *Env) {
	parent := e.Request()
	e.start(ctx, t, parent)
	e.poke(ctx, t, parent, "template")
	snap, err := e.Node.Pause(ctx, parent.Sandbox.ID, node.PauseRequest{Into: hearth.NewSnapshotID(), Forget: true})
	if err != nil {
		t.Fatalf("Pause: %v", err)
	}
	clones := make([]node.StartRequest, 3)
	for i := range clones {
		clones[i] = e.Request()
		clones[i].Build, clones[i].Restore = parent.Build, snap
		e.start(ctx, t, clones[i])
	}
	for _, c := range clones {
		e.wantWord(ctx, t, c, "template")
		if _, err := e.Peek(ctx, e.dial(c.Sandbox.ID), parent.Token); err == nil {
			t.Fatal("the parent's token opens a clone")
		}
	}
	e.poke(ctx, t, clones[0], "mine")
	e.wantWord(ctx, t, clones[1], "template")
}

func stopRacingStart(ctx context.Context, t *testing.T, e *Env) {
	for range 5 {
		req := e.Request()
		var both sync.WaitGroup
		both.Go(func() { _, _ = e.Node.Start(ctx, req) })
		both.Go(func() { _ = e.Node.Stop(ctx, req.Sandbox.ID, "race") })
		both.Wait()
		if err := e.Node.Stop(ctx, req.Sandbox.ID, "after the race"); err != nil {
			t.Fatal(err)
		}
		if list, _ := e.Node.List(ctx); len(list) != 0 {
			t.Fatalf("a machine rose again: %v", list)
		}
	}
}

func stopRacingPause(ctx context.Context, t *testing.T, e *Env) {
	for range 5 {
		req := e.Request()
		e.start(ctx, t, req)
		var both sync.WaitGroup
		both.Go(func() { _, _ = e.Node.Pause(ctx, req.Sandbox.ID, node.PauseRequest{Into: hearth.NewSnapshotID()}) })
		both.Go(func() {
			if err := e.Node.Stop(ctx, req.Sandbox.ID, "race"); err != nil {
				t.Errorf("Stop: %v", err)
			}
		})
		both.Wait()
		if list, _ := e.Node.List(ctx); len(list) != 0 {
			t.Fatalf("a machine is left: %v", list)
		}
	}
}

func closedPort(ctx context.Context, t *testing.T, e *Env) {
	req := e.Request()
	e.start(ctx, t, req)
	if _, err := e.Node.Dial(ctx, req.Sandbox.ID, e.Closed); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("Dial of a closed port: %v", err)
	}
}

func loopbackPort(ctx context.Context, t *testing.T, e *Env) {
	req := e.Request()
	e.start(ctx, t, req)
	c, err := e.Node.Dial(ctx, req.Sandbox.ID, e.Loopback)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

func deathIsAnEvent(ctx context.Context, t *testing.T, e *Env) {
	events := e.Node.Events(ctx)
	req := e.Request()
	e.start(ctx, t, req)
	if err := e.Kill(req.Sandbox.ID); err != nil {
		t.Fatal(err)
	}
	for ev, err := range events {
		if err != nil {
			t.Fatal(err)
		}
		if ev.ID != req.Sandbox.ID {
			continue
		}
		if ev.State != hearth.Stopped || ev.Reason == "" || ev.Generation != req.Sandbox.Generation {
			t.Fatalf("got %+v", ev)
		}
		if list, _ := e.Node.List(ctx); len(list) != 0 {
			t.Fatalf("a dead sandbox is listed: %v", list)
		}
		return
	}
	t.Fatal("no event")
}

func usageStatusUpdate(ctx context.Context, t *testing.T, e *Env) {
	req := e.Request()
	e.start(ctx, t, req)
	u, err := e.Node.Usage(ctx, req.Sandbox.ID)
	if err != nil || u.Memory <= 0 || u.VCPUs != req.Sandbox.Resources.VCPUs {
		t.Fatalf("Usage: %+v, %v", u, err)
	}
	s, err := e.Node.Status(ctx)
	if err != nil || s.Allocated != req.Sandbox.Resources || s.Total.MemoryMiB <= 0 || len(s.Drivers) == 0 {
		t.Fatalf("Status: %+v, %v", s, err)
	}
	if err := e.Node.Update(ctx, req.Sandbox.ID, hearth.Network{AllowInternet: new(bool)}); err != nil {
		t.Fatalf("Update: %v", err)
	}
}

func badRequests(ctx context.Context, t *testing.T, e *Env) {
	none := e.Request()
	none.Sandbox.ID = ""
	_, err := e.Node.Start(ctx, none)
	wantKind(t, "no ID", err, hearth.InvalidArgument)
	small := e.Request()
	small.Sandbox.Resources.MemoryMiB = 0
	_, err = e.Node.Start(ctx, small)
	wantKind(t, "no memory", err, hearth.InvalidArgument)
	req := e.Request()
	e.start(ctx, t, req)
	_, err = e.Node.Pause(ctx, req.Sandbox.ID, node.PauseRequest{Into: "../x"})
	wantKind(t, "snapshot ID with a path", err, hearth.InvalidArgument)
	foreign := e.Request()
	foreign.Restore = &hearth.Snapshot{ID: hearth.NewSnapshotID(), Build: foreign.Build.ID, Driver: "no such driver"}
	_, err = e.Node.Start(ctx, foreign)
	wantKind(t, "snapshot of another driver", err, hearth.FailedPrecondition)
}
