package agent_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/driver"
	"hearth/internal/driver/fake"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/node/agent"
)

// pooling is an agent that runs, with a warm snapshot.
type pooling struct {
	*world
	a    *agent.Agent
	snap *hearth.Snapshot
	ran  sync.WaitGroup
	stop context.CancelFunc
}

func newPooling(t *testing.T, cfg agent.Config) *pooling {
	p := &pooling{world: newWorld(t)}
	p.a = p.open(cfg)
	p.snap = p.warm(p.a)
	p.run()
	return p
}

func (p *pooling) run() {
	a := p.a
	ctx, cancel := context.WithCancel(context.WithoutCancel(p.t.Context()))
	p.stop = cancel
	p.ran.Go(func() { _ = a.Run(ctx) })
}

// halt ends Run; the agent works on.
func (p *pooling) halt() {
	p.stop()
	p.ran.Wait()
}

func (p *pooling) keep(n int) {
	p.t.Helper()
	var pools []node.Pool
	if n > 0 {
		pools = []node.Pool{{Build: p.request().Build, Snapshot: *p.snap, Floor: n}}
	}
	if err := p.a.Keep(p.t.Context(), pools); err != nil {
		p.t.Fatal(err)
	}
	synctest.Wait()
}

// restored is a request for a sandbox of the warm snapshot.
func (p *pooling) restored() node.StartRequest {
	req := p.request()
	req.Restore = p.snap
	return req
}

func (p *pooling) wantServed(warm, cold int64) {
	p.t.Helper()
	if s := p.a.Stats(); s.Warm != warm || s.Cold-1 != cold { // one cold start made the snapshot
		p.t.Fatalf("%d warm and %d cold starts, want %d and %d", s.Warm, s.Cold-1, warm, cold)
	}
}

func (p *pooling) end() {
	p.t.Helper()
	p.on(nil)
	p.shutdown(p.a)
	p.halt()
}

func TestPoolServesAndRefills(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooling(t, agent.Config{})
		p.keep(3)
		p.wantHeld(3)
		for _, m := range p.host.Machines() {
			if !p.host.Frozen(m) {
				t.Fatal("a machine of the pool is not frozen")
			}
			if p.host.Guest(m).Load("control") != "" {
				t.Fatal("a machine of the pool was unsealed")
			}
		}
		a, b := p.restored(), p.restored()
		p.start(p.a, a)
		p.start(p.a, b)
		p.poke(p.a, a, "mine")
		p.wantWord(p.a, b, "warm")
		synctest.Wait()
		p.wantHeld(3) // one is left: the next is made in a moment
		p.start(p.a, p.restored())
		synctest.Wait()
		p.wantHeld(4) // none was left: the next is made at once
		time.Sleep(time.Second)
		synctest.Wait()
		p.wantHeld(6)
		p.wantServed(3, 0)
		p.end()
	})
}

// TestPoolLeavesNewSandboxesAlone: while a pool has enough machines, none is made in
// the moment after a start, when its sandbox is first used.
func TestPoolLeavesNewSandboxesAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooling(t, agent.Config{})
		p.keep(4)
		for range 3 {
			p.start(p.a, p.restored())
			time.Sleep(50 * time.Millisecond)
			synctest.Wait()
			if n := p.a.Stats().Pooled; n >= 4 {
				t.Fatalf("%d machines in the pool just after a start", n)
			}
		}
		p.wantHeld(3 + 2) // with a quarter left, the next was made sooner
		time.Sleep(time.Second)
		synctest.Wait()
		p.wantHeld(3 + 4)
		p.end()
	})
}

// TestPoolRehearses: machines are used once before they wait, and one whose daemon
// cannot do that waits all the same.
func TestPoolRehearses(t *testing.T) {
	for _, broken := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			p := newPooling(t, agent.Config{})
			var rehearsed atomic.Int64
			p.on(func(_ context.Context, op string) error {
				if op != "guest.rehearse" {
					return nil
				}
				rehearsed.Add(1)
				if broken {
					return errBoom
				}
				return nil
			})
			p.keep(2)
			p.wantHeld(2)
			if n := rehearsed.Load(); n != 2 {
				t.Fatalf("%d rehearsals of two machines", n)
			}
			p.start(p.a, p.restored())
			p.wantServed(1, 0)
			p.end()
		})
	}
}

// TestPoolThatIsEmptySavesRehearsals: a machine that is made while a user's start is under
// way and none is ready will hardly wait, so it is not prepared for that.
func TestPoolThatIsEmptySavesRehearsals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooling(t, agent.Config{Starts: 3, PoolFills: 1, PoolCeiling: 2})
		gates := map[string]chan struct{}{"guest.ready": make(chan struct{}), "guest.init": make(chan struct{})}
		var rehearsed atomic.Int32
		p.on(func(_ context.Context, op string) error {
			if op == "guest.rehearse" {
				rehearsed.Add(1)
			}
			if gate := gates[op]; gate != nil {
				<-gate
			}
			return nil
		})
		p.keep(2) // the first is restored
		var user sync.WaitGroup
		user.Go(func() { p.start(p.a, p.request()) })
		synctest.Wait()
		close(gates["guest.ready"])
		synctest.Wait() // the second gives way for a while
		if ready := p.a.Stats().Pooled; ready != 1 || rehearsed.Load() != 0 {
			t.Fatalf("%d machines ready after %d rehearsals, want 1 and none", ready, rehearsed.Load())
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if ready := p.a.Stats().Pooled; ready != 2 || rehearsed.Load() != 1 {
			t.Fatalf("%d machines ready after %d rehearsals, want 2 and 1: the pool was not empty any more", ready, rehearsed.Load())
		}
		close(gates["guest.init"])
		user.Wait()
		p.end()
	})
}

func TestPoolIsDrained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooling(t, agent.Config{})
		p.keep(3)
		p.keep(1)
		p.wantHeld(1)
		p.keep(0)
		p.wantHeld(0)
		p.end()
	})
}

func TestBrokenPoolMachinesFallBack(t *testing.T) {
	for _, op := range []string{"driver.thaw", "guest.init", "guest.init.after", "net.policy"} {
		t.Run(op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPooling(t, agent.Config{PoolCeiling: 1})
				p.keep(1)
				p.halt() // no other machine comes to help
				p.failOnce(op)
				req := p.restored()
				p.start(p.a, req)
				p.on(nil)
				p.wantWord(p.a, req, "warm")
				p.wantServed(0, 1)
				p.wantHeld(1)
				p.end()
			})
		})
	}
}

func TestPoolMachineThatDiesIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooling(t, agent.Config{})
		p.keep(1)
		old := p.host.Machines()[0]
		if err := p.host.Kill(old, driver.Exit{Reason: "killed"}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		p.wantHeld(1)
		if now := p.host.Machines()[0]; now == old {
			t.Fatal("the dead machine is still there")
		}
		p.end()
	})
}

func TestPoolThatCannotBeFilledWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooling(t, agent.Config{})
		var tries atomic.Int64
		p.on(func(_ context.Context, op string) error {
			if op == "guest.ready" {
				tries.Add(1)
				return errBoom
			}
			return nil
		})
		p.keep(2)
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := tries.Load(); n < 2 || n > 8 {
			t.Fatalf("%d tries in a minute", n)
		}
		p.wantHeld(0)
		p.on(nil)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		p.wantHeld(2)
		p.end()
	})
}

func TestPoolKeepsToItsMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooling(t, agent.Config{PoolMemory: 64<<20 + 2*8<<20}) // the first is guessed at 64 MiB, each holds 8
		p.keep(50)
		if n := p.a.Stats().Pooled; n != 10 {
			t.Fatalf("%d machines in 80 MiB, want 10", n)
		}
		p.setFree(1 << 20)
		time.Sleep(12 * time.Second)
		synctest.Wait()
		if n := p.a.Stats().Pooled; n >= 10 {
			t.Fatalf("%d machines while the host is short of memory", n)
		}
		p.end()
	})
}

func TestPoolGivesItsSlotToAUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooling(t, agent.Config{})
		p.slots.limit = 2
		p.keep(2)
		p.start(p.a, p.request()) // boots: no use for the pool's machines but their slots
		p.start(p.a, p.request())
		synctest.Wait()
		p.wantHeld(2)
		_, err := p.a.Start(t.Context(), p.request())
		if hearth.KindOf(err) != hearth.ResourceExhausted {
			t.Fatalf("got %v", err)
		}
		p.end()
	})
}

func TestPoolIsOnlyForItsOwnSize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooling(t, agent.Config{})
		p.keep(1)
		req := p.restored()
		req.Sandbox.Resources.MemoryMiB *= 2
		p.start(p.a, req)
		p.wantServed(0, 1)
		p.end()
	})
}

func TestPoolOutlivesTheProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooling(t, agent.Config{})
		p.keep(2)
		before := p.host.Boots()
		p.a.Close()
		p.halt()
		p.a = p.open(agent.Config{})
		p.run()
		synctest.Wait()
		p.wantHeld(2)
		p.keep(2)
		p.start(p.a, p.restored())
		time.Sleep(time.Second)
		synctest.Wait()
		if n := p.host.Boots() - before; n != 1 {
			t.Fatalf("%d machines were started, want the one that refills", n)
		}
		p.end()
	})
}

func TestUsersGoBeforeThePool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooling(t, agent.Config{Starts: 1, PoolFills: 4})
		var mu sync.Mutex
		var order []bool // whether each start was a user's
		gate := make(chan struct{})
		p.on(func(_ context.Context, op string) error {
			switch op {
			case "driver.start":
				<-gate
			case "guest.init", "guest.ready":
				mu.Lock()
				order = append(order, op == "guest.init")
				mu.Unlock()
			}
			return nil
		})
		p.keep(4) // one fill goes ahead, three wait
		var users sync.WaitGroup
		for range 3 {
			users.Go(func() { p.start(p.a, p.request()) })
		}
		synctest.Wait()
		close(gate)
		users.Wait()
		synctest.Wait()
		if len(order) != 7 || order[0] || !order[1] || !order[2] || !order[3] {
			t.Fatalf("order of starts (true: a user's): %v", order)
		}
		p.end()
	})
}

func TestCrashedFillIsSwept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooling(t, agent.Config{})
		reached, tomb := make(chan struct{}), make(chan struct{})
		var once atomic.Bool
		p.on(func(_ context.Context, op string) error {
			if op == "driver."+string(fake.Freeze) && once.CompareAndSwap(false, true) {
				close(reached)
				<-tomb
				return errBoom
			}
			return nil
		})
		old := p.a
		p.keep(1)
		<-reached
		old.Drop()
		p.a = p.open(agent.Config{})
		p.wantHeld(0)
		p.shutdown(p.a)
		close(tomb)
		old.Close()
		p.halt()
	})
}

// TestPoolFollowsDemand: a burst makes the pool grow to what it took, within the
// ceiling, and ten quiet minutes let it shrink again.
func TestPoolFollowsDemand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPooling(t, agent.Config{})
		if err := p.a.Keep(t.Context(), []node.Pool{{Build: p.request().Build, Snapshot: *p.snap, Floor: 1, Ceiling: 3}}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		p.wantHeld(1)
		for range 5 {
			p.start(p.a, p.restored())
		}
		time.Sleep(time.Second)
		synctest.Wait()
		p.wantHeld(5 + 3) // five were asked for at once, three are allowed
		time.Sleep(11 * time.Minute)
		synctest.Wait()
		p.wantHeld(5 + 1)
		p.end()
	})
}
