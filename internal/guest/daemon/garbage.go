package daemon

import (
	"math"
	"runtime"
	"runtime/debug"
	"time"
)

// Go collects garbage when two minutes have passed since it did last, whatever there is to collect.
// A machine of a pool has often waited for longer: then that would be the first thing that it does
// for its sandbox, and it takes longer than a command. So a sealed daemon collects only for
// want of memory, and one that was unsealed does not begin before its sandbox has been used.

const (
	firstUse  = 2 * time.Second // after a seal was lifted
	heldBytes = maxMessage      // by which memory may grow without a collection
)

// HeapGrowth is by how many percent the daemon's heap may grow between two collections.
const HeapGrowth = 50

// garbage is what a daemon that is sealed now and then does about it.
type garbage struct {
	held bool        // collections are put off
	due  *time.Timer // ends that
}

// collect lets the collector work as it is due for a daemon that is sealed or not. The caller
// holds initMu, or nobody else has the daemon yet.
func (d *Daemon) collect(sealed bool) {
	if d.system == nil {
		return // the process is not ours
	}
	g := &d.garbage
	if g.due != nil {
		g.due.Stop()
	}
	if !g.held { // else the limit stays: seals one after the other do not add up
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		debug.SetMemoryLimit(int64(m.Sys-m.HeapReleased) + heldBytes)
		debug.SetGCPercent(-1)
		g.held = true
	}
	if sealed {
		return
	}
	g.due = time.AfterFunc(firstUse, func() {
		d.state.initMu.Lock()
		defer d.state.initMu.Unlock()
		if !d.state.get().sealed {
			debug.SetGCPercent(HeapGrowth)
			debug.SetMemoryLimit(math.MaxInt64)
			g.held = false
		}
	})
}

// shrink gives memory back, so that a checkpoint does not carry it. That collects, too, so
// that what is held from then on is less. The daemon is sealed.
func (d *Daemon) shrink() {
	debug.FreeOSMemory()
	d.garbage.held = false
	d.collect(true)
}
