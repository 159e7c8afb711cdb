package client

import (
	"context"
	"errors"
	"io"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"hearth/internal/gen/guestv1"
)

// Process is a program that runs in a sandbox, seen through its stream.
type Process struct {
	PID uint32

	commands *Commands
	stream   events
	cancel   context.CancelFunc
	stdout   io.Writer
	stderr   io.Writer
}

// events is what the streams of Start and Connect have in common.
type events interface {
	next() (*guestv1.ProcessEvent, error)
	Close() error
}

type startStream struct {
	*connect.ServerStreamForClient[guestv1.StartResponse]
}

func (s startStream) next() (*guestv1.ProcessEvent, error) {
	if !s.Receive() {
		return nil, endOf(s.Err())
	}
	return s.Msg().GetEvent(), nil
}

type connectStream struct {
	*connect.ServerStreamForClient[guestv1.ConnectResponse]
}

func (s connectStream) next() (*guestv1.ProcessEvent, error) {
	if !s.Receive() {
		return nil, endOf(s.Err())
	}
	return s.Msg().GetEvent(), nil
}

// ErrCut is what a stream fails with whose connection ended before it did: nobody is
// left to say why.
var ErrCut = errors.New("the connection ended before the command did: the sandbox was paused, rolled back or ended, or the server stopped")

// endOf is the error of a stream that ended; without one, it ended too early.
func endOf(err error) error {
	if err == nil || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
		return ErrCut
	}
	return fromRPC(err)
}

// newProcess waits for the stream's first event, which has the PID.
func newProcess(c *Commands, stream events, cancel context.CancelFunc, o RunOptions) (*Process, error) {
	p := &Process{commands: c, stream: stream, cancel: cancel, stdout: o.Stdout, stderr: o.Stderr}
	first, err := stream.next()
	if err == nil && first.GetStart() == nil {
		err = errors.New("the sandbox's daemon did not say which process it started")
	}
	if err != nil {
		p.Detach()
		return nil, err
	}
	p.PID = first.GetStart().GetPid()
	return p, nil
}

// Wait passes output on until the process ends. It is called once.
func (p *Process) Wait() (*Result, error) {
	defer p.Detach()
	for {
		e, err := p.stream.next()
		if err != nil {
			return nil, err
		}
		if d := e.GetData(); d != nil {
			if err := p.pass(d); err != nil {
				return nil, err
			}
		}
		if end := e.GetEnd(); end != nil {
			p.drain()
			return &Result{ExitCode: int(end.GetExitCode()), Error: end.GetError()}, nil
		}
	}
}

// drain reads the end of the stream, which comes with the process's, so that its
// connection can be used again. A daemon that does not send it is not waited for.
func (p *Process) drain() {
	defer time.AfterFunc(endWithin, p.cancel).Stop()
	_, _ = p.stream.next()
}

// pass writes one piece of output to where it belongs.
func (p *Process) pass(d *guestv1.ProcessEvent_DataEvent) error {
	to, data := p.stdout, d.GetStdout()
	switch d.GetOutput().(type) {
	case *guestv1.ProcessEvent_DataEvent_Stderr:
		to, data = p.stderr, d.GetStderr()
	case *guestv1.ProcessEvent_DataEvent_Pty:
		data = d.GetPty()
	}
	if to == nil {
		return nil
	}
	_, err := to.Write(data)
	return err
}

// Detach stops listening. The process runs on and its output is dropped.
func (p *Process) Detach() {
	p.cancel()
	_ = p.stream.Close() // says only that it was canceled
}

// Kill kills the process; Wait then returns its result.
func (p *Process) Kill(ctx context.Context) error { return p.commands.Kill(ctx, p.PID) }

// SendStdin writes to the process's stdin.
func (p *Process) SendStdin(ctx context.Context, data []byte) error {
	return p.commands.SendStdin(ctx, p.PID, data)
}

// CloseStdin lets the process read the end of its stdin.
func (p *Process) CloseStdin(ctx context.Context) error { return p.commands.CloseStdin(ctx, p.PID) }
