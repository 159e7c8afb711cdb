package agent_test

import (
	"bytes"
	"path/filepath"
	"testing"

	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/node/agent"
	"hearth/internal/node/agent/courier"
	"hearth/internal/node/agent/secret"
)

func (w *world) courier() *courier.Courier {
	w.t.Helper()
	key, err := secret.Load(filepath.Join(w.dir, "control.key"))
	if err != nil {
		w.t.Fatal(err)
	}
	return &courier.Courier{Shelf: w.shelf, Key: key, Tmp: w.blobs.Temp(), Limit: 1 << 30}
}

// TestGuestFromElsewhere: what was taken of a sandbox on one node, on top of what it
// was restored from, goes on on another, which has another key; and what is taken
// of that goes on on a third.
func TestGuestFromElsewhere(t *testing.T) {
	w := newWorldOf(t, layered)
	a := w.open(agent.Config{})
	req := w.request()
	req.Restore = w.warm(a)
	w.start(a, req)
	w.poke(a, req, "home")
	var file bytes.Buffer
	snap, err := a.Snapshot(t.Context(), req.Sandbox.ID, node.SnapshotRequest{Into: hearth.NewSnapshotID()})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.courier().Export(t.Context(), snap.ID, req.Build, &file); err != nil {
		t.Fatal(err)
	}
	w.shutdown(a)
	for _, onward := range []string{"as it came", "after it ran"} {
		w := newWorldOf(t, layered)
		a := w.open(agent.Config{})
		id, owner := hearth.NewSnapshotID(), hearth.NewSandboxID()
		snap, _, err := w.courier().Import(t.Context(), id, owner, bytes.NewReader(file.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		req := w.request()
		req.Restore = snap
		w.start(a, req)
		w.wantWord(a, req, "home")
		if onward == "after it ran" {
			id = hearth.NewSnapshotID()
			if _, err := a.Snapshot(t.Context(), req.Sandbox.ID, node.SnapshotRequest{Into: id}); err != nil {
				t.Fatal(err)
			}
		}
		file.Reset()
		if err := w.courier().Export(t.Context(), id, req.Build, &file); err != nil {
			t.Fatal(err)
		}
		w.shutdown(a)
	}
	w = newWorldOf(t, layered)
	a = w.open(agent.Config{})
	defer w.shutdown(a)
	req = w.request()
	if req.Restore, _, err = w.courier().Import(t.Context(), hearth.NewSnapshotID(), hearth.NewSandboxID(), &file); err != nil {
		t.Fatal(err)
	}
	w.start(a, req)
	w.wantWord(a, req, "home")
}
