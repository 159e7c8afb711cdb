package agent_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"

	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/node/agent"
	"hearth/internal/node/agent/inventory"
	"hearth/internal/node/nodetest"
)

func (w *world) stock(a *agent.Agent) *inventory.Stock {
	return inventory.New(inventory.Deps{
		Agent: a, Shelf: w.shelf, Log: slog.New(slog.DiscardHandler),
		Guest: func(dial agent.Dialer, control string) inventory.Lister {
			return &tapped{w: w, Client: &nodetest.Client{Dial: nodetest.Dial(dial), Control: control}}
		},
	})
}

func (g *tapped) Inventory(ctx context.Context) (list []hearth.Entry, err error) {
	err = g.call(ctx, "guest.inventory", func() (err error) { list, err = g.Client.Inventory(ctx); return err })
	return list, err
}

// keep takes a snapshot of a sandbox that remembers a word.
func (w *world) keep(a *agent.Agent, req node.StartRequest, word string) hearth.Snapshot {
	w.t.Helper()
	w.poke(a, req, word)
	snap, err := a.Snapshot(w.t.Context(), req.Sandbox.ID, node.SnapshotRequest{Into: hearth.NewSnapshotID()})
	if err != nil {
		w.t.Fatal(err)
	}
	return *snap
}

// starts counts machines that are started from now on.
func (w *world) starts() func() int {
	var mu sync.Mutex
	n := 0
	w.on(func(_ context.Context, op string) error {
		mu.Lock()
		defer mu.Unlock()
		if op == "driver.start" {
			n++
		}
		return nil
	})
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		return n
	}
}

// TestInventory: a snapshot's files are those of its moment, a machine is started
// once to find out, nothing of it stays, and the sandbox does not notice.
func TestInventory(t *testing.T) {
	w := newWorldOf(t, layered)
	a := w.open(agent.Config{})
	req := w.request()
	req.Restore = w.warm(a)
	w.start(a, req)
	one, two := w.keep(a, req, "one"), w.keep(a, req, "another")
	w.poke(a, req, "now")
	started := w.starts()
	stock := w.stock(a)
	for range 2 {
		for snap, size := range map[*hearth.Snapshot]int64{&one: 3, &two: 7} {
			list, err := stock.Inventory(t.Context(), *snap, req.Build)
			if err != nil || len(list) != 1 || list[0].Path != "/word" || list[0].Size != size {
				t.Fatalf("%+v, %v; want %d bytes", list, err, size)
			}
		}
	}
	if n := started(); n != 2 {
		t.Errorf("%d machines were started to look into two snapshots", n)
	}
	w.wantHeld(1)
	w.wantWord(a, req, "now")

	// A note that is not what was written is made anew; it goes with its snapshot.
	if err := w.shelf.Annotate(t.Context(), one.ID, "inventory", []byte("HRTHFN01, and then nonsense that is no list at all")); err != nil {
		t.Fatal(err)
	}
	if list, err := stock.Inventory(t.Context(), one, req.Build); err != nil || list[0].Size != 3 {
		t.Errorf("after damage: %+v, %v", list, err)
	}
	if n := started(); n != 3 {
		t.Errorf("%d machines were started, want one more", n)
	}
	if err := w.shelf.Remove(t.Context(), one.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.shelf.Note(t.Context(), one.ID, "inventory"); hearth.KindOf(err) != hearth.NotFound {
		t.Errorf("the note of a removed snapshot: %v", err)
	}
	if _, err := stock.Inventory(t.Context(), one, req.Build); err == nil {
		t.Error("a removed snapshot has files")
	}
	w.shutdown(a)
}

// TestInventoryFails at every step: the error comes back and nothing is left.
func TestInventoryFails(t *testing.T) {
	for _, op := range []string{"net.acquire", "net.policy", "driver.start", "guest.inventory", "guest.inventory.after"} {
		t.Run(op, func(t *testing.T) {
			w := newWorldOf(t, layered)
			a := w.open(agent.Config{})
			req := w.request()
			w.start(a, req)
			snap := w.keep(a, req, "one")
			w.failOnce(op)
			if list, err := w.stock(a).Inventory(t.Context(), snap, req.Build); err == nil && op != "net.policy" {
				t.Fatalf("%+v", list)
			}
			w.wantHeld(1)
			if list, err := w.stock(a).Inventory(t.Context(), snap, req.Build); err != nil || len(list) != 1 {
				t.Errorf("the next time: %+v, %v", list, err)
			}
			w.shutdown(a)
		})
	}
	t.Run("another key", func(t *testing.T) {
		w := newWorldOf(t, layered)
		a := w.open(agent.Config{})
		req := w.request()
		w.start(a, req)
		snap := w.keep(a, req, "one")
		snap.Key = "another processor"
		if _, err := w.stock(a).Inventory(t.Context(), snap, req.Build); hearth.KindOf(err) != hearth.FailedPrecondition {
			t.Errorf("%v", err)
		}
		w.setFree(1)
		snap.Key = ""
		if _, err := w.stock(a).Inventory(t.Context(), snap, req.Build); hearth.KindOf(err) != hearth.ResourceExhausted {
			t.Errorf("without memory: %v", err)
		}
		w.wantHeld(1)
		w.shutdown(a)
	})
}
