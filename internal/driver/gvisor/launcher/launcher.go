// Package launcher runs the processes that make gVisor sandboxes.
//
// Creating a sandbox joins namespaces, moves threads of the creator, or all of it, between cgroups
// and marks all its descriptors close-on-exec. None of that can be done to a server
// with other work, so it is done by a launcher: a program of its own,
// which makes one sandbox at a time and reports. The sandbox outlives it, and us.
//
// An execution costs more than the rest of a launcher's work, so one that has
// restored a machine is kept for the next. One that boots a machine,
// whose console it has for its own, ends.
//
// The launcher of a blank has no other work until it is told what to restore. When we
// end, or close it, it takes the sandbox with it, in which nothing runs yet.
package launcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"hearth/internal/driver/gvisor/console"
	"hearth/internal/driver/hostproc"
	"hearth/internal/hearth"
)

// Name is argv[0] of a launcher. Its last argument is the ID of the machine that it
// makes, and empty when it waits.
const Name = "hearth-machine"

const (
	maxReply    = 64 << 10 // bytes of a launcher's answer
	maxLaunched = 64       // machines that one launcher makes, so that nothing in it can grow for long
	maxIdle     = 4        // launchers that wait for a machine to make: that many are made at once when a host is busy
	idRoom      = 40       // bytes of the longest ID
)

// Pool is the launchers of one driver, of which some have made a machine and wait
// for another to make: as long as there are machines, so that nothing is left of a
// driver that has none.
type Pool struct {
	program func() string

	mu    sync.Mutex
	alive map[string]bool // machines, by their IDs
	idle  []*Launcher     // that waited least is last
}

// New returns a pool of launchers that execute a program, whose main function calls Serve
// when its name is Name. It is asked for the program's path each time.
func New(program func() string) *Pool { return &Pool{program: program, alive: map[string]bool{}} }

// take returns one that lives, or nil, for a machine that may have a console of its own.
func (p *Pool) take(id string, own bool) *Launcher {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.alive[id] = true
	for len(p.idle) > 0 && !own {
		l := p.idle[len(p.idle)-1]
		p.idle = p.idle[:len(p.idle)-1]
		select {
		case <-l.ended:
			l.Close()
		default:
			return l
		}
	}
	return nil
}

// put keeps one for the next machine, or ends it.
func (p *Pool) put(l *Launcher) {
	p.mu.Lock()
	full := len(p.idle) == maxIdle || len(p.alive) == 0
	if !full {
		p.idle = append(p.idle, l)
	}
	p.mu.Unlock()
	if full {
		go l.Close() // nobody waits for that
	}
}

// Gone is called when nothing is left of a machine. After the last, no launcher waits.
func (p *Pool) Gone(id string) {
	p.mu.Lock()
	delete(p.alive, id)
	var idle []*Launcher
	if len(p.alive) == 0 {
		idle, p.idle = p.idle, nil
	}
	p.mu.Unlock()
	for _, l := range idle {
		l.Close()
	}
}

// Launcher is a running launcher.
type Launcher struct {
	id      string
	con     *console.Console
	cmd     *exec.Cmd
	request *os.File
	reply   *os.File
	replies *json.Decoder
	limited *io.LimitedReader // of reply
	made    int               // machines, the one that it is making included
	ended   chan struct{}     // closed when the process is gone
	err     error             // how it ended, then
}

// Ended is closed when the process is gone.
func (l *Launcher) Ended() <-chan struct{} { return l.ended }

// stays says whether it can make another machine after this one.
func (l *Launcher) stays() bool {
	stdout, _ := l.con.Output()
	return stdout == nil && l.made < maxLaunched
}

// Get returns one that has nothing to do, for a machine that need not have a
// console, or starts one.
func (p *Pool) Get(id string, con *console.Console) (*Launcher, error) {
	stdout, stderr := con.Output()
	if l := p.take(id, stdout != nil); l != nil {
		l.id, l.con, l.made = id, con, l.made+1
		return l, nil
	}
	requestR, requestW, err := os.Pipe()
	if err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "no pipe to a launcher")
	}
	replyR, replyW, err := os.Pipe()
	if err != nil {
		_, _ = requestR.Close(), requestW.Close()
		return nil, hearth.Wrap(hearth.Internal, err, "no pipe to a launcher")
	}
	cmd := exec.Command(p.program())
	cmd.Args = arguments(id)
	cmd.Env = []string{"GOMAXPROCS=1"} // it does one thing at a time; sandboxes get an environment of their own
	if stdout != nil {
		cmd.Stdout, cmd.Stderr = stdout, stderr
	}
	cmd.ExtraFiles = []*os.File{requestR, replyW}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = hostproc.WithTimers(hostproc.CoarseTimers, cmd.Start)
	_, _ = requestR.Close(), replyW.Close()
	if err != nil {
		_, _ = requestW.Close(), replyR.Close()
		return nil, hearth.Wrap(hearth.Internal, err, "launcher cannot be executed")
	}
	l := &Launcher{id: id, con: con, cmd: cmd, request: requestW, reply: replyR, made: 1, ended: make(chan struct{})}
	l.limited = &io.LimitedReader{R: replyR}
	l.replies = json.NewDecoder(l.limited)
	go func() {
		l.err = cmd.Wait()
		close(l.ended)
	}()
	return l, nil
}

// Ask sends a request and waits for the answer, the process number of the
// sandbox. When ctx ends first, or the launcher fails, the launcher is gone.
func (l *Launcher) Ask(ctx context.Context, req Request) (int, error) {
	stop := context.AfterFunc(ctx, func() { _ = l.cmd.Process.Kill() })
	l.limited.N = maxReply
	var answer reply
	err := json.NewEncoder(l.request).Encode(req)
	if err == nil {
		err = l.replies.Decode(&answer)
	}
	if !stop() {
		err = errors.Join(err, context.Cause(ctx)) // it was killed, if only when it had answered
	}
	if err != nil {
		l.Close()
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		return 0, hearth.Wrap(hearth.Internal, fmt.Errorf("no answer: %w%s", errors.Join(err, l.err), l.con.Tail()), "launcher of machine %s failed", l.id)
	}
	if answer.Error != "" {
		l.Close()
		return 0, hearth.Wrap(hearth.Internal, fmt.Errorf("%s%s", answer.Error, l.con.Tail()), "machine %s cannot be started", l.id)
	}
	return answer.PID, nil
}

// Last is Ask for the machine that then runs. The launcher is nobody's after it: it
// waits for other work, or ends.
func (p *Pool) Last(ctx context.Context, l *Launcher, req Request) (int, error) {
	req.Stay = l.stays()
	pid, err := l.Ask(ctx, req)
	if err != nil {
		return 0, err
	}
	if req.Stay {
		p.put(l)
		return pid, nil
	}
	stop := context.AfterFunc(ctx, func() { _ = l.cmd.Process.Kill() })
	<-l.ended
	stop()
	_, _ = l.request.Close(), l.reply.Close()
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if l.err != nil {
		return 0, hearth.Wrap(hearth.Internal, fmt.Errorf("%w%s", l.err, l.con.Tail()), "launcher of machine %s failed", l.id)
	}
	return pid, nil
}

// Close kills it and waits for its end.
func (l *Launcher) Close() {
	_ = l.cmd.Process.Kill() // that it is gone is as good
	<-l.ended
	_, _ = l.request.Close(), l.reply.Close()
}
