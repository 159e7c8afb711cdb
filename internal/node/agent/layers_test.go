package agent_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"hearth/internal/driver"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/node/agent"
)

// TestLayersOutliveWhatTheyReferTo pauses and resumes a sandbox of a template
// again and again, removes each snapshot as soon as the sandbox runs from it, and
// then the template's own: what the newest one refers to must stay, and go with it.
func TestLayersOutliveWhatTheyReferTo(t *testing.T) {
	w := newWorldOf(t, layered)
	a := w.open(agent.Config{})
	warm := w.warm(a)
	req := w.request()
	req.Restore = warm
	for generation := range int64(driver.MaxLayers + 3) {
		req.Sandbox.Generation = generation + 1
		w.start(a, req)
		if generation > 0 {
			w.wantWord(a, req, strings.Repeat("x", int(generation)))
		}
		if generation == 1 { // another build took the template's name
			if err := w.shelf.Remove(t.Context(), warm.ID); err != nil {
				t.Fatal(err)
			}
		}
		if generation > 0 {
			if err := w.shelf.Remove(t.Context(), req.Restore.ID); err != nil {
				t.Fatal(err)
			}
		}
		w.poke(a, req, strings.Repeat("x", int(generation+1)))
		if generation%2 == 0 {
			a.Close()
			a = w.open(agent.Config{}) // nothing but the journal says what the machine needs
		}
		snap, err := a.Pause(t.Context(), req.Sandbox.ID, node.PauseRequest{Into: hearth.NewSnapshotID()})
		if err != nil {
			t.Fatal(err)
		}
		if alone := generation == driver.MaxLayers-1; (snap.Base == "") != alone || !alone && snap.Base != req.Restore.ID {
			t.Fatalf("generation %d refers to %q, want %q, or nothing: %v", generation, snap.Base, req.Restore.ID, alone)
		}
		req.Restore = snap
	}
	a.Settle() // the last machine holds what it was started from
	if err := w.shelf.Remove(t.Context(), req.Restore.ID); err != nil {
		t.Fatal(err)
	}
	if k := w.blobs.keys(); len(k) != 0 {
		t.Fatalf("blobs that nobody needs: %v", k)
	}
	w.shutdown(a)
}

// TestPoolKeepsWhatItWasRestoredFrom: the template's snapshot may go while
// machines of it wait; a sandbox that takes one can still be paused.
func TestPoolKeepsWhatItWasRestoredFrom(t *testing.T) {
	synctest.Test(t, poolKeeps)
}

func poolKeeps(t *testing.T) {
	p := newPooling(t, agent.Config{})
	p.keep(2)
	p.halt()
	if err := p.shelf.Remove(t.Context(), p.snap.ID); err != nil {
		t.Fatal(err)
	}
	req := p.request()
	req.Restore = p.snap
	p.start(p.a, req)
	if _, err := p.a.Pause(t.Context(), req.Sandbox.ID, node.PauseRequest{Into: hearth.NewSnapshotID()}); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(p.blobs.keys(), func(k string) bool { return strings.HasPrefix(k, "snapshots/"+string(p.snap.ID)) }) {
		t.Fatal("a machine waits, and what it was restored from is gone")
	}
	p.shutdown(p.a)
	if slices.ContainsFunc(p.blobs.keys(), func(k string) bool { return strings.HasPrefix(k, "snapshots/"+string(p.snap.ID)) }) {
		t.Fatal("no machine waits any more, and the files are still there")
	}
}
