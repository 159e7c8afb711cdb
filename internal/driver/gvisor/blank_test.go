package gvisor_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"hearth/internal/driver"
	"hearth/internal/driver/drivertest"
	"hearth/internal/hearth"
)

// processOf finds the process of a machine that is called so; 0 when there is none.
func processOf(t *testing.T, name, id string) int {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	for _, path := range lines {
		raw, _ := os.ReadFile(path) // it may be gone
		args := strings.Split(strings.Trim(string(raw), "\x00"), "\x00")
		if args[0] == name && args[len(args)-1] == id {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			must(t, err)
			return pid
		}
	}
	return 0
}

func (l *lab) prepare(t *testing.T, spec driver.Spec) driver.Blank {
	t.Helper()
	b, err := l.driver(t).(driver.Preparer).Prepare(t.Context(), spec)
	must(t, err)
	return b
}

func TestBlanks(t *testing.T) {
	l := newLab(t)
	for name, test := range map[string]func(*testing.T, *lab){
		"dead": deadBlank, "orphan": orphanedBlank, "descriptors": foreignDescriptors, "disk full": blankOnFullDisk,
	} {
		before := l.count(t)
		t.Run(name, func(t *testing.T) { test(t, l) })
		l.settles(t, before)
	}
}

// settles waits for what ends by itself: a launcher that was killed before it had its
// name, say. Descriptors are left out: the test process polls from some time on.
func (l *lab) settles(t *testing.T, before map[string]int) {
	t.Helper()
	drivertest.NothingLeft(t, t.Name(), before, func(t *testing.T) map[string]int {
		after := l.count(t)
		delete(after, "descriptors")
		return after
	})
}

// deadBlank: a blank of which a process dies says so, and is not restored.
func deadBlank(t *testing.T, l *lab) {
	m, err := l.driver(t).Start(t.Context(), l.spec(t, "conf-blank", 240))
	must(t, err)
	must(t, m.Freeze(t.Context()))
	from, err := m.Checkpoint(t.Context(), t.TempDir())
	must(t, err)
	must(t, m.Close(t.Context()))
	for i, name := range []string{"runsc-sandbox", "hearth-machine"} {
		spec := l.spec(t, fmt.Sprintf("conf-dead-%d", i), 241+i)
		b := l.prepare(t, spec)
		pid := processOf(t, name, spec.ID)
		if pid == 0 {
			t.Fatalf("there is no %s", name)
		}
		must(t, syscall.Kill(pid, syscall.SIGKILL))
		select {
		case <-b.Done():
		case <-time.After(time.Minute):
			t.Fatalf("nobody noticed that %s died", name)
		}
		if i == 0 { // a taker may be faster than the notice
			if m, err := b.Restore(t.Context(), from); err == nil {
				t.Errorf("a dead blank became %v", m.Handle())
			}
		}
		must(t, b.Close(t.Context()))
		must(t, os.RemoveAll(spec.Dir))
	}
}

// orphanedBlank: a blank does not outlive the process that prepared it, which may
// also be killed while it prepares.
func orphanedBlank(t *testing.T, l *lab) {
	d := l.driver(t)
	h := l.preparer(t, l.spec(t, "conf-orphan", 241)).KillStarted(t)
	waitGone(t, "hearth-machine", h.ID)
	waitGone(t, "runsc-sandbox", h.ID)
	must(t, d.Sweep(t.Context(), h))
	for i := range 8 {
		l.preparer(t, l.spec(t, fmt.Sprintf("conf-orphan-%d", i), 242+i)).KillAndSweep(t, d, time.Duration(i)*15*time.Millisecond)
	}
}

func waitGone(t *testing.T, name, id string) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if processOf(t, name, id) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s of %s lives on", name, id)
		}
	}
}

// foreignDescriptors: what the server's starter left open for everyone, the launcher does not keep.
func foreignDescriptors(t *testing.T, l *lab) {
	forgotten, err := syscall.Open(l.root, syscall.O_RDONLY, 0) // without O_CLOEXEC
	must(t, err)
	defer syscall.Close(forgotten)
	spec := l.spec(t, "conf-descriptors", 240)
	b := l.prepare(t, spec)
	defer func() { must(t, b.Close(t.Context())) }()
	for _, name := range []string{"hearth-machine", "runsc-sandbox"} {
		open := 0
		fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", processOf(t, name, spec.ID)))
		must(t, err)
		for _, fd := range fds {
			if target, _ := os.Readlink(fd); target == l.root {
				open++
			}
		}
		if want := map[string]int{"runsc-sandbox": 1}[name]; open != want {
			t.Errorf("%s has the root image open %d times, want %d", name, open, want)
		}
	}
}

// blankOnFullDisk: one that cannot be written is an error, and leaves nothing.
func blankOnFullDisk(t *testing.T, l *lab) {
	spec := l.spec(t, "conf-full", 240)
	must(t, syscall.Mount("full", spec.Dir, "tmpfs", 0, "size=4k,nr_inodes=1"))
	defer func() { must(t, syscall.Unmount(spec.Dir, 0)) }()
	b, err := l.driver(t).(driver.Preparer).Prepare(t.Context(), spec)
	if err == nil {
		_ = b.Close(t.Context())
	}
	if hearth.KindOf(err) != hearth.Internal {
		t.Errorf("prepared on a full disk: %v", err)
	}
}
