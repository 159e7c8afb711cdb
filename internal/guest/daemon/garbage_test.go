package daemon

import (
	"math"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"
)

// A sealed daemon collects for want of memory only, one that is used as ever, though not at once.
func TestCollectorWaitsForUse(t *testing.T) {
	percent, limit := debug.SetGCPercent(100), debug.SetMemoryLimit(-1)
	defer func() { debug.SetGCPercent(percent); debug.SetMemoryLimit(limit) }()
	expect := func(when string, percent int, limited bool) {
		t.Helper()
		got := debug.SetGCPercent(percent)
		if bytes := debug.SetMemoryLimit(-1); got != percent || (bytes < math.MaxInt64) != limited {
			t.Errorf("%s: the heap may grow by %d %%, to %d bytes", when, got, bytes)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		d := &Daemon{system: &System{}, state: newState(nil)}
		is := func(sealed bool) {
			if err := d.state.set(identity{sealed: sealed}); err != nil {
				t.Error(err)
			}
			d.collect(sealed)
		}
		is(true)
		expect("sealed", -1, true)
		is(false)
		time.Sleep(firstUse - 1)
		expect("just unsealed", -1, true)
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		expect("in use", HeapGrowth, false)
		is(true)
		expect("sealed again", -1, true)
		is(false)
		time.Sleep(firstUse / 2)
		is(true)
		time.Sleep(firstUse)
		synctest.Wait()
		expect("sealed while it waited", -1, true)
		held, garbage := debug.SetMemoryLimit(-1), make([]byte, 64<<20)
		is(true)
		if now := debug.SetMemoryLimit(-1); now != held {
			t.Errorf("sealed after %d bytes of garbage: the limit was %d bytes and is %d", len(garbage), held, now)
		}
		d.shrink()
		if now := debug.SetMemoryLimit(-1); now == held {
			t.Error("a heap that was shrunk has the limit that it had before")
		}
	})
	debug.SetGCPercent(100)
	debug.SetMemoryLimit(math.MaxInt64)
	(&Daemon{state: newState(nil)}).collect(true)
	expect("a process that is not the daemon's", 100, false)
}
