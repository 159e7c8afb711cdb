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
	firstUse    = 2 * time.Second // after a seal was lifted
	sealedBytes = 16 << 20        // by which a sealed daemon's memory may grow without one
	firstBytes  = maxMessage      // and in its first use
)

// HeapGrowth is by how many percent the daemon's heap may grow between two collections.
const HeapGrowth = 50

// collector is what a daemon that is sealed now and then does about garbage.
type collector struct {
	base int64       // bytes held when collections were put off; 0: they are not
	due  *time.Timer // ends that
}

// collect lets the collector work as it is due for a daemon that is sealed or not. The caller
// holds initMu, or nobody else has the daemon yet.
func (d *Daemon) collect(sealed bool) {
	if d.system == nil {
		return // the process is not ours
	}
	c := &d.collector
	if c.due != nil {
		c.due.Stop()
	}
	if c.base == 0 { // seals one after the other do not add up
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		c.base = int64(m.Sys - m.HeapReleased)
	}
	debug.SetGCPercent(-1)
	if sealed {
		debug.SetMemoryLimit(c.base + sealedBytes)
		return
	}
	debug.SetMemoryLimit(c.base + firstBytes)
	c.due = time.AfterFunc(firstUse, func() {
		d.state.initMu.Lock()
		defer d.state.initMu.Unlock()
		if !d.state.get().sealed {
			c.base = 0
			debug.SetGCPercent(HeapGrowth)
			debug.SetMemoryLimit(math.MaxInt64)
		}
	})
}

// shrink gives memory back, so that a checkpoint does not carry it. That collects, too.
func (d *Daemon) shrink() {
	debug.FreeOSMemory()
	d.collector.base = 0
	d.collect(true)
}
