package process

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"hearth/internal/gen/guestv1"
	"hearth/internal/guest/process/rpcerr"
	"hearth/internal/hearth"
)

// keepaliveHeader asks for a keepalive event after so many idle seconds.
const keepaliveHeader = "Keepalive-Ping-Interval"

// Keepalive is the interval a request's headers ask for, 90 s without a usable wish.
func Keepalive(h http.Header) time.Duration {
	const fallback, longest = 90, 24 * 3600
	n, err := strconv.Atoi(h.Get(keepaliveHeader))
	if err != nil || n <= 0 || n > longest {
		n = fallback
	}
	return time.Duration(n) * time.Second
}

// Start runs a process and streams its events. It answers the RPC of that name.
func (s *Service) Start(ctx context.Context, req *connect.Request[guestv1.StartRequest], stream *connect.ServerStream[guestv1.StartResponse]) error {
	ses := s.session()
	who, err := s.users.FromBasic(req.Header().Get("Authorization"), ses.User)
	if err != nil {
		return rpcerr.From(err)
	}
	l, err := prepare(req.Msg, who, ses)
	if err != nil {
		return rpcerr.From(err)
	}
	deadline, _ := ctx.Deadline()
	p, sub, err := s.begin(l, req.Msg, deadline)
	if err != nil {
		return rpcerr.From(err)
	}
	defer p.unsubscribe(sub)
	send := func(ev *guestv1.ProcessEvent) error { return stream.Send(&guestv1.StartResponse{Event: ev}) }
	err = p.relay(ctx, sub, Keepalive(req.Header()), send)
	if p.timedOut.Load() {
		err = context.DeadlineExceeded
	}
	return rpcerr.From(err)
}

// Connect streams the events of a running process from now on, or the end of
// one that ended a moment ago. It answers the RPC of that name.
func (s *Service) Connect(ctx context.Context, req *connect.Request[guestv1.ConnectRequest], stream *connect.ServerStream[guestv1.ConnectResponse]) error {
	send := func(ev *guestv1.ProcessEvent) error { return stream.Send(&guestv1.ConnectResponse{Event: ev}) }
	p, sub, past, err := s.attach(req.Msg.GetProcess())
	switch {
	case err != nil:
		return rpcerr.From(err)
	case past != nil:
		if err := send(startEvent(past.pid)); err != nil {
			return err
		}
		return send(wrapEnd(past.end))
	}
	defer p.unsubscribe(sub)
	return rpcerr.From(p.relay(ctx, sub, Keepalive(req.Header()), send))
}

// relay sends start, then what sub receives, then the end of the process.
func (p *proc) relay(ctx context.Context, sub *subscriber, keepalive time.Duration, send func(*guestv1.ProcessEvent) error) error {
	if err := send(startEvent(p.pid)); err != nil {
		return err
	}
	idle := time.NewTicker(keepalive)
	defer idle.Stop()
	for {
		var ev *guestv1.ProcessEvent
		select {
		case ev = <-sub.events:
			idle.Reset(keepalive)
		case <-idle.C:
			ev = keepaliveEvent()
		case <-p.done:
			hold(ctx)
			return send(wrapEnd(p.end))
		case <-sub.gone:
			return hearth.Errorf(hearth.ResourceExhausted, "the reader of this stream took no output for too long")
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := send(ev); err != nil {
			return err
		}
	}
}

// List names the running processes. It answers the RPC of that name.
func (s *Service) List(ctx context.Context, _ *connect.Request[guestv1.ListRequest]) (*connect.Response[guestv1.ListResponse], error) {
	return connect.NewResponse(&guestv1.ListResponse{Processes: s.infos(ctx)}), nil
}

// Update resizes a terminal. It answers the RPC of that name.
func (s *Service) Update(_ context.Context, req *connect.Request[guestv1.UpdateRequest]) (*connect.Response[guestv1.UpdateResponse], error) {
	p, err := s.find(req.Msg.GetProcess())
	if err != nil {
		return nil, rpcerr.From(err)
	}
	if size := req.Msg.GetPty().GetSize(); size != nil {
		if p.streams.tty == nil {
			return nil, rpcerr.From(hearth.Errorf(hearth.Internal, "process %d has no terminal to resize", p.pid))
		}
		if err := pty.Setsize(p.streams.tty, winsize(size)); err != nil {
			return nil, rpcerr.From(hearth.Wrap(hearth.Internal, err, "cannot resize the terminal"))
		}
	}
	return connect.NewResponse(&guestv1.UpdateResponse{}), nil
}

// SendInput writes to stdin or the terminal. It answers the RPC of that name.
func (s *Service) SendInput(ctx context.Context, req *connect.Request[guestv1.SendInputRequest]) (*connect.Response[guestv1.SendInputResponse], error) {
	p, err := s.find(req.Msg.GetProcess())
	if err == nil {
		err = p.feed(ctx, req.Msg.GetInput())
	}
	if err != nil {
		return nil, rpcerr.From(err)
	}
	return connect.NewResponse(&guestv1.SendInputResponse{}), nil
}

// StreamInput is SendInput for a stream of chunks to one process. It answers the RPC of that name.
func (s *Service) StreamInput(ctx context.Context, stream *connect.ClientStream[guestv1.StreamInputRequest]) (*connect.Response[guestv1.StreamInputResponse], error) {
	var p *proc
	for stream.Receive() {
		var err error
		switch ev := stream.Msg().GetEvent().(type) {
		case *guestv1.StreamInputRequest_Start:
			p, err = s.find(ev.Start.GetProcess())
		case *guestv1.StreamInputRequest_Data:
			if p == nil {
				err = hearth.Errorf(hearth.InvalidArgument, "the first message must be start")
			} else {
				err = p.feed(ctx, ev.Data.GetInput())
			}
		}
		if err != nil {
			return nil, rpcerr.From(err)
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	return connect.NewResponse(&guestv1.StreamInputResponse{}), nil
}

// feed writes one piece of input to where it says.
func (p *proc) feed(ctx context.Context, in *guestv1.ProcessInput) error {
	var err error
	switch x := in.GetInput().(type) {
	case *guestv1.ProcessInput_Stdin:
		f, open := p.openStdin()
		if p.streams.tty != nil {
			return hearth.Errorf(hearth.Internal, "process %d has a terminal; send its input as pty", p.pid)
		}
		if !open {
			return hearth.Errorf(hearth.Internal, "stdin not enabled or closed")
		}
		err = p.write(ctx, f, x.Stdin)
	case *guestv1.ProcessInput_Pty:
		if p.streams.tty == nil {
			return hearth.Errorf(hearth.Internal, "process %d has no terminal", p.pid)
		}
		err = p.write(ctx, p.streams.tty, x.Pty)
	default:
		return hearth.Errorf(hearth.Unimplemented, "input: neither stdin nor pty is given")
	}
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return hearth.Wrap(hearth.Internal, err, "cannot write input to process %d", p.pid)
	}
	return err
}

// killWait is how long a SIGKILL is given to show its effect.
const killWait = 5 * time.Second

// SendSignal signals a process and all of its group. After a SIGKILL it waits a
// moment for the end, so that the caller's next call finds the process gone. It
// answers the RPC of that name.
func (s *Service) SendSignal(ctx context.Context, req *connect.Request[guestv1.SendSignalRequest]) (*connect.Response[guestv1.SendSignalResponse], error) {
	p, err := s.find(req.Msg.GetProcess())
	if err != nil {
		return nil, rpcerr.From(err)
	}
	var sig syscall.Signal
	switch req.Msg.GetSignal() {
	case guestv1.Signal_SIGNAL_SIGKILL:
		sig = unix.SIGKILL
	case guestv1.Signal_SIGNAL_SIGTERM:
		sig = unix.SIGTERM
	default:
		return nil, rpcerr.From(hearth.Errorf(hearth.Unimplemented, "signal %d is not supported; SIGKILL and SIGTERM are", req.Msg.GetSignal()))
	}
	if err := p.signal(sig); err != nil {
		return nil, rpcerr.From(err)
	}
	if sig == unix.SIGKILL {
		wait, cancel := context.WithTimeout(ctx, killWait)
		defer cancel()
		select {
		case <-p.child.Exited():
		case <-wait.Done():
		}
	}
	return connect.NewResponse(&guestv1.SendSignalResponse{}), nil
}

// CloseStdin ends a process's input. It answers the RPC of that name.
func (s *Service) CloseStdin(_ context.Context, req *connect.Request[guestv1.CloseStdinRequest]) (*connect.Response[guestv1.CloseStdinResponse], error) {
	p, err := s.find(req.Msg.GetProcess())
	if err != nil {
		return nil, rpcerr.From(err)
	}
	if p.streams.tty != nil {
		return nil, connect.NewError(connect.CodeUnknown, errors.New("a terminal has no stdin to close; send Ctrl+D (0x04) instead"))
	}
	p.closeStdin()
	return connect.NewResponse(&guestv1.CloseStdinResponse{}), nil
}
