package agent_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"hearth/internal/driver"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/node/agent"
	"hearth/internal/node/nodetest"
)

// model is what a few sandboxes must be, whatever happens to them.
type model struct {
	*world
	a     *agent.Agent
	boxes []*modelBox
	count int
}

type modelBox struct {
	req   node.StartRequest
	runs  bool
	word  string // what its guest remembers, while it runs
	saved string // what its snapshot remembers
	kept  []keptState
}

// keptState is a snapshot of a sandbox that went on.
type keptState struct {
	snap *hearth.Snapshot
	word string
}

// TestModel does random things to three sandboxes and compares every answer,
// and all that the host holds, with the model.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := &model{world: newWorldOf(t, layered)}
		m.pack()
		m.a = m.open(agent.Config{})
		for range 3 {
			m.boxes = append(m.boxes, &modelBox{req: m.request()})
		}
		rt.Repeat(map[string]func(*rapid.T){
			"start":    m.onOne(m.start1),
			"stop":     m.onOne(m.stop1),
			"pause":    m.onOne(m.pause1),
			"snapshot": m.onOne(m.snapshot1),
			"revert":   m.onOne(m.revert1),
			"poke":     m.onOne(m.poke1),
			"kill":     m.onOne(m.kill1),
			"forget":   m.onOne(m.forget1),
			"tidy":     m.tidy,
			"restart":  func(*rapid.T) { m.a.Close(); m.a = m.open(agent.Config{}) },
			"":         m.check,
		})
		m.on(nil)
		m.shutdown(m.a)
		for _, b := range m.boxes {
			m.forget1(rt, b)
			for _, k := range b.kept {
				if err := m.shelf.Remove(m.t.Context(), k.snap.ID); err != nil {
					rt.Fatal(err)
				}
			}
		}
		m.tidy(rt)
		if k := m.blobs.keys(); len(k) != 0 {
			rt.Fatalf("blobs that nobody needs: %v", k)
		}
	})
}

func (m *model) onOne(f func(*rapid.T, *modelBox)) func(*rapid.T) {
	return func(rt *rapid.T) { f(rt, rapid.SampledFrom(m.boxes).Draw(rt, "sandbox")) }
}

// faults breaks one operation, perhaps, and reports whether it was met.
func (m *model) faults(rt *rapid.T, ops ...string) (met func() bool) {
	op := rapid.SampledFrom(append(ops, "none", "none")).Draw(rt, "fault")
	var hit atomic.Bool // an old machine is closed behind the answer, while met is asked
	m.on(func(_ context.Context, got string) error {
		if got == op && hit.CompareAndSwap(false, true) {
			return errBoom
		}
		return nil
	})
	return func() bool { m.on(nil); return hit.Load() }
}

func (m *model) start1(rt *rapid.T, b *modelBox) {
	if !b.runs {
		b.req.Sandbox.Generation++
	}
	met := m.faults(rt, "net.acquire", "net.policy", "driver.start", "guest.init", "guest.init.after")
	var all sync.WaitGroup
	for range rapid.IntRange(1, 3).Draw(rt, "callers") {
		all.Go(func() {
			_, err := m.a.Start(m.t.Context(), b.req)
			if err != nil && !met() {
				rt.Errorf("Start: %v", err)
			}
		})
	}
	all.Wait()
	if _, err := m.a.Start(m.t.Context(), b.req); err != nil && !met() {
		rt.Fatalf("Start: %v", err)
	} else if err == nil && !b.runs {
		b.runs, b.word = true, b.saved
	}
	met()
}

func (m *model) stop1(rt *rapid.T, b *modelBox) {
	met := m.faults(rt, "driver.close") // a sweep comes to help
	defer met()
	if err := m.a.Stop(m.t.Context(), b.req.Sandbox.ID, "model"); err != nil {
		rt.Fatalf("Stop: %v", err)
	}
	b.runs = false
}

func (m *model) pause1(rt *rapid.T, b *modelBox) {
	met := m.faults(rt, "guest.quiesce", "driver.freeze", "driver.checkpoint", "blob.adopt", "blob.put", "blob.put.after", "driver.close")
	snap, err := m.a.Pause(m.t.Context(), b.req.Sandbox.ID, node.PauseRequest{Into: hearth.NewSnapshotID()})
	hit := met()
	switch {
	case !b.runs:
		if hearth.KindOf(err) != hearth.NotFound {
			rt.Fatalf("Pause of what does not run: %v", err)
		}
	case err != nil && !hit:
		rt.Fatalf("Pause: %v", err)
	case err == nil:
		m.forget1(rt, b)
		b.runs, b.saved, b.req.Restore = false, b.word, snap
	}
}

// tidy packs all snapshots and removes the plain files of those not in use.
func (m *model) tidy(rt *rapid.T) {
	if err := m.shelf.Tidy(m.t.Context()); err != nil {
		rt.Fatal(err)
	}
}

// forget1 removes a sandbox's snapshot, as the control plane does when it runs again.
func (m *model) forget1(rt *rapid.T, b *modelBox) {
	if b.req.Restore == nil {
		return
	}
	if err := m.shelf.Remove(m.t.Context(), b.req.Restore.ID); err != nil {
		rt.Fatal(err)
	}
	b.req.Restore, b.saved = nil, ""
}

func (m *model) snapshot1(rt *rapid.T, b *modelBox) {
	met := m.faults(rt, "guest.quiesce", "driver.freeze", "driver.checkpoint", "blob.adopt", "blob.put", "blob.put.after")
	snap, err := m.a.Snapshot(m.t.Context(), b.req.Sandbox.ID, node.SnapshotRequest{Into: hearth.NewSnapshotID()})
	hit := met()
	switch {
	case !b.runs:
		if hearth.KindOf(err) != hearth.NotFound {
			rt.Fatalf("Snapshot of what does not run: %v", err)
		}
	case err != nil && !hit:
		rt.Fatalf("Snapshot: %v", err)
	case err == nil:
		b.kept = append(b.kept, keptState{snap, b.word})
	}
}

func (m *model) revert1(rt *rapid.T, b *modelBox) {
	if len(b.kept) == 0 {
		return
	}
	to := rapid.SampledFrom(b.kept).Draw(rt, "snapshot")
	met := m.faults(rt, "driver.freeze", "net.acquire", "net.policy", "driver.start", "guest.init", "guest.init.after", "driver.close")
	req := b.req
	req.Sandbox.Generation, req.Restore, req.Revert = b.req.Sandbox.Generation+1, to.snap, true
	_, err := m.a.Start(m.t.Context(), req)
	hit := met()
	switch {
	case !b.runs:
		if err == nil {
			rt.Fatal("what does not run was reverted")
		}
	case err != nil && !hit:
		rt.Fatalf("Start to revert: %v", err)
	case err == nil:
		b.req.Sandbox.Generation, b.word = req.Sandbox.Generation, to.word
	}
}

func (m *model) poke1(rt *rapid.T, b *modelBox) {
	m.count++
	word := fmt.Sprint(m.count)
	err := nodetest.Poke(m.t.Context(), dial(m.a, b.req.Sandbox.ID), b.req.Token, word)
	if (err == nil) != b.runs {
		rt.Fatalf("writing into a sandbox (running: %v): %v", b.runs, err)
	}
	if b.runs {
		b.word = word
	}
}

func (m *model) kill1(rt *rapid.T, b *modelBox) {
	for _, id := range m.host.Machines() {
		if g := m.host.Guest(id); g != nil && g.Load("id") == string(b.req.Sandbox.ID) {
			ctx, cancel := context.WithCancel(m.t.Context())
			events := m.a.Events(ctx)
			if err := m.host.Kill(id, driver.Exit{Reason: "model"}); err != nil {
				rt.Fatal(err)
			}
			for e := range events {
				if e.ID == b.req.Sandbox.ID && e.Generation == b.req.Sandbox.Generation {
					break
				}
			}
			cancel()
			b.runs = false
		}
	}
}

// check compares what is there with the model.
func (m *model) check(rt *rapid.T) {
	want := 0
	for _, b := range m.boxes {
		if b.runs {
			want++
			got, err := nodetest.Peek(m.t.Context(), dial(m.a, b.req.Sandbox.ID), b.req.Token)
			if err != nil || got != b.word {
				rt.Fatalf("%s remembers %q, %v; want %q", b.req.Sandbox.ID, got, err, b.word)
			}
		}
	}
	list, err := m.a.List(m.t.Context())
	if err != nil || len(list) != want {
		rt.Fatalf("List: %d sandboxes, %v; want %d", len(list), err, want)
	}
	m.wantHeld(want)
}
