package agent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"hearth/internal/blob"
	"hearth/internal/blob/chunkblob"
	"hearth/internal/blob/fileblob"
	"hearth/internal/driver"
	"hearth/internal/driver/fake"
	"hearth/internal/guest"
	"hearth/internal/hearth"
	"hearth/internal/leaktest"
	"hearth/internal/node"
	"hearth/internal/node/agent"
	"hearth/internal/node/agent/shelf"
	"hearth/internal/node/nodetest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

var (
	errBoom = errors.New("boom")
	small   = hearth.Resources{VCPUs: 1, MemoryMiB: 64, DiskMiB: 64}
	layered = fake.Config{Program: nodetest.Daemon, Layered: true}
)

// world is what outlives an agent: the host, its network, its disk.
type world struct {
	t     testing.TB
	dir   string
	host  *fake.Host
	slots *slots
	blobs *tappedBlobs
	shelf *shelf.Shelf // of the newest agent

	wrap    func(driver.Driver) driver.Driver // what agents get for the driver of host; nil: the driver
	archive blob.Archive                      // of a shelf; nil: none
	layers  []string                          // of the build that requests name: their keys
	cache   int64                             // bytes of plain files that a shelf with an archive keeps beside those in use

	newest *agent.Agent

	mu   sync.Mutex
	hook func(ctx context.Context, op string) error
	free int64 // host memory available

	others   map[string]*fake.Host // of further drivers, by name
	prepared []string              // start commands that guests were asked to run
}

func newWorld(t testing.TB) *world { return newWorldOf(t, fake.Config{Program: nodetest.Daemon}) }

func newWorldOf(t testing.TB, cfg fake.Config) *world {
	w := &world{t: t, dir: t.TempDir(), host: fake.NewHost(cfg), free: 8 << 30}
	w.slots = &slots{w: w, limit: 1000, used: map[int]hearth.Network{}, taps: map[int]bool{}}
	store, err := fileblob.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w.blobs = &tappedBlobs{w: w, Store: store}
	w.host.SetHook(func(ctx context.Context, op fake.Op, _ string) error { return w.at(ctx, "driver."+string(op)) })
	return w
}

// on replaces the hook that every operation of driver, network, guest and blobs asks.
func (w *world) on(hook func(ctx context.Context, op string) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hook = hook
}

// failOnce makes the next operation called op fail.
func (w *world) failOnce(op string) {
	var once sync.Once
	w.on(func(_ context.Context, got string) (err error) {
		if got == op {
			once.Do(func() { err = errBoom })
		}
		return err
	})
}

func (w *world) at(ctx context.Context, op string) error {
	w.mu.Lock()
	hook := w.hook
	w.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(ctx, op)
}

func (w *world) memory() (agent.Memory, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return agent.Memory{Total: 16 << 30, Available: w.free}, nil
}

func (w *world) setFree(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.free = n
}

// pack gives the world an archive. Call it before the first agent.
func (w *world) pack() {
	w.t.Helper()
	packs, err := fileblob.Open(w.t.TempDir())
	if err != nil {
		w.t.Fatal(err)
	}
	if w.archive, err = chunkblob.New(packs, packs.Temp(), nil); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) agent(cfg agent.Config) *agent.Agent {
	cfg.Dir = w.dir
	w.shelf = shelf.New(w.blobs)
	if w.archive != nil {
		w.shelf.WithArchive(shelf.Packing{Archive: w.archive, Cache: w.cache, Log: slog.New(slog.DiscardHandler)})
	}
	drivers := map[string]driver.Driver{fake.Name: fake.New(w.host)}
	if w.wrap != nil {
		drivers[fake.Name] = w.wrap(drivers[fake.Name])
	}
	for name, host := range w.others {
		drivers[name] = fake.New(host)
	}
	return agent.New(cfg, agent.Deps{
		Drivers: drivers,
		Network: w.slots, Shelf: w.shelf, Memory: w.memory,
		Guest: func(dial agent.Dialer, control string) agent.Guest {
			return &tapped{w: w, Client: &nodetest.Client{Dial: nodetest.Dial(dial), Control: control}}
		},
	})
}

// open returns an agent that works; the test closes it.
func (w *world) open(cfg agent.Config) *agent.Agent {
	w.t.Helper()
	a := w.agent(cfg)
	if err := a.Open(w.t.Context()); err != nil {
		w.t.Fatalf("Open: %v", err)
	}
	w.newest = a
	return a
}

func (w *world) request() node.StartRequest {
	build := hearth.Build{ID: "build-1", Resources: small, Layers: w.layers, Env: map[string]string{"A": "build"}}
	return node.StartRequest{
		Build: build, Token: "token-" + string(hearth.NewSandboxID()),
		Sandbox: hearth.Sandbox{ID: hearth.NewSandboxID(), Build: build.ID, Resources: small, Generation: 1, Env: map[string]string{"B": "sandbox"}},
	}
}

// warm makes a snapshot from which many sandboxes start.
func (w *world) warm(a *agent.Agent) *hearth.Snapshot {
	w.t.Helper()
	req := w.request()
	w.start(a, req)
	w.poke(a, req, "warm")
	snap, err := a.Pause(w.t.Context(), req.Sandbox.ID, node.PauseRequest{Into: hearth.NewSnapshotID(), Forget: true})
	if err != nil {
		w.t.Fatalf("Pause: %v", err)
	}
	return snap
}

func (w *world) start(a *agent.Agent, req node.StartRequest) {
	w.t.Helper()
	if _, err := a.Start(w.t.Context(), req); err != nil {
		w.t.Fatalf("Start: %v", err)
	}
}

func dial(a *agent.Agent, id hearth.SandboxID) nodetest.Dial {
	return func(ctx context.Context, port uint16) (net.Conn, error) { return a.Dial(ctx, id, port) }
}

func (w *world) poke(a *agent.Agent, req node.StartRequest, word string) {
	w.t.Helper()
	if err := nodetest.Poke(w.t.Context(), dial(a, req.Sandbox.ID), req.Token, word); err != nil {
		w.t.Fatalf("writing into %s: %v", req.Sandbox.ID, err)
	}
}

func (w *world) wantWord(a *agent.Agent, req node.StartRequest, want string) {
	w.t.Helper()
	got, err := nodetest.Peek(w.t.Context(), dial(a, req.Sandbox.ID), req.Token)
	if err != nil || got != want {
		w.t.Fatalf("%s remembers %q, %v; want %q", req.Sandbox.ID, got, err, want)
	}
}

// wantHeld fails unless exactly n machines, slots and records are there.
func (w *world) wantHeld(n int) {
	w.t.Helper()
	if got := w.held(); got != fmt.Sprintf("%d machines, %d slots, %d records, %d run, 0 checkpoint, 0 restored without a record", n, n, n, n) {
		w.t.Fatalf("held: %s; want %d of each", got, n)
	}
}

func (w *world) held() string {
	w.t.Helper()
	w.newest.Settle()
	s := fmt.Sprintf("%d machines, %d slots", len(w.host.Machines()), w.slots.count())
	for _, d := range []string{"machines", "run", "checkpoint"} {
		s += fmt.Sprintf(", %d %s", len(w.entries(d)), strings.Replace(d, "machines", "records", 1))
	}
	records := w.entries("machines")
	laid := slices.DeleteFunc(w.entries("restore"), func(id string) bool { return slices.Contains(records, id+".json") })
	return s + fmt.Sprintf(", %d restored without a record", len(laid))
}

func (w *world) entries(dir string) []string {
	w.t.Helper()
	list, err := os.ReadDir(filepath.Join(w.dir, dir))
	if err != nil {
		w.t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// shutdown stops everything and fails unless nothing is left.
func (w *world) shutdown(a *agent.Agent) {
	w.t.Helper()
	if err := a.Shutdown(w.t.Context()); err != nil {
		w.t.Fatalf("Shutdown: %v", err)
	}
	w.wantHeld(0)
}

// tapped asks the world's hook before and after every call to a guest.
type tapped struct {
	w *world
	*nodetest.Client
}

func (g *tapped) call(ctx context.Context, op string, f func() error) error {
	if err := g.w.at(ctx, op); err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	return g.w.at(ctx, op+".after")
}

func (g *tapped) Ready(ctx context.Context) error {
	return g.call(ctx, "guest.ready", func() error { return g.Client.Ready(ctx) })
}

func (g *tapped) Rehearse(ctx context.Context) error {
	return g.call(ctx, "guest.rehearse", func() error { return g.Client.Rehearse(ctx) })
}

func (g *tapped) Prepare(ctx context.Context, b *hearth.Build) error {
	return g.call(ctx, "guest.prepare", func() error {
		g.w.mu.Lock()
		defer g.w.mu.Unlock()
		g.w.prepared = append(g.w.prepared, b.Start)
		return nil
	})
}

func (g *tapped) Init(ctx context.Context, req guest.InitRequest) error {
	return g.call(ctx, "guest.init", func() error { return g.Client.Init(ctx, req) })
}

func (g *tapped) Quiesce(ctx context.Context, req guest.QuiesceRequest) error {
	return g.call(ctx, "guest.quiesce", func() error { return g.Client.Quiesce(ctx, req) })
}

// slots is a network of nothing but numbers.
type slots struct {
	w     *world
	mu    sync.Mutex
	limit int
	next  int
	used  map[int]hearth.Network
	taps  map[int]bool
}

func (s *slots) Acquire(ctx context.Context) (agent.Slot, error) { return s.acquire(ctx, false) }

func (s *slots) AcquireTap(ctx context.Context) (agent.Slot, error) { return s.acquire(ctx, true) }

func (s *slots) acquire(ctx context.Context, tap bool) (agent.Slot, error) {
	if err := s.w.at(ctx, "net.acquire"); err != nil {
		return agent.Slot{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.used) >= s.limit {
		return agent.Slot{}, hearth.Errorf(hearth.ResourceExhausted, "all %d slots are taken", s.limit)
	}
	s.next++
	s.used[s.next], s.taps[s.next] = hearth.Network{}, tap
	return s.slot(s.next), nil
}

// slot is a slot that is in use. The caller holds mu.
func (s *slots) slot(index int) agent.Slot {
	slot := agent.Slot{Index: index, Net: driver.Attachment{NetNS: fmt.Sprintf("/netns/%d", index), Device: "eth0"}}
	if s.taps[index] {
		slot.Net.Tap = "tap0"
	}
	return slot
}

func (s *slots) Attach(ctx context.Context, index int) (agent.Slot, error) {
	if err := s.w.at(ctx, "net.attach"); err != nil {
		return agent.Slot{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.used[index]; !there {
		return agent.Slot{}, hearth.Errorf(hearth.NotFound, "slot %d is gone", index)
	}
	return s.slot(index), nil
}

func (s *slots) SetPolicy(ctx context.Context, index int, n hearth.Network) error {
	if err := s.w.at(ctx, "net.policy"); err != nil {
		return err
	}
	if slices.Contains(n.AllowOut, "bad") {
		return hearth.Errorf(hearth.InvalidArgument, "allow_out %q is not an address", "bad")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used[index] = n
	return nil
}

func (s *slots) Release(ctx context.Context, index int) error {
	if err := s.w.at(ctx, "net.release"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.used, index)
	return nil
}

func (s *slots) Sweep(_ context.Context, keep []int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.used {
		if !slices.Contains(keep, i) {
			delete(s.used, i)
		}
	}
	return nil
}

func (s *slots) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.used)
}

// tappedBlobs asks the world's hook before and after every write.
type tappedBlobs struct {
	w *world
	*fileblob.Store
}

func (b *tappedBlobs) Put(ctx context.Context, key string, r io.Reader, size int64) error {
	if err := b.w.at(ctx, "blob.put"); err != nil {
		return err
	}
	if err := b.Store.Put(ctx, key, r, size); err != nil {
		return err
	}
	return b.w.at(ctx, "blob.put.after")
}

func (b *tappedBlobs) Adopt(ctx context.Context, key, path string) error {
	if err := b.w.at(ctx, "blob.adopt"); err != nil {
		return err
	}
	if err := b.Store.Adopt(ctx, key, path); err != nil {
		return err
	}
	return b.w.at(ctx, "blob.adopt.after")
}

// keys lists all blobs.
func (b *tappedBlobs) keys() []string {
	b.w.t.Helper()
	var list []string
	for info, err := range b.List(context.Background(), "") {
		if err != nil {
			b.w.t.Fatal(err)
		}
		list = append(list, info.Key)
	}
	return list
}
