package gvisor_test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearth/internal/driver"
	"hearth/internal/driver/drivertest"
	"hearth/internal/driver/hostproc"
)

// A machine starts with coarse timers, its launcher's, and has exact ones, in every thread and in
// those that begin later, once somebody is about to use it.
func TestTimersAreExactWhenUsed(t *testing.T) {
	l := newLab(t)
	m := l.start(t, "conf-timers", 234, nil)
	if got := slack(t, m); !slices.Equal(got, []time.Duration{hostproc.CoarseTimers}) {
		t.Errorf("a machine that has just started has timers with slack %v", got)
	}
	driver.ExactTimers(m)
	driver.ExactTimers(m)
	for range 20 {
		_, err := drivertest.Open(m).Ask(t.Context(), "GET", "/ticks", nil)
		must(t, err)
	}
	if got := slack(t, m); !slices.Equal(got, []time.Duration{hostproc.ExactTimers}) {
		t.Errorf("a machine in use has timers with slack %v", got)
	}
}

// slack lists the different ones among a machine's threads.
func slack(t *testing.T, m driver.Machine) (list []time.Duration) {
	t.Helper()
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pidOf(t, m)))
	must(t, err)
	for _, thread := range threads {
		raw, err := os.ReadFile("/proc/" + thread.Name() + "/timerslack_ns")
		if err != nil {
			continue // it has ended
		}
		ns, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
		must(t, err)
		if d := time.Duration(ns); !slices.Contains(list, d) {
			list = append(list, d)
		}
	}
	return list
}

// The monotonic clock of a restored machine goes on from where it stood: a guest's timers are not
// all overdue because its checkpoint is old.
func TestMonotonicClockStandsStillInCheckpoints(t *testing.T) {
	l := newLab(t)
	if !caps(t, l.driver(t)).SharedMemory {
		t.Skip("gvisor: built without our patches, the clock jumps")
	}
	monotonic := func(m driver.Machine) time.Duration {
		text, err := drivertest.Open(m).Ask(t.Context(), "GET", "/monotonic", nil)
		must(t, err)
		ns, err := strconv.ParseInt(text, 10, 64)
		must(t, err)
		return time.Duration(ns)
	}
	m := l.start(t, "conf-clock-1", 235, nil)
	asked := time.Now()
	before := monotonic(m)
	must(t, m.Freeze(t.Context()))
	c, err := m.Checkpoint(t.Context(), t.TempDir())
	must(t, err)
	ran := time.Since(asked)
	<-time.After(2 * time.Second) // far more than a clock may be wrong by
	began := time.Now()
	after := monotonic(l.start(t, "conf-clock-2", 236, c))
	if ran += time.Since(began); after < before || after-before > ran {
		t.Errorf("it went on by %s; the guest ran for %s at most", after-before, ran)
	}
}
