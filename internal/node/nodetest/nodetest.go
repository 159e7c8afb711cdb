// Package nodetest is the conformance suite of node.Service: every
// implementation passes it, in process and over a wire, on every driver.
package nodetest

import (
	"context"
	"net"
	"testing"
	"time"

	"hearth/internal/hearth"
	"hearth/internal/node"
)

// patience bounds every wait of the suite.
const patience = time.Minute

// Dial connects to a port of one sandbox.
type Dial func(ctx context.Context, port uint16) (net.Conn, error)

// Env is one service under test, and what the suite needs to know of the guests
// it runs. Each test gets its own.
type Env struct {
	Node node.Service

	// Request returns a fresh sandbox, of generation 1, on a build that boots.
	Request func() node.StartRequest

	// Poke and Peek write and read a word of a guest's memory, in a sandbox
	// whose access token is given. Both fail with a wrong token.
	Poke func(ctx context.Context, dial Dial, token, word string) error
	Peek func(ctx context.Context, dial Dial, token string) (string, error)

	Closed   uint16 // port on which nothing listens
	Loopback uint16 // port that listens on the guest's loopback alone; 0: not tested

	// Kill ends a sandbox's guest from outside; nil: not tested.
	Kill func(id hearth.SandboxID) error

	// Machines counts the machines there are on the host, pools included.
	Machines func() int

	// Settled fails the test unless nothing is left of sandboxes on the host.
	Settled func(t *testing.T)
}

// Run runs the suite; open makes an Env and cleans up with t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) *Env) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			e := open(t)
			if c.needs != nil && !c.needs(e) {
				t.Skipf("%s: not offered by this environment", c.name)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			c.run(ctx, t, e)
			stopAll(t, e)
			e.Settled(t)
		})
	}
}

func stopAll(t *testing.T, e *Env) {
	t.Helper()
	list, err := e.Node.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, inst := range list {
		if err := e.Node.Stop(t.Context(), inst.ID, "end of the test"); err != nil {
			t.Fatal(err)
		}
	}
}

func (e *Env) dial(id hearth.SandboxID) Dial {
	return func(ctx context.Context, port uint16) (net.Conn, error) { return e.Node.Dial(ctx, id, port) }
}

// start starts a sandbox that has to start.
func (e *Env) start(ctx context.Context, t *testing.T, req node.StartRequest) *node.Instance {
	t.Helper()
	inst, err := e.Node.Start(ctx, req)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	if inst.ID != req.Sandbox.ID || inst.Generation != req.Sandbox.Generation || inst.State != hearth.Running {
		t.Fatalf("Start: got %+v", inst)
	}
	return inst
}

func (e *Env) poke(ctx context.Context, t *testing.T, req node.StartRequest, word string) {
	t.Helper()
	if err := e.Poke(ctx, e.dial(req.Sandbox.ID), req.Token, word); err != nil {
		t.Fatalf("writing into the guest: %v", err)
	}
}

func (e *Env) wantWord(ctx context.Context, t *testing.T, req node.StartRequest, want string) {
	t.Helper()
	got, err := e.Peek(ctx, e.dial(req.Sandbox.ID), req.Token)
	if err != nil || got != want {
		t.Fatalf("the guest remembers %q, %v; want %q", got, err, want)
	}
}

func wantKind(t *testing.T, what string, err error, kind hearth.Kind) {
	t.Helper()
	if err == nil || hearth.KindOf(err) != kind {
		t.Fatalf("%s: got %v, want kind %s", what, err, kind)
	}
}
