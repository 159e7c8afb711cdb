package agentclient

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/url"
	"time"

	"connectrpc.com/connect"

	"hearth/internal/gen/guestv1"
	"hearth/internal/gen/guestv1/guestv1connect"
	"hearth/internal/guest"
	"hearth/internal/hearth"
)

const (
	base       = "http://guest" // the host name is never resolved
	maxMessage = 1 << 20        // bytes of one RPC message from the guest
	maxLine    = 64 << 10       // bytes of a line of output; longer ones arrive in pieces
	killTime   = 5 * time.Second

	// loginShell runs "$0" in the shell that the official clients use, or the one there is.
	loginShell = `if [ -x /bin/bash ]; then exec /bin/bash -l -c "$0"; else exec /bin/sh -l -c "$0"; fi`
)

func newProcessClient(c *http.Client) guestv1connect.ProcessClient {
	return guestv1connect.NewProcessClient(c, base, connect.WithReadMaxBytes(maxMessage))
}

// RunRequest says what to run in the guest.
type RunRequest struct {
	User string            // Unix user; empty: the session's default
	Cmd  string            // a line for a login shell
	Env  map[string]string // on top of the session's
	Cwd  string            // empty: the session's directory
}

// Process is a command in the guest that is being followed.
type Process struct {
	pid    uint32
	client *Client
	cancel context.CancelFunc
	done   chan struct{}
	exit   int // valid once done is closed
	err    error
}

// Run runs a command and waits for its end. onLine gets each line of output
// without its end, stream being "stdout" or "stderr", in order, on one goroutine; nil is
// allowed. exit is -1 after a signal. When ctx ends the command is killed.
func (c *Client) Run(ctx context.Context, req RunRequest, onLine func(stream, line string)) (exit int, err error) {
	p, err := c.Start(ctx, req, onLine)
	if err != nil {
		return 0, err
	}
	exit, err = p.Wait(ctx)
	if ctx.Err() != nil {
		p.Kill(ctx)
	}
	p.Detach()
	return exit, err
}

// Start begins a command that lives on when ctx ends, when the Process is
// detached and when this program dies. Its output goes to onLine, as in Run, until Detach.
func (c *Client) Start(ctx context.Context, req RunRequest, onLine func(stream, line string)) (*Process, error) {
	// The stream must not inherit ctx's deadline: it would be the command's.
	streamCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	abandon := context.AfterFunc(ctx, cancel)
	defer abandon()
	r := connect.NewRequest(&guestv1.StartRequest{
		Process: &guestv1.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", loginShell, req.Cmd}, Envs: req.Env},
		Stdin:   new(bool),
	})
	if req.Cwd != "" {
		r.Msg.Process.Cwd = &req.Cwd
	}
	c.sign(r.Header(), req.User)
	stream, err := c.process.Start(streamCtx, r)
	if err != nil {
		cancel()
		return nil, convert(ctx, err)
	}
	if !stream.Receive() || stream.Msg().GetEvent().GetStart() == nil {
		err := stream.Err()
		cancel()
		_ = stream.Close()
		if err == nil {
			return nil, hearth.Errorf(hearth.Unavailable, "the guest daemon did not say that the command has started")
		}
		return nil, convert(ctx, err)
	}
	p := &Process{pid: stream.Msg().GetEvent().GetStart().GetPid(), client: c, cancel: cancel, done: make(chan struct{})}
	go p.follow(ctx, stream, onLine)
	return p, nil
}

// sign adds the host's secret and the user to a request.
func (c *Client) sign(h http.Header, user string) {
	if c.token != "" {
		h.Set("X-Access-Token", c.token)
	} else {
		h.Set(guest.ControlHeader, c.control)
	}
	if user != "" {
		h.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":")))
	}
}

// follow reads a command's events to their end.
func (p *Process) follow(ctx context.Context, stream *connect.ServerStreamForClient[guestv1.StartResponse], onLine func(stream, line string)) {
	defer close(p.done)
	defer stream.Close()
	if onLine == nil {
		onLine = func(string, string) {}
	}
	stdout := lines{emit: func(l string) { onLine("stdout", l) }}
	stderr := lines{emit: func(l string) { onLine("stderr", l) }}
	defer stderr.flush()
	defer stdout.flush()
	for stream.Receive() {
		ev := stream.Msg().GetEvent()
		if end := ev.GetEnd(); end != nil {
			p.exit = int(end.GetExitCode())
			return
		}
		stdout.add(ev.GetData().GetStdout())
		stderr.add(ev.GetData().GetStderr())
	}
	if p.err = stream.Err(); p.err == nil {
		p.err = io.ErrUnexpectedEOF
	}
	p.err = convert(ctx, p.err)
}

// PID is the command's process id in the guest.
func (p *Process) PID() uint32 { return p.pid }

// Wait returns how the command ended, or the error of ctx, which ends only the waiting.
func (p *Process) Wait(ctx context.Context) (exit int, err error) {
	select {
	case <-p.done:
		return p.exit, p.err
	case <-ctx.Done():
		return 0, convert(ctx, ctx.Err())
	}
}

// Kill kills the command and everything it has started in its group. It is best
// effort, takes at most a few seconds and works when ctx has ended.
func (p *Process) Kill(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTime)
	defer cancel()
	r := connect.NewRequest(&guestv1.SendSignalRequest{
		Process: &guestv1.ProcessSelector{Selector: &guestv1.ProcessSelector_Pid{Pid: p.pid}},
		Signal:  guestv1.Signal_SIGNAL_SIGKILL,
	})
	p.client.sign(r.Header(), "")
	_, _ = p.client.process.SendSignal(ctx, r)
}

// Detach stops following; no line is reported after it has returned. The command lives on.
func (p *Process) Detach() {
	p.cancel()
	<-p.done
}

// Upload writes what r yields to a file of the guest, making its directories.
// A full disk is ResourceExhausted.
func (c *Client) Upload(ctx context.Context, user, path string, r io.Reader) error {
	q := url.Values{"path": {path}}
	if user != "" {
		q.Set("username", user)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/files?"+q.Encode(), io.NopCloser(r))
	if err != nil {
		return hearth.Wrap(hearth.Internal, err, "the upload cannot be requested")
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	c.sign(req.Header, "")
	res, err := c.http.Do(req)
	if err != nil {
		return convert(ctx, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return refusal(res)
	}
	return nil
}

// convert gives an error of a call its kind.
func convert(ctx context.Context, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return hearth.Wrap(hearth.DeadlineExceeded, err, "the guest did not finish in time")
	case ctx.Err() != nil:
		return hearth.Wrap(hearth.Canceled, err, "the call into the guest was canceled")
	}
	if ce, ok := errors.AsType[*connect.Error](err); ok {
		kind := hearth.Kind(ce.Code().String())
		if ce.Code() == connect.CodeUnknown {
			kind = hearth.Internal
		}
		return hearth.Errorf(kind, "the guest daemon answered: %s", quote(ce.Message()))
	}
	return hearth.Wrap(hearth.Unavailable, err, "the guest daemon's connection broke")
}
