package agent_test

import (
	"context"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/blob/blobtest"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/node/agent"
)

// layer stores a layer, of which the world's build is then made, and returns its
// key and its file.
func (w *world) layer() (key, file string) {
	w.t.Helper()
	src := blobtest.NewSource(w.t, blobtest.Noise(100_000, 7))
	key = "layers/" + src.SHA256
	if err := w.blobs.Store.Adopt(w.t.Context(), key, src.Path); err != nil {
		w.t.Fatal(err)
	}
	file, err := w.blobs.Path(w.t.Context(), key)
	if err != nil {
		w.t.Fatal(err)
	}
	w.layers = []string{key}
	return key, file
}

// TestDamagedLayerStartsNothing: not a sandbox, be it booted, restored or taken
// back, not a template's machine, not one of a pool, not a blank.
func TestDamagedLayerStartsNothing(t *testing.T) {
	for name, change := range map[string]func([]byte) []byte{
		"bit flip": func(raw []byte) []byte {
			raw[len(raw)/2] ^= 1
			return raw
		},
		"truncated": func(raw []byte) []byte { return raw[:len(raw)/2] },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { damagedLayer(t, change) })
		})
	}
}

func damagedLayer(t *testing.T, change func([]byte) []byte) {
	p := &pooling{world: newWorld(t)}
	key, file := p.layer()
	p.a = p.open(agent.Config{Blanks: 1})
	p.snap = p.warm(p.a)
	lives := p.restored()
	p.start(p.a, lives)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, change(append([]byte(nil), whole...)), 0o400); err != nil {
		t.Fatal(err)
	}

	var made atomic.Int64
	p.on(func(_ context.Context, op string) error {
		if strings.HasPrefix(op, "driver.start") || strings.HasPrefix(op, "driver.prepare") || op == "net.acquire" {
			made.Add(1)
		}
		return nil
	})
	refused := func(what string, req node.StartRequest) {
		t.Helper()
		_, err := p.a.Start(t.Context(), req)
		if hearth.KindOf(err) != hearth.FailedPrecondition || !strings.Contains(err.Error(), key+" is damaged") || !strings.Contains(err.Error(), "it was not started") {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("a boot", p.request())
	refused("a restore", p.restored())
	build := p.request()
	build.Sandbox.ID = hearth.BuildMachineID("build-1")
	refused("a template's machine", build)
	back := lives
	back.Revert, back.Sandbox.Generation = true, 2
	refused("a rollback", back)
	p.wantWord(p.a, lives, "warm") // the one that ran before is as it was
	p.wantHeld(1)

	p.run()
	p.keep(1)
	p.empty() // now it is the blank's turn
	time.Sleep(5 * time.Minute)
	p.keep(1)
	time.Sleep(5 * time.Minute)
	p.wantHeld(1)
	if n := made.Load(); n != 0 {
		t.Errorf("%d machines were begun on a damaged layer", n)
	}

	if err := os.WriteFile(file, whole, 0o400); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Minute)
	synctest.Wait()
	p.wantHeld(3) // nothing else was in the way of pool and blank
	p.wantBlank(0, 1)
	p.start(p.a, p.restored())
	p.start(p.a, p.request())
	p.end()
}
