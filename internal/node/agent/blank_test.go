package agent_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/driver"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/node/agent"
)

// newBlanks is an agent with a pool that holds no machine, and blanks behind it.
func newBlanks(t *testing.T, cfg agent.Config, blanks int) *pooling {
	t.Helper()
	cfg.Blanks = blanks
	p := newPooling(t, cfg)
	p.empty()
	p.wantHeld(blanks)
	return p
}

// empty keeps a pool without machines.
func (p *pooling) empty() {
	p.t.Helper()
	if err := p.a.Keep(p.t.Context(), []node.Pool{{Build: p.request().Build, Snapshot: *p.snap}}); err != nil {
		p.t.Fatal(err)
	}
	synctest.Wait()
}

func (p *pooling) wantBlank(used int64, ready int) {
	p.t.Helper()
	if s := p.a.Stats(); s.Blank != used || s.Blanks != ready {
		p.t.Fatalf("%d starts found a blank and %d wait, want %d and %d", s.Blank, s.Blanks, used, ready)
	}
}

// calm waits until blanks are made again.
func calm() {
	time.Sleep(time.Second)
	synctest.Wait()
}

func TestBlankServesStartResumeAndRollback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newBlanks(t, agent.Config{}, 2)
		req := p.restored()
		p.start(p.a, req)
		p.wantWord(p.a, req, "warm")
		p.wantBlank(1, 1) // no other is made just after a start
		calm()
		p.wantHeld(3)
		p.poke(p.a, req, "mine")
		snap, err := p.a.Pause(t.Context(), req.Sandbox.ID, node.PauseRequest{Into: hearth.NewSnapshotID()})
		if err != nil {
			t.Fatal(err)
		}
		req.Restore, req.Sandbox.Generation = snap, 2
		p.start(p.a, req)
		p.wantWord(p.a, req, "mine")
		p.wantBlank(2, 1)
		req.Restore, req.Revert, req.Sandbox.Generation = p.snap, true, 3
		p.start(p.a, req)
		p.wantBlank(3, 0)
		calm()
		p.wantHeld(3)
		p.wantServed(0, 3)
		p.end()
	})
}

func TestBlanksServeStartsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newBlanks(t, agent.Config{Starts: 4}, 2)
		var users sync.WaitGroup
		for range 4 {
			users.Go(func() {
				req := p.restored()
				p.start(p.a, req)
				p.wantWord(p.a, req, "warm")
			})
		}
		users.Wait()
		p.wantBlank(2, 0) // each was used once
		calm()
		p.wantHeld(6)
		p.end()
	})
}

// TestBlankIsNotForAnotherShape: nor for what boots.
func TestBlankIsNotForAnotherShape(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newBlanks(t, agent.Config{}, 1)
		req := p.restored()
		req.Sandbox.Resources.MemoryMiB *= 2
		p.start(p.a, req)
		p.start(p.a, p.request())
		p.wantBlank(0, 1)
		p.end()
	})
}

// TestPoolComesBeforeBlanks: nothing is taken from them for a pool, and none are
// made while a pool lacks machines.
func TestPoolComesBeforeBlanks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooling(t, agent.Config{Blanks: 2})
		var mu sync.Mutex
		var order []string
		p.on(func(_ context.Context, op string) error {
			if op == "driver.start" || op == "driver.prepare" || op == "driver.restore" {
				mu.Lock()
				order = append(order, op)
				mu.Unlock()
			}
			return nil
		})
		p.keep(2)
		p.wantHeld(4)
		want := []string{"driver.start", "driver.start", "driver.prepare", "driver.prepare"}
		if len(order) != len(want) || order[0] != want[0] || order[1] != want[1] || order[2] != want[2] {
			t.Fatalf("made %v, want %v", order, want)
		}
		p.start(p.a, p.restored())
		p.wantServed(1, 0)
		p.wantBlank(0, 2)
		p.end()
	})
}

func TestBrokenBlankFallsBack(t *testing.T) {
	for _, op := range []string{"driver.restore", "net.policy"} {
		t.Run(op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newBlanks(t, agent.Config{}, 1)
				p.halt()
				p.failOnce(op)
				req := p.restored()
				p.start(p.a, req)
				p.on(nil)
				p.wantWord(p.a, req, "warm")
				p.wantServed(0, 1)
				p.wantBlank(0, 0)
				p.wantHeld(1)
				p.end()
			})
		})
	}
}

func TestBlankThatDiesIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newBlanks(t, agent.Config{}, 1)
		old := p.host.Machines()[0]
		if err := p.host.Kill(old, driver.Exit{Reason: "killed"}); err != nil {
			t.Fatal(err)
		}
		calm()
		p.wantHeld(1)
		if now := p.host.Machines()[0]; now == old {
			t.Fatal("the dead one is still there")
		}
		p.start(p.a, p.restored())
		p.wantBlank(1, 0)
		p.end()
	})
}

// TestBlankThatDiesInUse: the machine dies while it is restored, and as it is handed over.
func TestBlankThatDiesInUse(t *testing.T) {
	for _, op := range []string{"driver.restore", "guest.init"} {
		synctest.Test(t, func(t *testing.T) {
			p := newBlanks(t, agent.Config{}, 1)
			blank := p.host.Machines()[0]
			var once sync.Once
			p.on(func(_ context.Context, got string) error {
				if got == op {
					once.Do(func() { _ = p.host.Kill(blank, driver.Exit{Reason: "killed"}) })
				}
				return nil
			})
			req := p.restored()
			_, err := p.a.Start(t.Context(), req)
			if op == "driver.restore" && err != nil || op == "guest.init" && hearth.KindOf(err) != hearth.Unavailable {
				t.Fatalf("%s: %v", op, err)
			}
			p.on(nil)
			calm()
			p.wantHeld(map[string]int{"driver.restore": 2, "guest.init": 1}[op])
			p.end()
		})
	}
}

// TestBlankOfACancelledStart: who waits no longer leaves nothing.
func TestBlankOfACancelledStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newBlanks(t, agent.Config{}, 1)
		ctx, cancel := context.WithCancel(t.Context())
		p.on(func(inner context.Context, op string) error {
			if op == "driver.restore" {
				cancel()
				<-inner.Done()
				return context.Cause(inner)
			}
			return nil
		})
		if _, err := p.a.Start(ctx, p.restored()); err == nil {
			t.Fatal("started")
		}
		p.on(nil)
		calm()
		p.wantHeld(1)
		p.wantBlank(0, 1)
		p.end()
	})
}

func TestBlanksThatCannotBeMadeWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooling(t, agent.Config{Blanks: 2})
		var tries atomic.Int64
		p.on(func(_ context.Context, op string) error {
			if op == "driver.prepare" {
				tries.Add(1)
				return hearth.Wrap(hearth.Internal, syscall.ENOSPC, "machine's directory cannot be written")
			}
			return nil
		})
		p.empty()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := tries.Load(); n < 2 || n > 8 {
			t.Fatalf("%d tries in a minute", n)
		}
		p.wantHeld(0)
		req := p.restored()
		p.start(p.a, req)
		p.wantWord(p.a, req, "warm")
		p.on(nil)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		p.wantHeld(3)
		p.end()
	})
}

func TestBlanksAreDrained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newBlanks(t, agent.Config{}, 2)
		p.keep(0)
		p.wantHeld(0)
		p.empty()
		p.wantHeld(2)
		p.setFree(1 << 20) // the host is short of memory
		time.Sleep(12 * time.Second)
		synctest.Wait()
		p.wantHeld(0)
		p.setFree(8 << 30)
		time.Sleep(time.Minute)
		synctest.Wait()
		p.wantHeld(2)
		p.end()
	})
}

func TestBlanksCountAsPoolMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooling(t, agent.Config{PoolMemory: 20 << 20, Blanks: 8}) // the first is guessed at 16 MiB, each holds 4
		p.empty()
		p.wantBlank(0, 5)
		p.end()
	})
}

func TestBlankGivesItsSlotToAUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newBlanks(t, agent.Config{}, 1)
		p.slots.limit = 1
		p.start(p.a, p.request()) // boots: no use for the blank but its slot
		synctest.Wait()
		p.wantHeld(1)
		p.wantBlank(0, 0)
		p.end()
	})
}

// TestBlankEndsWithTheAgent: it is neither left running nor found again; sandboxes are.
func TestBlankEndsWithTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newBlanks(t, agent.Config{}, 2)
		req := p.restored()
		p.start(p.a, req)
		p.a.Close()
		p.halt()
		p.wantHeld(1)
		p.a = p.open(agent.Config{Blanks: 2})
		p.run()
		p.empty()
		p.wantWord(p.a, req, "warm")
		p.wantBlank(0, 2)
		p.end()
	})
}

// TestCrashedBlankIsSwept: the process dies while it prepares one, while one waits,
// and while one is restored.
func TestCrashedBlankIsSwept(t *testing.T) {
	for _, op := range []string{"driver.prepare", "wait", "driver.restore", "guest.init"} {
		t.Run(op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPooling(t, agent.Config{Blanks: 1})
				reached, tomb := make(chan struct{}), make(chan struct{})
				var once sync.Once
				p.on(func(_ context.Context, got string) (err error) {
					if got == op {
						once.Do(func() {
							close(reached)
							<-tomb
							err = errors.New("dead")
						})
					}
					return err
				})
				old := p.a
				var users sync.WaitGroup
				p.empty()
				switch op {
				case "wait":
					close(reached)
				case "driver.restore", "guest.init":
					users.Go(func() { _, _ = old.Start(t.Context(), p.restored()) })
				}
				<-reached
				old.Drop()
				p.a = p.open(agent.Config{})
				p.wantHeld(0)
				p.shutdown(p.a)
				close(tomb)
				users.Wait()
				old.Close()
				p.halt()
			})
		})
	}
}
