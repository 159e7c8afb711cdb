package client

import (
	"context"
	"io"
	"maps"

	"connectrpc.com/connect"

	"hearth/internal/gen/guestv1"
	"hearth/internal/gen/guestv1/guestv1connect"
)

// Pty opens terminals in a sandbox.
type Pty struct {
	rpc      guestv1connect.ProcessClient
	commands *Commands
}

// PtyOptions say what a terminal is like.
type PtyOptions struct {
	Cols, Rows int // 0: 80 and 24
	User       string
	Dir        string
	Env        map[string]string
	Output     io.Writer // what the terminal shows
}

// Terminal is a login shell on a terminal.
type Terminal struct {
	*Process
	rpc guestv1connect.ProcessClient
}

// Start opens a terminal. As with Commands.Start, Wait or Detach must follow.
func (p *Pty) Start(ctx context.Context, o PtyOptions) (*Terminal, error) {
	env := map[string]string{"TERM": "xterm-256color", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
	maps.Copy(env, o.Env)
	if o.Cols <= 0 || o.Rows <= 0 {
		o.Cols, o.Rows = 80, 24
	}
	msg := &guestv1.StartRequest{
		Process: &guestv1.ProcessConfig{Cmd: "/bin/bash", Args: []string{"-i", "-l"}, Envs: env},
		Pty:     size(o.Cols, o.Rows),
	}
	if o.Dir != "" {
		msg.Process.Cwd = &o.Dir
	}
	proc, err := startProcess(ctx, p.commands, msg, RunOptions{User: o.User, Stdout: o.Output})
	if err != nil {
		return nil, err
	}
	return &Terminal{Process: proc, rpc: p.rpc}, nil
}

// Send types into the terminal.
func (t *Terminal) Send(ctx context.Context, data []byte) error {
	_, err := t.rpc.SendInput(ctx, connect.NewRequest(&guestv1.SendInputRequest{
		Process: byPID(t.PID), Input: &guestv1.ProcessInput{Input: &guestv1.ProcessInput_Pty{Pty: data}},
	}))
	return fromRPC(err)
}

// Resize changes the terminal's size.
func (t *Terminal) Resize(ctx context.Context, cols, rows int) error {
	_, err := t.rpc.Update(ctx, connect.NewRequest(&guestv1.UpdateRequest{Process: byPID(t.PID), Pty: size(cols, rows)}))
	return fromRPC(err)
}

func size(cols, rows int) *guestv1.PTY {
	return &guestv1.PTY{Size: &guestv1.PTY_Size{Cols: uint32(cols), Rows: uint32(rows)}}
}
