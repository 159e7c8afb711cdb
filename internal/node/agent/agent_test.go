package agent_test

import (
	"context"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/driver"
	"hearth/internal/driver/fake"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/node/agent"
	"hearth/internal/node/nodetest"
)

func TestConformance(t *testing.T) {
	conformance(t, fake.Config{Program: nodetest.Daemon})
}

func TestConformanceWithLayeredCheckpoints(t *testing.T) { conformance(t, layered) }

func conformance(t *testing.T, cfg fake.Config) {
	nodetest.Run(t, func(t *testing.T) *nodetest.Env {
		w := newWorldOf(t, cfg)
		a := w.open(agent.Config{})
		t.Cleanup(a.Close)
		return &nodetest.Env{
			Node: a, Request: w.request, Poke: nodetest.Poke, Peek: nodetest.Peek,
			Closed: nodetest.ClosedPort, Loopback: nodetest.LoopbackPort,
			Kill: func(id hearth.SandboxID) error {
				for _, m := range w.host.Machines() {
					if g := w.host.Guest(m); g != nil && g.Load("id") == string(id) {
						return w.host.Kill(m, driver.Exit{Code: 137, OOM: true})
					}
				}
				return hearth.Errorf(hearth.NotFound, "no machine of %s", id)
			},
			Machines: func() int { return len(w.host.Machines()) },
			Settled:  func(*testing.T) { w.wantHeld(0) },
		}
	})
}

// TestFailuresLeaveNothing fails every operation of a start in turn.
func TestFailuresLeaveNothing(t *testing.T) {
	for _, op := range []string{"net.acquire", "net.policy", "driver.start", "guest.init", "guest.init.after"} {
		for _, how := range []string{"boot", "restore"} {
			t.Run(how+"/"+op, func(t *testing.T) {
				w := newWorld(t)
				a := w.open(agent.Config{})
				req := w.request()
				if how == "restore" {
					req.Restore = w.warm(a)
				}
				w.failOnce(op)
				if _, err := a.Start(t.Context(), req); err == nil {
					t.Fatal("Start went well")
				}
				w.wantHeld(0)
				w.start(a, req) // the same generation may be tried again
				w.wantHeld(1)
				w.shutdown(a)
			})
		}
	}
}

// TestFailedPauseRunsOn fails every operation of a pause in turn.
func TestFailedPauseRunsOn(t *testing.T) {
	for _, op := range []string{"guest.quiesce", "guest.quiesce.after", "driver.freeze", "driver.checkpoint", "blob.adopt", "blob.adopt.after", "blob.put", "blob.put.after"} {
		t.Run(op, func(t *testing.T) {
			w := newWorld(t)
			a := w.open(agent.Config{})
			req := w.request()
			w.start(a, req)
			w.poke(a, req, "precious")
			into := node.PauseRequest{Into: hearth.NewSnapshotID()}
			w.failOnce(op)
			if _, err := a.Pause(t.Context(), req.Sandbox.ID, into); err == nil {
				t.Fatal("Pause went well")
			}
			w.wantHeld(1)
			if k := w.blobs.keys(); len(k) != 0 {
				t.Fatalf("blobs left: %v", k)
			}
			w.wantWord(a, req, "precious")
			snap, err := a.Pause(t.Context(), req.Sandbox.ID, into) // and the next try succeeds
			if err != nil {
				t.Fatal(err)
			}
			req.Restore, req.Sandbox.Generation = snap, 2
			w.start(a, req)
			w.wantWord(a, req, "precious")
			w.shutdown(a)
		})
	}
}

// TestCallsOfWhatIsGone: whoever asks for a sandbox while another one ends it is told
// that it has ended, in words that are his.
func TestCallsOfWhatIsGone(t *testing.T) {
	w := newWorld(t)
	a := w.open(agent.Config{})
	defer w.shutdown(a)
	for name, call := range map[string]func() error{
		"pause": func() error {
			_, err := a.Pause(t.Context(), "gone", node.PauseRequest{Into: hearth.NewSnapshotID()})
			return err
		},
		"snapshot": func() error {
			_, err := a.Snapshot(t.Context(), "gone", node.SnapshotRequest{Into: hearth.NewSnapshotID()})
			return err
		},
	} {
		if err := call(); hearth.KindOf(err) != hearth.NotFound || hearth.Shown(err) != "sandbox gone was not found, or has ended" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestStoppedDaemon: root inside can stop the daemon. A pause then fails once,
// with an error that nobody repeats by himself, and a stop waits for neither the
// pause nor for taking it back.
func TestStoppedDaemon(t *testing.T) {
	pause := func(a *agent.Agent, id hearth.SandboxID) error {
		_, err := a.Pause(t.Context(), id, node.PauseRequest{Into: hearth.NewSnapshotID()})
		return err
	}
	snapshot := func(a *agent.Agent, id hearth.SandboxID) error {
		_, err := a.Snapshot(t.Context(), id, node.SnapshotRequest{Into: hearth.NewSnapshotID()})
		return err
	}
	for _, tc := range []struct {
		name, at string
		call     func(*agent.Agent, hearth.SandboxID) error
	}{
		{"pause, quiesce", "guest.quiesce", pause}, {"pause, init", "guest.init", pause},
		{"snapshot, quiesce", "guest.quiesce", snapshot}, {"snapshot, init", "guest.init", snapshot},
	} {
		t.Run(tc.name, func(t *testing.T) {
			at := tc.at
			w := newWorld(t)
			a := w.open(agent.Config{})
			req := w.request()
			w.start(a, req)
			hangs := make(chan struct{})
			var once sync.Once
			w.on(func(ctx context.Context, op string) error {
				if op == at {
					once.Do(func() { close(hangs) })
					<-ctx.Done()
				}
				if op == at || op == "guest.quiesce" {
					return hearth.Errorf(hearth.Unavailable, "no answer")
				}
				return nil
			})
			called := make(chan error, 1)
			go func() { called <- tc.call(a, req.Sandbox.ID) }()
			<-hangs
			began := time.Now()
			if err := a.Stop(t.Context(), req.Sandbox.ID, "killed"); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("Stop waited %s for the daemon", took)
			}
			if err := <-called; err == nil || hearth.KindOf(err) == hearth.Unavailable {
				t.Errorf("the call: %v", err)
			}
			w.shutdown(a)
		})
	}
}

func TestSandboxThatCannotGoOnEnds(t *testing.T) {
	w := newWorld(t)
	a := w.open(agent.Config{})
	events := a.Events(t.Context())
	req := w.request()
	w.start(a, req)
	w.host.Fail(fake.Checkpoint, errBoom)
	w.host.Fail(fake.Thaw, errBoom)
	if _, err := a.Pause(t.Context(), req.Sandbox.ID, node.PauseRequest{Into: hearth.NewSnapshotID()}); err == nil {
		t.Fatal("Pause went well")
	}
	w.wantHeld(0)
	for e, err := range events {
		if err != nil || e.ID != req.Sandbox.ID || e.State != hearth.Stopped {
			t.Fatalf("%+v, %v", e, err)
		}
		break
	}
	w.shutdown(a)
}

func TestWhatCannotBeTakenDownIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.open(agent.Config{})
		ran := make(chan error)
		go func() { ran <- a.Run(t.Context()) }()
		req := w.request()
		w.start(a, req)
		w.host.Fail(fake.Close, errBoom)
		w.host.Fail(fake.Sweep, errBoom)
		if err := a.Stop(t.Context(), req.Sandbox.ID, "test"); err != nil {
			t.Fatal(err)
		}
		if n := a.Stats().Undead; n != 1 {
			t.Fatalf("%d machines could not be taken down, want 1", n)
		}
		w.wantHeld(1) // its slot is not given to another
		time.Sleep(6 * time.Second)
		synctest.Wait()
		w.wantHeld(0)
		w.shutdown(a)
		<-ran
	})
}

func TestDamagedSnapshotIsNotRun(t *testing.T) {
	damage := map[string]func(path string) error{
		"bit flip": func(p string) error {
			raw, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			raw[len(raw)/2] ^= 1
			return rewrite(p, raw)
		},
		"truncated": func(p string) error { return rewrite(p, []byte("{")) },
		"gone":      os.Remove,
	}
	for name, f := range damage {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a := w.open(agent.Config{})
			req := w.request()
			req.Restore = w.warm(a)
			a.Close()
			a = w.open(agent.Config{}) // verified again by each process
			path, err := w.blobs.Path(t.Context(), req.Restore.Files[0].Blob)
			if err != nil {
				t.Fatal(err)
			}
			if err := f(path); err != nil {
				t.Fatal(err)
			}
			boots := w.host.Boots()
			if _, err := a.Start(t.Context(), req); err == nil {
				t.Fatal("a damaged snapshot was started")
			}
			if w.host.Boots() != boots {
				t.Fatal("a damaged snapshot ran")
			}
			w.shutdown(a)
		})
	}
}

func rewrite(path string, raw []byte) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return os.WriteFile(path, raw, 0o400)
}

func TestSnapshotOfAnotherHostIsRefused(t *testing.T) {
	w := newWorld(t)
	a := w.open(agent.Config{})
	req := w.request()
	req.Restore = w.warm(a)
	req.Restore.Key = "another CPU"
	_, err := a.Start(t.Context(), req)
	if hearth.KindOf(err) != hearth.FailedPrecondition || !strings.Contains(err.Error(), "another CPU") {
		t.Fatalf("got %v", err)
	}
	w.shutdown(a)
}

// TestBurstIsServedInOrder starts a thousand at once, two at a time.
func TestBurstIsServedInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.open(agent.Config{Starts: 2, Queue: 500})
		gate := make(chan struct{})
		var mu sync.Mutex
		atOnce, most := 0, 0
		w.on(func(_ context.Context, op string) error {
			switch op {
			case "driver.start":
				<-gate
				mu.Lock()
				atOnce++
				most = max(most, atOnce)
				mu.Unlock()
			case "guest.init.after":
				mu.Lock()
				atOnce--
				mu.Unlock()
			}
			return nil
		})
		var all sync.WaitGroup
		var ok, busy int
		for range 1000 {
			all.Go(func() {
				_, err := a.Start(t.Context(), w.request())
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					ok++
				case hearth.KindOf(err) == hearth.ResourceExhausted:
					busy++
				default:
					t.Errorf("Start: %v", err)
				}
			})
		}
		synctest.Wait()
		close(gate)
		all.Wait()
		if ok != 502 || busy != 498 || most > 2 {
			t.Fatalf("%d started, %d refused, %d at once; want 502, 498, at most 2", ok, busy, most)
		}
		w.on(nil)
		w.shutdown(a)
	})
}

func TestStartIsCalledOffWhenNobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.open(agent.Config{})
		w.on(func(ctx context.Context, op string) error {
			if op == "guest.init" {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.Start(ctx, w.request()); hearth.KindOf(err) != hearth.DeadlineExceeded {
			t.Fatalf("got %v", err)
		}
		synctest.Wait()
		w.wantHeld(0)
		w.on(nil)
		w.shutdown(a)
	})
}

func TestGuestThatDiesWhileItStartsIsReported(t *testing.T) {
	w := newWorld(t)
	a := w.open(agent.Config{})
	w.on(func(ctx context.Context, op string) error {
		if op == "guest.init" {
			_ = w.host.Kill(w.host.Machines()[0], driver.Exit{OOM: true})
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	})
	_, err := a.Start(t.Context(), w.request())
	if err == nil || !strings.Contains(err.Error(), "out of memory") {
		t.Fatalf("got %v", err)
	}
	w.wantHeld(0)
	w.on(nil)
	w.shutdown(a)
}

// TestMachinesGetTheNetworkTheyNeed boots, restores and takes up machines that
// send through a tap; the fake driver refuses any other network.
func TestMachinesGetTheNetworkTheyNeed(t *testing.T) {
	w := newWorldOf(t, fake.Config{Program: nodetest.Daemon, Tap: true})
	a := w.open(agent.Config{})
	snap := w.warm(a)
	req := w.request()
	req.Restore = snap
	w.start(a, req)
	a.Close()
	b := w.open(agent.Config{})
	w.poke(b, req, "on")
	w.wantHeld(1)
	w.failOnce("net.acquire")
	if _, err := b.Start(t.Context(), w.request()); err == nil {
		t.Error("a sandbox started without a slot")
	}
	w.wantHeld(1)
	w.shutdown(b)
}

func TestUpdateThatIsRefusedChangesNothing(t *testing.T) {
	w := newWorld(t)
	a := w.open(agent.Config{})
	req := w.request()
	req.Sandbox.Network.AllowOut = []string{"bad"}
	if _, err := a.Start(t.Context(), req); hearth.KindOf(err) != hearth.InvalidArgument {
		t.Fatalf("Start with a bad policy: %v", err)
	}
	w.wantHeld(0)
	req.Sandbox.Network.AllowOut = []string{"1.2.3.4"}
	w.start(a, req)
	if err := a.Update(t.Context(), req.Sandbox.ID, hearth.Network{AllowOut: []string{"bad"}}); hearth.KindOf(err) != hearth.InvalidArgument {
		t.Fatalf("Update: %v", err)
	}
	w.shutdown(a)
}

func TestSecretsAreNotWorldReadable(t *testing.T) {
	w := newWorld(t)
	a := w.open(agent.Config{})
	w.start(a, w.request())
	for _, p := range []string{"control.key", "machines/" + w.host.Machines()[0] + ".json"} {
		info, err := os.Stat(w.dir + "/" + p)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", p, info.Mode(), err)
		}
	}
	w.shutdown(a)
}

func TestStepsAreTold(t *testing.T) {
	w := newWorld(t)
	a := w.open(agent.Config{})
	req := w.request()
	w.start(a, req)
	var names []string
	for _, s := range a.Steps(req.Sandbox.ID) {
		names = append(names, s.Name)
	}
	if got := strings.Join(names, " "); got != "queue files slot record policy machine init prepare record" {
		t.Fatalf("steps: %s", got)
	}
	w.shutdown(a)
}
