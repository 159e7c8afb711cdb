package client

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"connectrpc.com/connect"

	"hearth/internal/gen/guestv1"
	"hearth/internal/gen/guestv1/guestv1connect"
)

const (
	// maxOutput is how much of each stream Run keeps unless told otherwise.
	maxOutput = 16 << 20
	// inputChunk is how much of stdin goes into one message.
	inputChunk = 64 << 10
	// keepalive asks the daemon for a sign of life this often, in seconds.
	keepalive = "50"
	// killWithin bounds the call that kills what its caller gave up on.
	killWithin = 5 * time.Second
	// endWithin bounds the wait for the end of a stream that has said everything.
	endWithin = 100 * time.Millisecond
)

// Commands runs programs in a sandbox.
type Commands struct {
	rpc guestv1connect.ProcessClient
}

// RunOptions say how a command runs. A deadline of the context is the
// command's: the daemon kills it then.
type RunOptions struct {
	User string // default: the template's
	Dir  string // default: the template's
	Env  map[string]string

	// Stdout and Stderr take the output as it comes. Run without them keeps
	// the output in its result.
	Stdout, Stderr io.Writer

	// Input is written to stdin, which is then closed. Nil: no stdin for Run.
	Input []byte

	// MaxOutput is how many bytes of each stream Run keeps; 0 is 16 MiB. What
	// goes beyond is dropped and Result.Truncated set.
	MaxOutput int
}

// Result is how a command ended. A failing command is a result, not an error.
type Result struct {
	ExitCode  int    // -1 when a signal ended it
	Error     string // "exit status 2", "signal: killed"; empty when ExitCode is 0
	Stdout    string // what Run kept
	Stderr    string
	Truncated bool
}

// Run runs a command line in a login shell and waits for its end. When ctx ends
// first, the command is killed.
func (c *Commands) Run(ctx context.Context, line string, o RunOptions) (*Result, error) {
	limit := o.MaxOutput
	if limit == 0 {
		limit = maxOutput
	}
	stdout, stderr := &limited{left: limit}, &limited{left: limit}
	if o.Stdout == nil {
		o.Stdout = stdout
	}
	if o.Stderr == nil {
		o.Stderr = stderr
	}
	p, err := c.start(ctx, line, o, o.Input != nil)
	if err != nil {
		return nil, err
	}
	inputCtx, stopInput := context.WithCancel(ctx)
	var feeding sync.WaitGroup
	if o.Input != nil {
		feeding.Go(func() { c.feed(inputCtx, p.PID, o.Input) })
	}
	res, err := p.Wait()
	stopInput()
	feeding.Wait()
	if err != nil {
		if ctx.Err() != nil {
			killCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killWithin)
			defer cancel()
			err = errors.Join(err, ignoreNotFound(c.Kill(killCtx, p.PID)))
		}
		return nil, err
	}
	res.Stdout, res.Stderr = stdout.String(), stderr.String()
	res.Truncated = stdout.cut || stderr.cut
	return res, nil
}

// feed writes all of input and closes stdin. The command may end before it has
// read everything, so errors say nothing.
func (c *Commands) feed(ctx context.Context, pid uint32, input []byte) {
	for chunk := range chunks(input, inputChunk) {
		if c.SendStdin(ctx, pid, chunk) != nil {
			return
		}
	}
	_ = c.CloseStdin(ctx, pid) // likewise
}

func chunks(b []byte, size int) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(b) > 0 {
			n := min(size, len(b))
			if !yield(b[:n]) {
				return
			}
			b = b[n:]
		}
	}
}

// Start starts a command line in a login shell and returns when it runs. Its
// stdin stays open for SendStdin; Input is ignored. The context governs the
// stream of its output, and a deadline the command itself.
//
// The caller has to call Wait or Detach: output that nobody takes stops the command.
func (c *Commands) Start(ctx context.Context, line string, o RunOptions) (*Process, error) {
	return c.start(ctx, line, o, true)
}

func (c *Commands) start(ctx context.Context, line string, o RunOptions, stdin bool) (*Process, error) {
	msg := &guestv1.StartRequest{
		Process: &guestv1.ProcessConfig{Cmd: "/bin/bash", Args: []string{"-l", "-c", line}, Envs: o.Env},
		Stdin:   &stdin,
	}
	if o.Dir != "" {
		msg.Process.Cwd = &o.Dir
	}
	return startProcess(ctx, c, msg, o)
}

// startProcess sends the request and waits for the process's number.
func startProcess(ctx context.Context, c *Commands, msg *guestv1.StartRequest, o RunOptions) (*Process, error) {
	req := connect.NewRequest(msg)
	asUser(req.Header(), o.User)
	req.Header().Set("Keepalive-Ping-Interval", keepalive)
	ctx, cancel := context.WithCancel(ctx)
	stream, err := c.rpc.Start(ctx, req)
	if err != nil {
		cancel()
		return nil, fromRPC(err)
	}
	return newProcess(c, startStream{stream}, cancel, o)
}

// Connect attaches to a process that runs; it shows the output from now on.
func (c *Commands) Connect(ctx context.Context, pid uint32, o RunOptions) (*Process, error) {
	req := connect.NewRequest(&guestv1.ConnectRequest{Process: byPID(pid)})
	req.Header().Set("Keepalive-Ping-Interval", keepalive)
	ctx, cancel := context.WithCancel(ctx)
	stream, err := c.rpc.Connect(ctx, req)
	if err != nil {
		cancel()
		return nil, fromRPC(err)
	}
	return newProcess(c, connectStream{stream}, cancel, o)
}

// ProcessInfo is one running process.
type ProcessInfo struct {
	PID  uint32
	Tag  string
	Cmd  string
	Args []string
	Dir  string
}

// List returns the processes that were started through the daemon and run.
func (c *Commands) List(ctx context.Context) ([]ProcessInfo, error) {
	resp, err := c.rpc.List(ctx, connect.NewRequest(&guestv1.ListRequest{}))
	if err != nil {
		return nil, fromRPC(err)
	}
	var out []ProcessInfo
	for _, p := range resp.Msg.GetProcesses() {
		out = append(out, ProcessInfo{
			PID: p.GetPid(), Tag: p.GetTag(), Cmd: p.GetConfig().GetCmd(),
			Args: p.GetConfig().GetArgs(), Dir: p.GetConfig().GetCwd(),
		})
	}
	return out, nil
}

// Kill kills a process. NotFound(err) is true when there is none.
func (c *Commands) Kill(ctx context.Context, pid uint32) error {
	_, err := c.rpc.SendSignal(ctx, connect.NewRequest(&guestv1.SendSignalRequest{
		Process: byPID(pid), Signal: guestv1.Signal_SIGNAL_SIGKILL,
	}))
	return fromRPC(err)
}

// SendStdin writes to a process's stdin.
func (c *Commands) SendStdin(ctx context.Context, pid uint32, data []byte) error {
	_, err := c.rpc.SendInput(ctx, connect.NewRequest(&guestv1.SendInputRequest{
		Process: byPID(pid), Input: &guestv1.ProcessInput{Input: &guestv1.ProcessInput_Stdin{Stdin: data}},
	}))
	return fromRPC(err)
}

// CloseStdin lets a process read the end of its stdin.
func (c *Commands) CloseStdin(ctx context.Context, pid uint32) error {
	_, err := c.rpc.CloseStdin(ctx, connect.NewRequest(&guestv1.CloseStdinRequest{Process: byPID(pid)}))
	return fromRPC(err)
}

func byPID(pid uint32) *guestv1.ProcessSelector {
	return &guestv1.ProcessSelector{Selector: &guestv1.ProcessSelector_Pid{Pid: pid}}
}

func ignoreNotFound(err error) error {
	if NotFound(err) {
		return nil
	}
	return err
}

// limited keeps the first bytes of a stream.
type limited struct {
	bytes.Buffer
	left int
	cut  bool
}

// Write implements io.Writer; it takes everything and keeps what it may.
func (l *limited) Write(b []byte) (int, error) {
	keep := min(len(b), l.left)
	l.left -= keep
	l.cut = l.cut || keep < len(b)
	l.Buffer.Write(b[:keep])
	return len(b), nil
}
