package control_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"hearth/internal/control"
	"hearth/internal/control/wish"
	"hearth/internal/hearth"
	"hearth/internal/store"
)

// action is one thing that happens in a model run.
type action struct {
	what  string
	who   int // index of the sandbox, modulo how many there are
	secs  int
	at    int   // which call goes wrong, 0: none
	fault fault // and how
}

func (a action) String() string {
	return fmt.Sprintf("%s who=%d secs=%d at=%d fault=%d", a.what, a.who, a.secs, a.at, a.fault)
}

func actions() *rapid.Generator[action] {
	return rapid.Custom(func(t *rapid.T) action {
		return action{
			what: rapid.SampledFrom([]string{"create", "create", "create paused on timeout", "create with history", "step", "step", "many steps", "rollback to step", "pause", "pause", "connect", "connect",
				"snapshot", "snapshot", "fork", "rollback", "rollback", "delete snapshot", "create from snapshot",
				"kill", "timeout", "extend", "network", "die", "lose", "restart", "wait", "busy", "well"}).Draw(t, "what"),
			who:   rapid.IntRange(0, 5).Draw(t, "who"),
			secs:  rapid.IntRange(1, 120).Draw(t, "secs"),
			at:    rapid.SampledFrom([]int{0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9}).Draw(t, "at"),
			fault: fault(rapid.IntRange(0, int(faultKinds)-1).Draw(t, "fault")),
		}
	})
}

// TestModel runs random histories with faults at random calls, lets everything
// come to rest, and compares the store with the world.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		history := rapid.SliceOfN(actions(), 1, 25).Draw(rt, "history")
		var wrong []string
		synctest.Test(t, func(t *testing.T) { wrong = play(t, history) })
		if len(wrong) > 0 {
			rt.Fatalf("after %v:\n%s", history, strings.Join(wrong, "\n"))
		}
	})
}

var quick = control.Limits{Sandboxes: 4, StoreTimeout: 10 * time.Second, StartTimeout: 20 * time.Second, PauseTimeout: 30 * time.Second}

// play runs a history and returns what was wrong.
func play(t *testing.T, history []action) []string {
	w := newWorld(t)
	p := w.run(quick)
	for _, a := range history {
		if a.at > 0 {
			p.arm(a.at, a.fault)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		act(ctx, w, p, a)
		synctest.Wait()
		cancel()
		if a.what == "restart" || p.isDead() {
			p.kill()
			p = w.run(quick)
		}
	}
	p.disarm()
	w.mu.Lock()
	clear(w.refuse)
	clear(w.delay)
	w.mu.Unlock()
	time.Sleep(50 * time.Second) // until all is settled; in the bubble this takes no time
	synctest.Wait()
	if p.isDead() {
		p.kill()
		p = w.run(quick)
		time.Sleep(50 * time.Second)
		synctest.Wait()
	}
	wrong := w.audit(p)
	p.end()
	return wrong
}

// act does one thing. Errors of calls are checked for their kind alone: a fault
// may be under way.
func act(ctx context.Context, w *world, p *process, a action) {
	var id hearth.SandboxID = "inone"
	rows, _, _ := w.store.ListSandboxes(ctx, store.SandboxFilter{OldestFirst: true}, store.Page{})
	if len(rows) > 0 {
		id = rows[a.who%len(rows)].ID
	}
	d := time.Duration(a.secs) * time.Second
	var err error
	switch a.what {
	case "create":
		_, err = p.Create(ctx, control.CreateRequest{Team: "t1", Template: "base", Timeout: d})
	case "create paused on timeout":
		_, err = p.Create(ctx, control.CreateRequest{Team: "t1", Template: "base", Timeout: d, OnTimeout: hearth.PauseOnTimeout})
	case "create idle":
		_, err = p.Create(ctx, control.CreateRequest{Team: "t1", Template: "base", Timeout: time.Hour, Lifecycle: hearth.Lifecycle{Idle: 10 * time.Second}})
	case "rest": // nobody uses any sandbox
		w.mu.Lock()
		w.unused = true
		w.mu.Unlock()
		time.Sleep(20 * time.Second)
	case "create with history":
		_, err = p.Create(ctx, control.CreateRequest{Team: "t1", Template: "base", Timeout: d, Lifecycle: hearth.Lifecycle{History: wish.LeastHistory}})
	case "step":
		err = p.Step(ctx, id, "echo")
	case "many steps":
		for range 24 {
			err = errors.Join(err, p.Step(ctx, id, "echo"))
		}
	case "rollback to step":
		_, err = p.RollbackTo(ctx, "t1", id, int64(a.secs%4+1))
	case "pause":
		err = p.Pause(ctx, "t1", id)
	case "connect":
		var sb *hearth.Sandbox
		sb, _, err = p.Connect(ctx, "t1", id, d)
		if err == nil && sb.State != hearth.Running {
			err = fmt.Errorf("connect returned a sandbox that is %s", sb.State)
		}
	case "snapshot":
		_, err = p.Snapshot(ctx, "t1", id, control.SnapshotRequest{Alias: []string{"", "golden"}[a.secs%2]})
	case "fork":
		_, err = p.Fork(ctx, "t1", id, d, 1+a.secs%2)
	case "rollback":
		_, err = p.Rollback(ctx, "t1", id, snapshotOf(ctx, w, a.secs))
	case "create from snapshot":
		_, err = p.Create(ctx, control.CreateRequest{Team: "t1", Template: snapshotOf(ctx, w, a.secs), Timeout: d})
	case "delete snapshot":
		err = p.DeleteSnapshot(ctx, "t1", snapshotOf(ctx, w, a.secs))
	case "kill":
		err = p.Kill(ctx, "t1", id)
	case "timeout":
		err = p.SetTimeout(ctx, "t1", id, d)
	case "extend":
		err = p.Extend(ctx, "t1", id, d)
	case "network":
		err = p.SetNetwork(ctx, "t1", id, hearth.Network{DenyOut: []string{fmt.Sprint(a.secs)}})
	case "die":
		w.die(id, "the test killed it")
	case "lose": // without an event
		w.mu.Lock()
		for _, machines := range w.machines {
			delete(machines, id)
		}
		w.mu.Unlock()
	case "busy":
		op := []string{"start", "pause", "stop", "list", "snapshot"}[a.who%5]
		kind := []hearth.Kind{hearth.Unavailable, hearth.Internal, hearth.ResourceExhausted, hearth.FailedPrecondition}[a.secs%4]
		w.mu.Lock()
		w.refuse[op] = hearth.Errorf(kind, "the node is not well")
		w.mu.Unlock()
	case "well":
		w.mu.Lock()
		clear(w.refuse)
		w.mu.Unlock()
	case "wait":
		time.Sleep(d)
	}
	if _, known := errors.AsType[*hearth.Error](err); err != nil && !known {
		w.mu.Lock()
		w.bad("%v: %v", a, err)
		w.mu.Unlock()
	}
}

// snapshotOf chooses one of the snapshots there are.
func snapshotOf(ctx context.Context, w *world, n int) string {
	list, _, _ := w.store.FindSnapshots(ctx, store.SnapshotFilter{Team: "t1"}, store.Page{})
	if len(list) == 0 {
		return string(hearth.NewSnapshotID())
	}
	return string(list[n%len(list)].ID)
}
