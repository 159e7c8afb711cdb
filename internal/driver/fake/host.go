// Package fake is a driver without a technology: machines are values in memory,
// guests are Go functions. It passes drivertest, and lets everything above a
// driver be tested on any machine, in microseconds, with every failure there is.
//
// A Host is the part of the world that outlives a process: give the same Host to
// a second Driver and Attach finds the machines the first one started. A host
// starts no goroutine but one per open connection, over net.Pipe, so that it can
// be used inside a testing/synctest bubble.
package fake

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// Name is what Driver.Name returns where Config says nothing else.
const Name = "fake"

// Op names an operation of a driver or a machine that a Hook may fail.
type Op string

// The operations.
const (
	Probe      Op = "probe"
	Start      Op = "start"
	Prepare    Op = "prepare"
	Restore    Op = "restore" // of a blank
	Attach     Op = "attach"
	Sweep      Op = "sweep"
	Dial       Op = "dial"
	Freeze     Op = "freeze"
	Thaw       Op = "thaw"
	Checkpoint Op = "checkpoint"
	UsageOf    Op = "usage"
	Close      Op = "close"
)

// A Hook is asked before an operation on a machine (of Probe: id is empty). An
// error makes the operation fail with it, at the worst moment: a failing
// Checkpoint leaves half a file, a failing Close leaves the machine running. A
// hook may block until ctx ends.
type Hook func(ctx context.Context, op Op, id string) error

// Config is how a fake host behaves.
type Config struct {
	// Program is run in every guest as it boots or is restored, before Start
	// returns; it registers what listens on the guest's ports. Nil: no port is open.
	Program func(*Guest)
	// Name is the drivers' name; empty means Name.
	Name string
	// Key is Capabilities.Key; empty means "fake-1".
	Key string
	// Isolation is Capabilities.Isolation; empty means none.
	Isolation hearth.Isolation
	// DiskOnly makes a host whose checkpoints cannot keep memory.
	DiskOnly bool
	// Layered makes checkpoints of restored machines hold only what changed. What
	// they refer to is read again, so that it must still be there.
	Layered bool
	// Tap makes a host whose machines send through a tap. Start refuses a network
	// with one on other hosts, and one without on such.
	Tap bool
}

// Host is a fake machine room. Methods are safe for concurrent use.
type Host struct {
	cfg Config

	mu       sync.Mutex
	machines map[string]*machine // by ID, the living ones
	boots    int                 // number of machines ever started
	hook     Hook
	failures map[Op][]error
}

// NewHost returns an empty host.
func NewHost(cfg Config) *Host {
	cfg.Name, cfg.Key = cmp.Or(cfg.Name, Name), cmp.Or(cfg.Key, "fake-1")
	cfg.Isolation = cmp.Or(cfg.Isolation, hearth.NoIsolation)
	return &Host{cfg: cfg, machines: map[string]*machine{}, failures: map[Op][]error{}}
}

// Fail makes the next calls of op fail, one call per error, in order. A nil
// error lets that call pass. Calls to Fail add up.
func (h *Host) Fail(op Op, errs ...error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failures[op] = append(h.failures[op], errs...)
}

// SetHook replaces the hook; nil removes it. It is asked after Fail's list.
func (h *Host) SetHook(hook Hook) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hook = hook
}

// Kill ends a guest as if it had died by itself or been killed from outside. It
// reports NotFound when no such machine runs.
func (h *Host) Kill(id string, exit driver.Exit) error {
	m := h.lookup(id)
	if m == nil {
		return hearth.Errorf(hearth.NotFound, "machine %s is not running", id)
	}
	m.die(exit)
	return nil
}

// Machines lists the IDs of the living machines, sorted. Empty after a test: no leak.
func (h *Host) Machines() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	ids := make([]string, 0, len(h.machines))
	for id := range h.machines {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Frozen reports whether a machine is there and frozen.
func (h *Host) Frozen(id string) bool {
	m := h.lookup(id)
	return m != nil && m.frozen()
}

// Boots counts the machines started so far, restores included.
func (h *Host) Boots() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.boots
}

// Guest returns the inside of a living machine, nil when there is none.
func (h *Host) Guest(id string) *Guest {
	if m := h.lookup(id); m != nil {
		return m.guest
	}
	return nil
}

func (h *Host) lookup(id string) *machine {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.machines[id]
}

// before asks the scripted failures and the hook whether op may go on.
func (h *Host) before(ctx context.Context, op Op, id string) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	h.mu.Lock()
	var err error
	if list := h.failures[op]; len(list) > 0 {
		err, h.failures[op] = list[0], list[1:]
	}
	hook := h.hook
	h.mu.Unlock()
	if err == nil && hook != nil {
		err = hook(ctx, op, id)
	}
	return err
}

// add registers a started machine; it fails when the ID is taken.
func (h *Host) add(m *machine) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.machines[m.spec.ID] != nil {
		return hearth.Errorf(hearth.AlreadyExists, "machine %s is already there", m.spec.ID)
	}
	h.boots++
	m.boot = h.boots
	m.started = time.Now()
	h.machines[m.spec.ID] = m
	return nil
}

func (h *Host) remove(m *machine) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.machines[m.spec.ID] == m {
		delete(h.machines, m.spec.ID)
	}
}
