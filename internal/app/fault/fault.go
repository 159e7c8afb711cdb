// Package fault kills a server in the middle of what it does, for the tests that
// show that nothing is lost then and nothing left. Only a binary that is built
// with the tag hearthfault has it; any other has no such point, and reads nothing
// of this.
//
// Every call of a driver, a machine, a guest daemon, the network, the blobs and
// the rows that changes something is a point, and so is its return:
// "driver.freeze" and "driver.freeze.after". A file that the variable FAULT_POINTS
// names says what becomes of them, and may change while the server runs:
//
//	NAME N   the N-th time from now on that point NAME is reached, the process
//	         removes the file and dies as by kill -9
//	trace    names of points that are reached are appended to FILE.trace
//
// IDs of machines that are started are appended to FILE.machines.
//
// What is done behind a call's answer, or by the server unasked, reaches points while other
// things are under way: a death falls in the middle of those.
package fault

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
)

// Env is the variable that names the file.
const Env = "FAULT_POINTS"

// Points are the points of a server. The zero value obeys the file that FAULT_POINTS
// names, if it does.
type Points struct {
	mu    sync.Mutex
	order string // that was read last
	seen  int    // how often its point was reached since
}

// path is the file that says what becomes of points; empty: there is none.
func (p *Points) path() string { return os.Getenv(Env) }

// reach passes one point, or does not return.
func (p *Points) reach(name string) {
	path := p.path()
	if path == "" {
		return
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return
	}
	order := strings.TrimSpace(string(raw))
	if order == "trace" {
		p.note("trace", name)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if order != p.order {
		p.order, p.seen = order, 0
	}
	at, n := "", 0
	if _, err := fmt.Sscanf(order, "%s %d", &at, &n); err != nil || at != name {
		return
	}
	if p.seen++; p.seen < n {
		return
	}
	if os.Remove(path) != nil {
		return // the order was taken back
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // the signal is on its way
}

// note appends a line to one of the files beside the order.
func (p *Points) note(file, line string) {
	f, err := os.OpenFile(p.path()+"."+file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	_, _ = f.WriteString(line + "\n")
	_ = f.Close()
}

// around makes a call between its two points.
func (p *Points) around(name string, call func() error) error {
	p.reach(name)
	err := call()
	p.reach(name + ".after")
	return err
}
