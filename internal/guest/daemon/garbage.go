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
)

// HeapGrowth is by how many percent the daemon's heap may grow between two collections.
const HeapGrowth = 50

// collect lets the collector work as it is due for a daemon that is sealed or not. The caller
// holds initMu, or nobody else has the daemon yet.
func (d *Daemon) collect(sealed bool) {
	if d.system == nil {
		return // the process is not ours
	}
	if sealed {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		debug.SetMemoryLimit(int64(m.Sys-m.HeapReleased) + sealedBytes)
		debug.SetGCPercent(-1)
		return
	}
	time.AfterFunc(firstUse, func() {
		d.state.initMu.Lock()
		defer d.state.initMu.Unlock()
		if !d.state.get().sealed {
			debug.SetGCPercent(HeapGrowth)
			debug.SetMemoryLimit(math.MaxInt64)
		}
	})
}
