// Package reap starts child processes and collects their exit statuses in one
// place, so that a program that is PID 1 can also bury the orphans it inherits.
//
// Whoever calls wait4(-1) takes statuses from everybody else in the program
// that waits, os/exec included. Here one loop, woken by SIGCHLD, is the only one
// that waits: it hands the status of a known child to the child's owner and
// drops the rest. A child is known before it can be waited for, because starting
// one and waiting exclude each other.
//
// Rule for the whole program: processes are started with Start or StartCmd of
// its one Reaper, and exec.Cmd's Wait, Run and Output are never used.
package reap

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Scope says which exited processes a Reaper collects.
type Scope int

// The scopes.
const (
	Children Scope = iota // only what was started through the Reaper
	Orphans               // also every other child: for PID 1 and subreapers
)

// ScopeOfSelf is Orphans when this process is PID 1, else Children.
func ScopeOfSelf() Scope {
	if os.Getpid() == 1 {
		return Orphans
	}
	return Children
}

// Reaper collects exit statuses. Use New.
type Reaper struct {
	scope Scope

	// fork is held shared while a child is started and made known, and alone
	// while statuses are collected.
	fork sync.RWMutex

	mu       sync.Mutex
	children map[int]*Child
	done     chan struct{}
	stopped  chan struct{}
}

// Child is one started process.
type Child struct {
	pid    int
	exited chan struct{}
	status syscall.WaitStatus // valid once exited is closed
}

// New returns a Reaper that is at work until Close.
func New(scope Scope) *Reaper {
	r := &Reaper{scope: scope, children: map[int]*Child{}, done: make(chan struct{}), stopped: make(chan struct{})}
	wake := make(chan os.Signal, 1)
	signal.Notify(wake, unix.SIGCHLD)
	go r.loop(wake)
	return r
}

// Close stops collecting. Children that still run are left alone; their
// Exited channels never close.
func (r *Reaper) Close() {
	close(r.done)
	<-r.stopped
}

func (r *Reaper) loop(wake chan os.Signal) {
	defer close(r.stopped)
	defer signal.Stop(wake)
	for {
		select {
		case <-wake:
			r.collect()
		case <-r.done:
			return
		}
	}
}

// Start starts the program path as os.StartProcess does, argv[0] included.
func (r *Reaper) Start(path string, argv []string, attr *syscall.ProcAttr) (*Child, error) {
	r.fork.RLock()
	defer r.fork.RUnlock()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return nil, err
	}
	return r.adopt(pid), nil
}

// StartCmd starts cmd, of which only what exec.Cmd.Start itself consults is
// used. The caller waits on the Child; it must have made the pipes itself
// (os.Pipe) or used files, because cmd.Wait, which closes exec's pipes, must not be called.
func (r *Reaper) StartCmd(cmd *exec.Cmd) (*Child, error) {
	r.fork.RLock()
	defer r.fork.RUnlock()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := r.adopt(cmd.Process.Pid)
	return c, cmd.Process.Release()
}

func (r *Reaper) adopt(pid int) *Child {
	c := &Child{pid: pid, exited: make(chan struct{})}
	r.mu.Lock()
	r.children[pid] = c
	r.mu.Unlock()
	return c
}

// collect takes every status that is ready.
func (r *Reaper) collect() {
	r.fork.Lock()
	defer r.fork.Unlock()
	if r.scope == Orphans {
		for {
			if !r.take(-1) {
				return
			}
		}
	}
	r.mu.Lock()
	pids := make([]int, 0, len(r.children))
	for pid := range r.children {
		pids = append(pids, pid)
	}
	r.mu.Unlock()
	for _, pid := range pids {
		r.take(pid)
	}
}

// take waits for one process without blocking and reports whether it got one.
func (r *Reaper) take(which int) bool {
	var ws syscall.WaitStatus
	pid, err := syscall.Wait4(which, &ws, syscall.WNOHANG, nil)
	for errors.Is(err, syscall.EINTR) {
		pid, err = syscall.Wait4(which, &ws, syscall.WNOHANG, nil)
	}
	if err != nil || pid <= 0 {
		return false
	}
	r.mu.Lock()
	c := r.children[pid]
	delete(r.children, pid)
	r.mu.Unlock()
	if c != nil {
		c.status = ws
		close(c.exited)
	}
	return true
}

// Pid is the child's process id. It may be another process's once Exited is closed.
func (c *Child) Pid() int { return c.pid }

// Exited is closed when the process has ended and its status is known.
func (c *Child) Exited() <-chan struct{} { return c.exited }

// Status waits for the end of the process and returns how it ended.
func (c *Child) Status() syscall.WaitStatus {
	<-c.exited
	return c.status
}

// Alive reports whether the process has not been collected yet.
func (c *Child) Alive() bool {
	select {
	case <-c.exited:
		return false
	default:
		return true
	}
}

// SignalGroup sends sig to the process group that the child leads. After the
// child itself has ended the group may live on; it is then signalled only if no
// new process carries the child's id, so that a reused id is never hit.
func (c *Child) SignalGroup(sig syscall.Signal) error {
	if !c.Alive() {
		if _, err := os.Lstat(fmt.Sprintf("/proc/%d", c.pid)); err == nil {
			return syscall.ESRCH
		}
	}
	return syscall.Kill(-c.pid, sig)
}
