package app

import (
	"context"
	"net"

	"hearth/internal/builder"
	"hearth/internal/guest/agentclient"
	"hearth/internal/hearth"
	"hearth/internal/node/agent"
)

// nodeGuest is the node's side of a guest daemon.
type nodeGuest struct{ *agentclient.Client }

// Prepare implements agent.Guest.
func (g nodeGuest) Prepare(ctx context.Context, b *hearth.Build) error {
	return builder.Prepare(ctx, buildGuest{g.Client}, b, func(string, string) {})
}

// buildGuest lets the builder run commands in the machines it starts.
type buildGuest struct{ client *agentclient.Client }

func newBuildGuest(a *agent.Agent, id hearth.SandboxID, token string) builder.Guest {
	dial := func(ctx context.Context, port uint16) (net.Conn, error) { return a.Dial(ctx, id, port) }
	return buildGuest{agentclient.NewUser(dial, token)}
}

func request(c builder.Command) agentclient.RunRequest {
	return agentclient.RunRequest{User: c.User, Cmd: c.Line, Env: c.Env, Cwd: c.Dir}
}

func lines(out func(builder.Output)) func(stream, line string) {
	if out == nil {
		return nil
	}
	return func(stream, line string) { out(builder.Output{Stream: stream, Text: line}) }
}

// Run implements builder.Guest.
func (g buildGuest) Run(ctx context.Context, c builder.Command, out func(builder.Output)) (int, error) {
	return g.client.Run(ctx, request(c), lines(out))
}

// Start implements builder.Guest.
func (g buildGuest) Start(ctx context.Context, c builder.Command, out func(builder.Output)) (<-chan int, error) {
	p, err := g.client.Start(ctx, request(c), lines(out))
	if err != nil {
		return nil, err
	}
	exited := make(chan int, 1)
	go func() {
		defer p.Detach()
		if code, err := p.Wait(ctx); err == nil {
			exited <- code
		}
	}()
	return exited, nil
}
