// Package agent implements node.Service on one host: it owns the host's
// machines, from network slot to guest daemon.
//
// A machine has one owner at any time: a start in flight, a pool, or a box (a
// sandbox's entry in the table). Whoever owns it may call the driver; per
// sandbox a keyed lock makes Start, Pause, Stop and Update take turns. Every
// machine has a journal entry from before it exists until after it is gone, and
// one function, discard, takes a machine down, be it after a failed start, a
// stop, a crash of the guest, or on recovery after a crash of this process.
//
// Files below Config.Dir:
//
//	control.key          32 random bytes, 0600: guests' control secrets are derived from it
//	machines/ID.json     the journal, see package journal; 0600, it holds sandboxes' tokens and environment
//	run/ID/              the driver's own directory of a machine
//	restore/ID/          links to the files of the snapshot that a machine was restored from, while it lives
//	checkpoint/ID/       a checkpoint being written, before its files become blobs
package agent

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"time"

	"hearth/internal/driver"
	"hearth/internal/guest"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/node/agent/feed"
	"hearth/internal/node/agent/host"
	"hearth/internal/node/agent/journal"
	"hearth/internal/node/agent/pool"
	"hearth/internal/node/agent/secret"
	"hearth/internal/node/agent/shelf"
	"hearth/internal/node/agent/turn"
)

// Config is what an operator may decide. Zero fields mean the defaults.
type Config struct {
	Node   hearth.NodeID
	Dir    string   // absolute; made by Open
	Plain  string   // likewise, for what checkpoints consist of; empty: Dir
	Driver string   // boots sandboxes that ask for none and that no snapshot restores; default: the only driver
	Offers []string // what other drivers a new sandbox may ask for; the rest restores what it wrote before
	DNS    []string // name servers of every sandbox

	Total hearth.Resources // what may be allocated; zero fields: what the host has

	Starts       int           // machines that boot or are restored at once; default: two per core
	Queue        int           // starts that may wait for their turn; default 1024
	StartTimeout time.Duration // of one machine, waiting for its turn included; default 2 min
	PauseTimeout time.Duration // of one checkpoint; default 5 min

	PoolFloor   int   // least machines kept per warm snapshot, whatever Keep asks
	PoolCeiling int   // most; default 64
	PoolMemory  int64 // bytes that all paused machines together may hold; default: a quarter of the host's
	PoolFills   int   // machines being made ready at once; default 1
	Blanks      int   // machines without a state kept behind the pools, for every shape of theirs; 0: none
	HostReserve int64 // bytes of host memory below which pools shrink; default: a sixteenth of the host's
}

// Slot is a ready place in the host's network, as package netns makes them.
type Slot struct {
	Index int // names the slot across restarts
	Net   driver.Attachment
}

// Network hands out slots. Implementations are safe for concurrent use.
type Network interface {
	// Acquire takes a free slot, through which nothing passes until SetPolicy.
	// ResourceExhausted when there is none.
	Acquire(ctx context.Context) (Slot, error)

	// AcquireTap is Acquire for a machine that sends through a tap device.
	AcquireTap(ctx context.Context) (Slot, error)

	// Attach takes the slot of a machine that outlived the process before.
	Attach(ctx context.Context, index int) (Slot, error)

	// SetPolicy is in force when it returns; InvalidArgument names the field.
	SetPolicy(ctx context.Context, index int, n hearth.Network) error

	// Release gives a slot back, closed. Idempotent.
	Release(ctx context.Context, index int) error

	// Sweep removes every slot that an earlier process made, but for those to keep.
	Sweep(ctx context.Context, keep []int) error
}

// Dialer connects to a TCP port of one machine.
type Dialer func(ctx context.Context, port uint16) (net.Conn, error)

// Guest is the host's side of one guest daemon.
type Guest interface {
	guest.Agent

	// Ready waits until the daemon answers its health check, sealed or not.
	Ready(ctx context.Context) error

	// Rehearse makes a sealed daemon that is nobody's yet do once what users ask of
	// it first, and returns when it has.
	Rehearse(ctx context.Context) error

	// Forward connects to a port on the guest's loopback.
	Forward(ctx context.Context, port uint16) (net.Conn, error)

	// Prepare runs the commands of a build in a guest that has booted and was
	// unsealed, and returns when its ready command has succeeded.
	Prepare(ctx context.Context, b *hearth.Build) error
}

// Deps are the parts an agent works with. All are needed but Memory, Now and Log.
type Deps struct {
	Drivers map[string]driver.Driver // by name
	Network Network
	Shelf   *shelf.Shelf // has the layers, too; nobody else holds anything on it
	Guest   func(dial Dialer, control string) Guest

	Memory func() (Memory, error) // of the host; default: /proc/meminfo
	Now    func() time.Time
	Log    *slog.Logger
}

// Agent is one host's node.Service.
type Agent struct {
	cfg  Config
	deps Deps
	log  *slog.Logger
	now  func() time.Time

	journal *journal.Journal
	hub     *feed.Hub
	shelf   *shelf.Shelf
	queue   *turn.Queue
	locks   turn.Locks[hearth.SandboxID]

	life context.Context // ends with Close
	end  context.CancelCauseFunc
	work sync.WaitGroup // every goroutine the agent started

	mu      sync.Mutex
	state   agentState
	key     secret.Key // guests' control secrets derive from it
	caps    map[string]driver.Capabilities
	total   hearth.Resources
	boxes   map[hearth.SandboxID]*box
	flights map[hearth.SandboxID]*flight
	tombs   turn.Tombs
	pools   *pool.Set[*machine]
	zombies map[string]*machine // could not be taken down; retried
	wake    chan struct{}
	endings *turn.Backlog // of machines that are taken down behind an answer; part of work
	short   bool          // the host is short of memory

	poolMemory int64
	warm       int64 // starts served by a pool
	cold       int64 // the others
	blank      int64 // of these, the ones that found a blank
}

type agentState int

const (
	made agentState = iota
	open
	draining
	closed
)

// New returns an agent that has done nothing yet: call Open, then Run.
func New(cfg Config, deps Deps) *Agent {
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	if deps.Memory == nil {
		deps.Memory = host.ReadMemory
	}
	if cfg.Driver == "" && len(deps.Drivers) == 1 {
		for name := range deps.Drivers {
			cfg.Driver = name
		}
	}
	cfg.Starts = cmp.Or(cfg.Starts, 2*runtime.NumCPU()) // a third of a start is waiting
	cfg.Queue = cmp.Or(cfg.Queue, 1024)
	cfg.StartTimeout = cmp.Or(cfg.StartTimeout, 2*time.Minute)
	cfg.PauseTimeout = cmp.Or(cfg.PauseTimeout, 5*time.Minute)
	cfg.PoolCeiling = cmp.Or(cfg.PoolCeiling, 64)
	cfg.PoolFills = cmp.Or(cfg.PoolFills, 1)
	life, end := context.WithCancelCause(context.Background())
	return &Agent{
		cfg: cfg, deps: deps, log: deps.Log, now: deps.Now,
		journal: journal.New(cfg.Dir), hub: feed.New(), shelf: deps.Shelf, queue: turn.NewQueue(cfg.Starts, cfg.Queue),
		life: life, end: end,
		caps:    map[string]driver.Capabilities{},
		boxes:   map[hearth.SandboxID]*box{},
		flights: map[hearth.SandboxID]*flight{},
		pools:   pool.New[*machine](cfg.Blanks), zombies: map[string]*machine{},
		wake: make(chan struct{}, 1), endings: turn.NewBacklog(),
	}
}

var _ node.Service = (*Agent)(nil)

// errClosed is what calls get before Open and after Close.
func errClosed() error { return hearth.Errorf(hearth.Unavailable, "the node is not running") }

// ready reports whether new work may begin. The caller holds mu.
func (a *Agent) ready() error {
	if a.state != open {
		return errClosed()
	}
	return nil
}

// Close stops the agent and leaves its machines running: the next Open finds
// them again. Starts in flight are undone, and blanks, which cannot outlive it, go.
func (a *Agent) Close() {
	a.mu.Lock()
	a.state = closed
	a.mu.Unlock()
	a.end(errClosed())
	a.hub.Close()
	a.work.Wait()
	a.mu.Lock()
	blanks := a.pools.Blanks()
	a.mu.Unlock()
	a.discardAll(context.Background(), blanks)
}

// Shutdown stops every sandbox and every machine of the pools, then closes the
// agent. What could not be freed is named by the error and left to the next Open.
func (a *Agent) Shutdown(ctx context.Context) error {
	a.mu.Lock()
	if a.state == open {
		a.state = draining
	}
	for _, f := range a.flights {
		f.cancel(errClosed())
	}
	ids := make([]hearth.SandboxID, 0, len(a.boxes)+len(a.flights))
	for id := range a.boxes {
		ids = append(ids, id)
	}
	for id := range a.flights {
		if a.boxes[id] == nil {
			ids = append(ids, id)
		}
	}
	a.pools.Forget()
	a.mu.Unlock()

	var all turn.Batch
	for _, id := range ids {
		all.Do(func() error { return a.stop(ctx, id, "the node was shut down") })
	}
	err := all.Wait()
	a.end(errClosed()) // fills end, so nothing enters a pool from here on
	a.hub.Close()
	a.work.Wait()
	a.drainAll(context.WithoutCancel(ctx))
	a.mu.Lock()
	a.state = closed
	left := len(a.zombies)
	a.mu.Unlock()
	if err == nil && left > 0 {
		err = hearth.Errorf(hearth.Internal, "%d machines could not be taken down; the next start of the node tries again", left)
	}
	return err
}

// enter counts a call in, for which Close waits.
func (a *Agent) enter() (leave func(), err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err = a.ready(); err == nil {
		a.work.Add(1)
	}
	return a.work.Done, err
}

// Run keeps the pools full and retries what could not be taken down, until ctx
// ends or the agent is closed. Call it once, after Open.
func (a *Agent) Run(ctx context.Context) error {
	leave, err := a.enter()
	if err != nil {
		return err
	}
	defer leave()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(a.life, stop)()
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	var fills sync.WaitGroup
	defer fills.Wait()
	for {
		a.trim(ctx)
		var later <-chan time.Time
		if wait := a.refill(ctx, &fills); wait > 0 {
			later = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.wake:
		case <-later:
		case <-tick.C:
			a.buryZombies(ctx)
		}
	}
}

// nudge makes Run look again.
func (a *Agent) nudge() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}
