package agent_test

import (
	"slices"
	"testing"

	"hearth/internal/driver/fake"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/node/agent"
	"hearth/internal/node/nodetest"
)

// newWorldOfTwo has a second driver, "vm", and a third that restores alone.
func newWorldOfTwo(t *testing.T) (*world, agent.Config) {
	w := newWorld(t)
	w.others = map[string]*fake.Host{}
	for _, name := range []string{"vm", "old"} {
		w.others[name] = fake.NewHost(fake.Config{Name: name, Key: name + "-1", Isolation: hearth.HardwareVM, Program: nodetest.Daemon})
	}
	return w, agent.Config{Driver: fake.Name, Offers: []string{"vm"}}
}

func TestDriverIsChosenPerStart(t *testing.T) {
	w, cfg := newWorldOfTwo(t)
	a := w.open(cfg)
	s, err := a.Status(t.Context())
	if err != nil || !slices.Equal(s.Offers, []string{"fake", "vm"}) || !slices.Equal(s.Drivers, []string{"fake", "old", "vm"}) {
		t.Fatalf("status %+v, %v", s, err)
	}
	for _, tc := range []struct {
		ask, want string
		isolation hearth.Isolation
	}{{"", "fake", hearth.NoIsolation}, {"fake", "fake", hearth.NoIsolation}, {"vm", "vm", hearth.HardwareVM}} {
		req := w.request()
		req.Driver = tc.ask
		inst, err := a.Start(t.Context(), req)
		if err != nil || inst.Driver != tc.want || inst.Isolation != tc.isolation {
			t.Errorf("asked for %q: %+v, %v", tc.ask, inst, err)
		}
	}
	req := w.request()
	req.Driver = "magic"
	if _, err := a.Start(t.Context(), req); hearth.KindOf(err) != hearth.FailedPrecondition || err == nil {
		t.Errorf("a driver that is not there: %v", err)
	}
	if n := len(w.host.Machines()); n != 2 {
		t.Errorf("%d machines on fake, want 2", n)
	}
	if n := len(w.others["vm"].Machines()); n != 1 {
		t.Errorf("%d machines on vm, want 1", n)
	}
	if err := a.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestResumeKeepsTheDriver pauses, restarts the agent and resumes; whatever the
// request says, a snapshot goes to the driver that wrote it.
func TestResumeKeepsTheDriver(t *testing.T) {
	w, cfg := newWorldOfTwo(t)
	a := w.open(cfg)
	req := w.request()
	req.Driver = "old" // offered in an earlier life
	w.start(a, req)
	w.poke(a, req, "kept")
	snap, err := a.Pause(t.Context(), req.Sandbox.ID, node.PauseRequest{Into: hearth.NewSnapshotID()})
	if err != nil || snap.Driver != "old" || snap.Key != "old-1" {
		t.Fatalf("snapshot %+v, %v", snap, err)
	}
	a.Close()
	a = w.open(cfg)
	req.Restore, req.Driver = snap, "vm"
	req.Sandbox.Generation++
	inst, err := a.Start(t.Context(), req)
	if err != nil || inst.Driver != "old" {
		t.Fatalf("resumed %+v, %v", inst, err)
	}
	w.wantWord(a, req, "kept")
	a.Close()
	a = w.open(cfg) // and a machine of it is found again
	list, err := a.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Driver != "old" || list[0].Isolation != hearth.HardwareVM {
		t.Fatalf("listed %+v, %v", list, err)
	}
	w.wantWord(a, req, "kept")
	if err := a.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(w.others["old"].Machines()); n != 0 {
		t.Errorf("%d machines left", n)
	}
}

// TestBootRunsTheBuildsCommands: what starts without a warm snapshot is brought
// to the state in which the others begin; what is restored is there already.
func TestBootRunsTheBuildsCommands(t *testing.T) {
	w, cfg := newWorldOfTwo(t)
	a := w.open(cfg)
	req := w.request()
	req.Build.Start = "serve"
	w.start(a, req)
	restored := w.request()
	restored.Restore = w.warm(a)
	w.start(a, restored)
	if got := w.prepared; len(got) != 2 || got[0] != "serve" { // the second is warm's own boot
		t.Errorf("guests were prepared with %q", got)
	}
	w.failOnce("guest.prepare")
	failing := w.request()
	if _, err := a.Start(t.Context(), failing); err == nil {
		t.Error("a sandbox started whose commands failed")
	}
	w.wantHeld(2)
	w.shutdown(a)
}
