package control_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/blob"
	"hearth/internal/control"
	"hearth/internal/control/wish"
	"hearth/internal/hearth"
)

// kept makes a sandbox with a history.
func kept(t *testing.T, p *process, budget int64) *hearth.Sandbox {
	t.Helper()
	sb, err := p.Create(t.Context(), control.CreateRequest{Team: "t1", Template: "base", Timeout: time.Hour, Lifecycle: hearth.Lifecycle{History: budget}})
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

// told is a sandbox's history in words: number<parent label, or why there is a gap.
func told(t *testing.T, p *process, id hearth.SandboxID) []string {
	t.Helper()
	h, err := p.History(t.Context(), "t1", id)
	if err != nil {
		t.Fatal(err)
	}
	list := []string{}
	for _, s := range h.Steps {
		list = append(list, strings.TrimSpace(fmt.Sprintf("%d<%d %s %s", s.Step, s.Parent, s.Label, s.Reason)))
	}
	return list
}

func sameWords(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("history %q\nwant    %q", got, want)
	}
}

// inHistory runs a test on a server with one sandbox, and audits the world.
func inHistory(t *testing.T, budget int64, test func(t *testing.T, w *world, p *process, id hearth.SandboxID)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.run(control.Limits{})
		test(t, w, p, kept(t, p, budget).ID)
		for _, wrong := range w.audit(p) {
			t.Error(wrong)
		}
		p.end()
	})
}

func TestSteps(t *testing.T) {
	inHistory(t, wish.DefaultHistory, func(t *testing.T, w *world, p *process, id hearth.SandboxID) {
		ctx := t.Context()
		step := func(label string) {
			t.Helper()
			if err := p.Step(ctx, id, label); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		step("pip install\tx\x00")
		step(strings.Repeat("ä", 300))
		step("three")
		long := strings.Repeat("ä", 100)
		sameWords(t, told(t, p, id), "1<0 pip install x", "2<1 "+long, "3<2 three")

		if err := p.Pause(ctx, "t1", id); err != nil {
			t.Fatal(err)
		}
		if err := p.Step(ctx, id, "too late"); hearth.KindOf(err) != hearth.FailedPrecondition {
			t.Errorf("a step of a paused sandbox: %v", err)
		}
		if _, _, err := p.Connect(ctx, "t1", id, time.Hour); err != nil {
			t.Fatal(err)
		}
		step("four")
		if _, err := p.RollbackTo(ctx, "t1", id, 2); err != nil {
			t.Fatal(err)
		}
		step("another way")
		sameWords(t, told(t, p, id), "1<0 pip install x", "2<1 "+long, "3<2 three", "4<3 four", "5<2 another way")
		if _, err := p.RollbackTo(ctx, "t1", id, 4); err != nil { // what was left behind is there
			t.Fatal(err)
		}
		if h, err := p.History(ctx, "t1", id); err != nil || h.Head != 4 || h.Bytes != 5000 || h.Budget != wish.DefaultHistory {
			t.Errorf("%+v, %v", h, err)
		}
		if _, err := p.RollbackTo(ctx, "t1", id, 9); hearth.KindOf(err) != hearth.NotFound || !strings.Contains(err.Error(), "no step 9") {
			t.Errorf("back to a step that is not there: %v", err)
		}
		if _, err := p.RollbackTo(ctx, "t2", id, 1); hearth.KindOf(err) != hearth.NotFound {
			t.Errorf("another team: %v", err)
		}

		forks, err := p.Fork(ctx, "t1", id, time.Hour, 1)
		if err != nil || forks[0].Err != nil {
			t.Fatal(err, forks)
		}
		fork := forks[0].Sandbox
		sameWords(t, told(t, p, fork.ID))
		if err := p.Step(ctx, fork.ID, "its own"); err != nil {
			t.Fatal(err)
		}
		sameWords(t, told(t, p, fork.ID), "1<0 its own")
		snap, err := p.History(ctx, "t1", id)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Rollback(ctx, "t1", fork.ID, string(snap.Steps[1].ID)); err != nil {
			t.Errorf("a fork back to a step of what it came from: %v", err)
		}
	})
}

func TestStepsOfNobody(t *testing.T) {
	inHistory(t, 0, func(t *testing.T, w *world, p *process, id hearth.SandboxID) {
		if err := p.Step(t.Context(), id, "x"); err != nil {
			t.Error(err)
		}
		if err := p.Step(t.Context(), "inone", "x"); hearth.KindOf(err) != hearth.NotFound {
			t.Errorf("a sandbox that is not there: %v", err)
		}
		sameWords(t, told(t, p, id))
		if _, err := p.KeepStep(t.Context(), "t1", id, 1, control.SnapshotRequest{}); hearth.KindOf(err) != hearth.NotFound || !strings.Contains(err.Error(), "none has been taken") {
			t.Errorf("a step of a sandbox without any: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		p := newWorld(t).run(control.Limits{})
		for _, bytes := range []int64{-1, 1, wish.LeastHistory - 1, wish.MostHistory + 1} {
			_, err := p.Create(t.Context(), control.CreateRequest{Team: "t1", Template: "base", Timeout: time.Hour, Lifecycle: hearth.Lifecycle{History: bytes}})
			if hearth.KindOf(err) != hearth.InvalidArgument || !strings.Contains(err.Error(), "history.maxBytes must be within 67108864 and 1099511627776") {
				t.Errorf("%d bytes: %v", bytes, err)
			}
		}
		p.end()
	})
}

// TestStepsAtOnce: while one step is taken, however many commands end, they share
// the next.
func TestStepsAtOnce(t *testing.T) {
	inHistory(t, wish.DefaultHistory, func(t *testing.T, w *world, p *process, id hearth.SandboxID) {
		w.set(func() { w.delay["snapshot"] = time.Second })
		var all sync.WaitGroup
		began := time.Now()
		step := func(label string) {
			all.Go(func() {
				if err := p.Step(t.Context(), id, label); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		step("first")
		for i := range 10 {
			step(fmt.Sprint(i))
		}
		all.Wait()
		if took := time.Since(began); took != 2*time.Second {
			t.Errorf("11 commands waited for %v", took)
		}
		sameWords(t, told(t, p, id), "1<0 first", "2<1 0; 1; 2; 3; 4; 5; 6; 7")
	})
}

// TestStepThatFails is a gap, and the sandbox goes on.
func TestStepThatFails(t *testing.T) {
	inHistory(t, wish.DefaultHistory, func(t *testing.T, w *world, p *process, id hearth.SandboxID) {
		ctx := t.Context()
		w.set(func() { w.refuse["snapshot"] = hearth.Errorf(hearth.ResourceExhausted, "the node's disk is full") })
		if err := p.Step(ctx, id, "dd"); hearth.KindOf(err) != hearth.ResourceExhausted {
			t.Errorf("%v", err)
		}
		w.set(func() { clear(w.refuse) })
		if err := p.Step(ctx, id, "ls"); err != nil {
			t.Fatal(err)
		}
		sameWords(t, told(t, p, id), "1<0 dd the node's disk is full", "2<0 ls")
		if _, err := p.RollbackTo(ctx, "t1", id, 1); hearth.KindOf(err) != hearth.FailedPrecondition || !strings.Contains(err.Error(), "disk is full") {
			t.Errorf("back to a gap: %v", err)
		}
		if s := p.Steps(); s.Taken != 1 || s.Failed != 1 {
			t.Errorf("counted %+v", s)
		}

		// Whoever does not wait for it gets it all the same.
		w.set(func() { w.delay["snapshot"] = time.Minute })
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if err := p.Step(short, id, "slow"); hearth.KindOf(err) != hearth.DeadlineExceeded {
			t.Errorf("%v", err)
		}
		time.Sleep(2 * time.Minute)
		sameWords(t, told(t, p, id), "1<0 dd the node's disk is full", "2<0 ls", "3<2 slow")
		w.set(func() { clear(w.delay) })
	})
}

// TestStepCutShort by the end of the server is a gap as well.
func TestStepCutShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.run(control.Limits{})
		id := kept(t, p, wish.DefaultHistory).ID
		w.set(func() { w.delay["snapshot"] = time.Second })
		go p.Step(t.Context(), id, "ls")
		synctest.Wait()
		p.kill()
		w.set(func() { clear(w.delay) })
		p = w.run(control.Limits{})
		time.Sleep(time.Minute)
		if err := p.Step(t.Context(), id, "again"); err != nil {
			t.Fatal(err)
		}
		sameWords(t, told(t, p, id), "1<0 ls the server stopped while it was being taken", "2<0 again")
		for _, wrong := range w.audit(p) {
			t.Error(wrong)
		}
		p.end()
	})
}

func TestStepsAreThinned(t *testing.T) {
	const mib = 1 << 20
	inHistory(t, 100*mib, func(t *testing.T, w *world, p *process, id hearth.SandboxID) {
		ctx := t.Context()
		w.set(func() { w.bytes = 10 * mib })
		for i := range 60 {
			if err := p.Step(ctx, id, fmt.Sprint(i+1)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		h, err := p.History(ctx, "t1", id)
		if err != nil || h.Bytes > 100*mib || len(h.Steps) < 6 || len(h.Steps) > 10 || h.Head != 60 || h.Steps[0].Step > 32 {
			t.Errorf("%v, %v, %+v", told(t, p, id), err, h)
		}
		var before int64
		for _, s := range h.Steps { // the line has no holes in it, and no rows of what is gone
			if s.Parent != before {
				t.Errorf("step %d comes after %d, want %d", s.Step, s.Parent, before)
			}
			before = s.Step
		}
		rows, err := w.store.ListSnapshots(ctx)
		if err != nil || len(rows) != len(h.Steps)+1 {
			t.Errorf("%d rows for %d steps, %v", len(rows), len(h.Steps), err)
		}

		for step, says := range map[int64]string{61: "has no step 61: its last one is 60", 1: "has no step 1 any more"} {
			if _, err := p.KeepStep(ctx, "t1", id, step, control.SnapshotRequest{}); hearth.KindOf(err) != hearth.NotFound || !strings.Contains(err.Error(), says) {
				t.Errorf("step %d: %v, want %q", step, err, says)
			}
		}

		// What lies beneath counts, too, and cannot be thinned.
		w.set(func() {
			w.shared = blob.Object{Name: "x", Bytes: 80 * mib}
		})
		w.set(func() { w.bytes = 0 })
		for range 2 {
			if err := p.Step(ctx, id, "small"); err != nil {
				t.Fatal(err)
			}
		}
		if h, err := p.History(ctx, "t1", id); err != nil || h.Bytes > 100*mib || h.Bytes < 80*mib {
			t.Errorf("%+v, %v", h, err)
		}
	})
}

// TestWhatWasGoneBackToIsKept: what a rollback left behind goes before what the sandbox
// comes from, however old that is.
func TestWhatWasGoneBackToIsKept(t *testing.T) {
	const mib = 1 << 20
	inHistory(t, 100*mib, func(t *testing.T, w *world, p *process, id hearth.SandboxID) {
		steps := func(n int, bytes int64) {
			t.Helper()
			w.set(func() { w.bytes = bytes })
			for range n {
				if err := p.Step(t.Context(), id, "ls"); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Millisecond)
			}
		}
		steps(3, mib)
		steps(3, 40*mib)
		sameWords(t, told(t, p, id), "1<0 ls", "2<1 ls", "3<2 ls", "5<3 ls", "6<5 ls")
		if _, err := p.RollbackTo(t.Context(), "t1", id, 3); err != nil {
			t.Fatal(err)
		}
		steps(1, 30*mib)
		sameWords(t, told(t, p, id), "1<0 ls", "2<1 ls", "3<2 ls", "6<3 ls", "7<3 ls")
		if err := p.Pause(t.Context(), "t1", id); err != nil { // the line goes through what a pause leaves
			t.Fatal(err)
		}
		if _, _, err := p.Connect(t.Context(), "t1", id, time.Hour); err != nil {
			t.Fatal(err)
		}
		steps(1, 30*mib)
		sameWords(t, told(t, p, id), "1<0 ls", "2<1 ls", "3<2 ls", "7<3 ls", "8<7 ls")
	})
}

// TestStepsArePackedBeforeTheyGo: what does not fit as plain files may as packed
// ones; what cannot be packed counts as it is. Nothing is packed in haste that fits.
func TestStepsArePackedBeforeTheyGo(t *testing.T) {
	const mib = 1 << 20
	inHistory(t, 100*mib, func(t *testing.T, w *world, p *process, id hearth.SandboxID) {
		w.set(func() { w.bytes, w.common, w.shared = 61*mib, 60*mib, blob.Object{Name: "pack", Bytes: 60 * mib} })
		step := func() *control.History {
			t.Helper()
			if err := p.Step(t.Context(), id, "ls"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
			h, err := p.History(t.Context(), "t1", id)
			if err != nil {
				t.Fatal(err)
			}
			return h
		}
		if h := step(); len(h.Steps) != 1 || len(w.packed) > 0 {
			t.Errorf("%d steps, packed %v", len(h.Steps), w.packed)
		}
		for range 9 {
			step()
		}
		if h := step(); len(h.Steps) != 11 || h.Bytes != 71*mib {
			t.Errorf("%d steps of %d bytes, want all in %d", len(h.Steps), h.Bytes, 71*mib)
		}
		w.set(func() { w.refuse["pack"] = hearth.Errorf(hearth.ResourceExhausted, "the disk is full") })
		if h := step(); len(h.Steps) != 1 || h.Bytes != 61*mib {
			t.Errorf("%d steps of %d bytes, want the newest alone", len(h.Steps), h.Bytes)
		}
		w.set(func() { delete(w.refuse, "pack") })
		if h := step(); len(h.Steps) != 2 || h.Bytes != 62*mib {
			t.Errorf("%d steps of %d bytes, want two that share", len(h.Steps), h.Bytes)
		}
	})
}

// TestPackingKeepsNobodyElse: while steps are packed the next step waits, and nothing
// else that is done with their sandbox.
func TestPackingKeepsNobodyElse(t *testing.T) {
	inHistory(t, 64<<20, func(t *testing.T, w *world, p *process, id hearth.SandboxID) {
		const packing = 20 * time.Second
		w.set(func() { w.delay["pack"], w.bytes = packing, 65<<20 })
		step := func() (took time.Duration) {
			t.Helper()
			began := time.Now()
			if err := p.Step(t.Context(), id, "ls"); err != nil {
				t.Fatal(err)
			}
			return time.Since(began)
		}
		step()
		if took := step(); took >= packing {
			t.Errorf("a step waits for its own packing: %s", took)
		}
		if took := step(); took < packing-time.Second {
			t.Errorf("the next does not wait for it: %s", took)
		}
		began := time.Now()
		if err := p.Pause(t.Context(), "t1", id); err != nil {
			t.Error(err)
		}
		if err := p.Kill(t.Context(), "t1", id); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took >= packing {
			t.Errorf("a pause and a kill took %s", took)
		}
	})
}

// TestEndOfAHistory: steps go with their sandbox, but for one that another sandbox
// was made from.
func TestEndOfAHistory(t *testing.T) {
	inHistory(t, wish.DefaultHistory, func(t *testing.T, w *world, p *process, id hearth.SandboxID) {
		ctx := t.Context()
		for i := range 4 {
			if err := p.Step(ctx, id, fmt.Sprint(i+1)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		h, err := p.History(ctx, "t1", id)
		if err != nil {
			t.Fatal(err)
		}
		second := h.Steps[1].ID
		child, err := p.Create(ctx, control.CreateRequest{Team: "t1", Template: string(second), Timeout: 10 * time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		if child.Lifecycle.History != 0 {
			t.Errorf("a sandbox that did not ask has a history: %+v", child.Lifecycle)
		}
		if _, err := p.Create(ctx, control.CreateRequest{Team: "t2", Template: string(second), Timeout: time.Hour}); hearth.KindOf(err) != hearth.NotFound {
			t.Errorf("another team's step: %v", err)
		}
		if err := p.Kill(ctx, "t1", id); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, err := p.History(ctx, "t1", id); hearth.KindOf(err) != hearth.NotFound {
			t.Errorf("the history of a sandbox that was killed: %v", err)
		}
		rows, err := w.store.ListSnapshots(ctx)
		if err != nil || len(rows) != 2 || !slices.ContainsFunc(rows, func(s *hearth.Snapshot) bool { return s.ID == second && s.Kind == hearth.KeptSnapshot }) {
			t.Errorf("left: %+v, %v", rows, err)
		}
		if _, err := p.Rollback(ctx, "t1", child.ID, string(second)); err != nil {
			t.Error(err)
		}
		if err := errors.Join(p.DeleteSnapshot(ctx, "t1", string(second)), p.Kill(ctx, "t1", child.ID)); err != nil {
			t.Error(err)
		}
	})
}

// TestStepsOfTheDead were left by a server that died between the end of a sandbox
// and that of its history: the next one's sweep finds them.
func TestStepsOfTheDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.run(control.Limits{})
		id := kept(t, p, wish.DefaultHistory).ID
		if err := p.Step(t.Context(), id, "ls"); err != nil {
			t.Fatal(err)
		}
		p.kill()
		for _, machines := range w.machines {
			delete(machines, id)
		}
		_, err := w.store.UpdateSandbox(t.Context(), id, func(s *hearth.Sandbox) error {
			s.State, s.StopReason, s.Node = hearth.Stopped, "killed", ""
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		p = w.run(control.Limits{})
		time.Sleep(time.Minute)
		for _, wrong := range w.audit(p) {
			t.Error(wrong)
		}
		p.end()
	})
}
