package agent

import (
	"context"
	"slices"

	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/node/agent/host"
)

// Memory is what a host has.
type Memory = host.Memory

// Usage is what a sandbox uses by the host's accounting. CPUPct is 0 in the
// first sample; Disk is 0, for a guest's writes count as its memory.
func (a *Agent) Usage(ctx context.Context, id hearth.SandboxID) (node.Usage, error) {
	b := a.box(id)
	if b == nil {
		return node.Usage{}, notFound(id)
	}
	u, err := b.mc.live.Usage(ctx)
	if err != nil {
		return node.Usage{}, err
	}
	now := a.now()
	a.mu.Lock()
	defer a.mu.Unlock()
	return node.Usage{
		At: now, VCPUs: b.resources.VCPUs, CPUPct: b.cpu.Percent(now, u.CPU), Memory: u.Memory, MemoryMax: u.MemoryMax,
		DiskMax: int64(b.resources.DiskMiB) << 20,
	}, nil
}

// Status reports capacity and load. Allocated counts sandboxes, not pools,
// which give way to them.
func (a *Agent) Status(context.Context) (*hearth.NodeStatus, error) {
	starts, waiting := a.queue.Load()
	a.mu.Lock()
	defer a.mu.Unlock()
	s := &hearth.NodeStatus{
		ID: a.cfg.Node, Total: a.total, Starting: starts + waiting, Draining: a.state != open,
		Cached: map[string]bool{}, SeenAt: a.now(),
	}
	for name := range a.caps {
		s.Drivers = append(s.Drivers, name)
	}
	slices.Sort(s.Drivers)
	s.Offers = a.offers()
	for _, b := range a.boxes {
		s.Allocated.VCPUs += b.resources.VCPUs
		s.Allocated.MemoryMiB += b.resources.MemoryMiB
		s.Allocated.DiskMiB += b.resources.DiskMiB
		s.Cached[string(b.mc.rec.Build)] = true
	}
	a.pools.Cached(s.Cached)
	return s, nil
}

// Stats is how starts were served since the agent was made, and what the pools hold.
type Stats struct {
	Warm, Cold    int64 // starts from a pool, and the others
	Blank         int64 // of the others, those that were restored into a blank
	Pooled        int   // machines ready
	Blanks        int   // blanks ready
	PoolMemory    int64 // bytes they hold, machines being made included
	Waiting       int   // users' starts that wait for their turn
	Undead        int   // machines that could not be taken down yet
	PoolReady     map[hearth.SnapshotID]int
	ShortOfMemory bool
}

// Stats reports counters for metrics.
func (a *Agent) Stats() Stats {
	_, waiting := a.queue.Load()
	a.mu.Lock()
	defer a.mu.Unlock()
	s := Stats{
		Warm: a.warm, Cold: a.cold, Blank: a.blank, Waiting: waiting, Undead: len(a.zombies),
		Pooled: len(a.pools.Machines()), Blanks: a.pools.CountBlanks(), PoolMemory: a.pools.Held(),
		ShortOfMemory: a.short, PoolReady: a.pools.Ready(),
	}
	return s
}

// Steps tells how long each part of a sandbox's start took, in order; nil when
// it is not here or was started by an earlier process.
func (a *Agent) Steps(id hearth.SandboxID) []Step {
	a.mu.Lock()
	defer a.mu.Unlock()
	if b := a.boxes[id]; b != nil {
		return slices.Clone(b.mc.took)
	}
	return nil
}
