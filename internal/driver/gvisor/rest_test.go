package gvisor_test

import (
	"context"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"hearth/internal/driver"
	"hearth/internal/driver/drivertest"
	"hearth/internal/driver/hostproc"
)

// A resting machine uses nothing, whatever its timers and the network want of it.
func TestRestingMachineUsesNoProcessor(t *testing.T) {
	l := newLab(t)
	if !caps(t, l.driver(t)).Rests {
		t.Skip("gvisor: built without our patches, machines only freeze")
	}
	spec := l.spec(t, "conf-rests", 233)
	m, err := l.driver(t).Start(t.Context(), spec)
	must(t, err)
	defer func() { must(t, m.Close(context.WithoutCancel(t.Context()))) }()
	_, err = drivertest.Open(m).Ask(t.Context(), "GET", "/ticks", nil)
	must(t, err)
	must(t, m.(driver.Rester).Rest(t.Context()))
	standsStill(t, spec.ID)
	before := settledUsage(t, m)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", spec.Net.Guest.Addr().String()+":80"); err == nil {
		_ = conn.Close()
		t.Error("a machine that stands still has accepted a connection")
	}
	after, err := m.Usage(t.Context())
	must(t, err)
	if after.CPU != before.CPU {
		t.Errorf("it has used %s while it rested", after.CPU-before.CPU)
	}
	if before.CPU == 0 {
		t.Error("it has used nothing while it ran either")
	}
	must(t, m.Thaw(t.Context()))
	_, err = drivertest.Open(m).Ask(t.Context(), "GET", "/ticks", nil)
	must(t, err)
}

// settledUsage returns what a frozen machine has used when that does not change any
// more: its last slices are charged a moment after it stands still.
func settledUsage(t *testing.T, m driver.Machine) driver.Usage {
	t.Helper()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for deadline, last := time.Now().Add(time.Minute), (driver.Usage{CPU: -1}); ; <-again.C {
		now, err := m.Usage(t.Context())
		must(t, err)
		if now.CPU == last.CPU {
			return now
		}
		if time.Now().After(deadline) {
			t.Fatalf("it uses processor time though it is frozen: %s, then %s", last.CPU, now.CPU)
		}
		last = now
	}
}

// standsStill waits until the host's kernel has frozen a machine's control group.
func standsStill(t *testing.T, id string) {
	t.Helper()
	file, frozen := hostproc.CgroupRoot+"/freezer"+cgroups+"/"+id+"/freezer.state", "FROZEN"
	if hostproc.UnifiedCgroups() {
		file, frozen = hostproc.CgroupRoot+cgroups+"/"+id+"/cgroup.events", "frozen 1"
	}
	for deadline := time.After(time.Minute); ; {
		raw, err := os.ReadFile(file)
		must(t, err)
		if strings.Contains(string(raw), frozen) {
			return
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-deadline:
			t.Fatalf("%s says %q", file, raw)
		}
	}
}
