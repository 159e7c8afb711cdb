package control_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/control"
	"hearth/internal/control/wish"
	"hearth/internal/hearth"
)

// operation is one thing that a caller does to the one sandbox of a pair, or to its
// snapshot. An import is none: what comes in is nobody's (package travel).
type operation struct {
	name string
	do   func(ctx context.Context, p *process, id hearth.SandboxID, snap hearth.SnapshotID) error
	ends hearth.State // in which it leaves a running sandbox
}

func operations() []operation {
	return []operation{
		{"pause", func(ctx context.Context, p *process, id hearth.SandboxID, _ hearth.SnapshotID) error {
			return p.Pause(ctx, "t1", id)
		}, hearth.Paused},
		{"pause of files", func(ctx context.Context, p *process, id hearth.SandboxID, _ hearth.SnapshotID) error {
			return p.PauseFiles(ctx, "t1", id)
		}, hearth.Paused},
		{"connect", func(ctx context.Context, p *process, id hearth.SandboxID, _ hearth.SnapshotID) error {
			_, _, err := p.Connect(ctx, "t1", id, time.Minute)
			return err
		}, hearth.Running},
		{"wake", func(ctx context.Context, p *process, id hearth.SandboxID, _ hearth.SnapshotID) error {
			_, err := p.Wake(ctx, id)
			return err
		}, hearth.Running},
		{"snapshot", func(ctx context.Context, p *process, id hearth.SandboxID, _ hearth.SnapshotID) error {
			_, err := p.Snapshot(ctx, "t1", id, control.SnapshotRequest{})
			return err
		}, hearth.Running},
		{"fork", func(ctx context.Context, p *process, id hearth.SandboxID, _ hearth.SnapshotID) error {
			list, err := p.Fork(ctx, "t1", id, time.Minute, 1)
			for _, f := range list {
				err = errors.Join(err, f.Err)
			}
			return err
		}, hearth.Running},
		{"rollback", func(ctx context.Context, p *process, id hearth.SandboxID, snap hearth.SnapshotID) error {
			_, err := p.Rollback(ctx, "t1", id, string(snap))
			return err
		}, hearth.Running},
		{"step", func(ctx context.Context, p *process, id hearth.SandboxID, _ hearth.SnapshotID) error {
			return p.Step(ctx, id, "ls")
		}, hearth.Running},
		{"delete", func(ctx context.Context, p *process, _ hearth.SandboxID, snap hearth.SnapshotID) error {
			return p.DeleteSnapshot(ctx, "t1", string(snap))
		}, hearth.Running},
		{"network", func(ctx context.Context, p *process, id hearth.SandboxID, _ hearth.SnapshotID) error {
			return p.SetNetwork(ctx, "t1", id, hearth.Network{DenyOut: []string{"1.2.3.4"}})
		}, hearth.Running},
		{"kill", func(ctx context.Context, p *process, id hearth.SandboxID, _ hearth.SnapshotID) error {
			return p.Kill(ctx, "t1", id)
		}, hearth.Stopped},
	}
}

// answers are the kinds with which the second operation of a pair may end, ""
// for success. It comes while the first is under way.
func answers(first, second operation) []hearth.Kind {
	switch {
	case second.name == "delete" && first.name == "delete", second.name == "rollback" && first.name == "delete":
		return []hearth.Kind{hearth.NotFound}
	case second.name == "delete": // a snapshot does not need its sandbox
		return []hearth.Kind{""}
	case second.name == "kill" && first.name == "kill":
		return []hearth.Kind{"", hearth.NotFound}
	case second.name == "kill":
		return []hearth.Kind{""}
	case first.name == "kill" && (second.name == "connect" || second.name == "wake" || second.ends == hearth.Paused || second.name == "fork"):
		return []hearth.Kind{hearth.FailedPrecondition, hearth.NotFound} // being killed, or gone
	case first.name == "kill":
		return []hearth.Kind{hearth.NotFound, hearth.FailedPrecondition}
	case first.name == "rollback" && second.name == "fork":
		return []hearth.Kind{hearth.FailedPrecondition} // nobody knows yet what it will be
	case first.ends == hearth.Running:
		return []hearth.Kind{""}
	case second.name == "connect", second.name == "wake", second.name == first.name: // resumes it; joins it
		return []hearth.Kind{""}
	}
	return []hearth.Kind{hearth.FailedPrecondition} // it is paused by then
}

// TestPairs runs every two operations on one sandbox at once: each ends as it is
// written down, and afterwards rows, machines, snapshots and routes agree.
func TestPairs(t *testing.T) {
	for _, first := range operations() {
		for _, second := range operations() {
			t.Run(first.name+" and "+second.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { pair(t, first, second) })
			})
		}
	}
}

func pair(t *testing.T, first, second operation) {
	w := newWorld(t)
	p := w.run(control.Limits{})
	ctx := context.Background()
	sb, err := p.Create(ctx, control.CreateRequest{
		Team: "t1", Template: "base", Timeout: time.Hour, Lifecycle: hearth.Lifecycle{History: wish.DefaultHistory},
	})
	if err != nil {
		t.Fatal(err)
	}
	snap, err := p.Snapshot(ctx, "t1", sb.ID, control.SnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Wait() // the snapshot has left its lane
	w.set(func() {
		for _, op := range []string{"start", "pause", "snapshot", "stop", "update", "remove"} {
			w.delay[op] = 100 * time.Millisecond
		}
	})
	done := make(chan error, 1)
	go func() { done <- first.do(ctx, p, sb.ID, snap.ID) }()
	time.Sleep(50 * time.Millisecond)
	got := second.do(ctx, p, sb.ID, snap.ID)
	firstErr := <-done
	kind := hearth.Kind("")
	if got != nil {
		kind = hearth.KindOf(got)
	}
	if !slices.Contains(answers(first, second), kind) {
		t.Errorf("the second ended with %v (%s), want one of %q", got, kind, answers(first, second))
	}
	if firstErr != nil && second.name != "kill" {
		t.Errorf("the first ended with %v", firstErr)
	}
	time.Sleep(20 * time.Second)
	synctest.Wait()
	want := first.ends
	if second.name == "kill" || kind == "" && first.name != "kill" && second.name != first.name {
		want = second.ends
	}
	if slices.Contains([]string{"fork", "network", "snapshot", "rollback", "step", "delete"}, second.name) {
		want = first.ends // leave it as it is
	}
	row, err := w.store.Sandbox(ctx, sb.ID)
	if err != nil || row.State != want {
		t.Errorf("the sandbox is %+v, %v; want it %s", row, err, want)
	}
	for _, wrong := range w.audit(p) {
		t.Error(wrong)
	}
	p.end()
}
