package gvisor_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearth/internal/driver"
	"hearth/internal/driver/drivertest"
	"hearth/internal/driver/gvisor"
)

// idleLauncher returns the launcher of this process that waits; 0: there is none.
func idleLauncher(t *testing.T) (found int) {
	t.Helper()
	for pid, state := range childrenOf(t, os.Getpid()) {
		raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // it may be gone
		if state == "Z" || strings.TrimRight(string(raw), "\x00") != "hearth-machine" {
			continue
		}
		if found != 0 {
			t.Fatalf("launchers %d and %d both wait", found, pid)
		}
		found = pid
	}
	return found
}

// childrenOf returns the states of a process's children by their numbers.
func childrenOf(t *testing.T, parent int) map[int]string {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	must(t, err)
	children := map[int]string{}
	for _, path := range stats {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue // it is gone
		}
		fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:])) // the state, its parent
		if len(fields) > 1 && fields[1] == strconv.Itoa(parent) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			must(t, err)
			children[pid] = fields[0]
		}
	}
	return children
}

// TestLauncherIsKept: what restores machines is one process, which holds no more than a
// socket for each that lives, buries them, and is gone when the last of them is.
func TestLauncherIsKept(t *testing.T) {
	l := newLab(t)
	d := l.driver(t)
	restore := func(id string, slot int, from *driver.Checkpoint) driver.Machine {
		spec := l.spec(t, id, slot)
		spec.From = from
		m, err := d.Start(t.Context(), spec)
		must(t, err)
		t.Cleanup(func() { _ = m.Close(context.Background()) }) // should the test end early
		return m
	}
	first := restore("conf-kept", 230, nil)
	must(t, first.Freeze(t.Context()))
	from, err := first.Checkpoint(t.Context(), t.TempDir())
	must(t, err)
	if pid := idleLauncher(t); pid != 0 {
		t.Errorf("launcher %d of a machine with a console waits", pid)
	}
	stays := restore("conf-kept-1", 231, from)
	pid := idleLauncher(t)
	if pid == 0 {
		t.Fatal("no launcher waits")
	}
	for i := range 4 {
		m := restore(fmt.Sprintf("conf-kept-%d", 2+i), 232+i, from)
		if again := idleLauncher(t); again != pid {
			t.Fatalf("launcher %d waits, want %d", again, pid)
		}
		haveNoSocketInCommon(t, childrenOf(t, pid))
		must(t, m.Close(t.Context()))
	}
	// It closes what it held for a machine when that has ended, or, with published gVisor, Go
	// does so at a collection, which comes after two minutes at the latest.
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for deadline := time.Now().Add(5 * time.Minute); ; <-again.C {
		open, children := len(sockets(t, pid)), childrenOf(t, pid)
		if open <= 1 && len(children) == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the launcher has %d sockets open and the children %v, want one at most and one that lives", open, children)
		}
	}
	must(t, stays.Close(t.Context()))
	must(t, first.Close(t.Context()))
	if pid := idleLauncher(t); pid != 0 {
		t.Errorf("launcher %d waits though there are no machines", pid)
	}
}

// haveNoSocketInCommon says so of the sandboxes of one launcher, at least two of which live: a
// sandbox that had another's would read and send on its network.
func haveNoSocketInCommon(t *testing.T, sandboxes map[int]string) {
	t.Helper()
	if len(sandboxes) < 2 {
		t.Fatalf("the launcher has the children %v, want two", sandboxes)
	}
	owner := map[string]int{}
	for pid := range sandboxes {
		own := sockets(t, pid)
		if len(own) == 0 {
			t.Fatalf("sandbox %d has no socket", pid)
		}
		for _, socket := range own {
			if other, taken := owner[socket]; taken && other != pid {
				t.Errorf("sandboxes %d and %d both have %s", other, pid, socket)
			}
			owner[socket] = pid
		}
	}
}

// sockets lists the sockets of a process.
func sockets(t *testing.T, pid int) (found []string) {
	t.Helper()
	list, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	must(t, err)
	for _, fd := range list {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "socket:") {
			found = append(found, to)
		}
	}
	return found
}

// TestSandboxesExecuteTheirProgram: from where the driver has it open, and another driver
// finds them again.
func TestSandboxesExecuteTheirProgram(t *testing.T) {
	l := newLab(t)
	if !caps(t, l.driver(t)).SharedMemory {
		t.Skip("gVisor as published: this program is executed")
	}
	cfg := l.config(t)
	cfg.Exe, cfg.Program = "", func() (*os.File, error) { return os.Open(l.exe) }
	d, err := gvisor.New(cfg)
	must(t, err)
	m, err := d.Start(t.Context(), l.spec(t, "conf-program", 237))
	must(t, err)
	t.Cleanup(func() { must(t, m.Close(context.Background())) })
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pidOf(t, m))); err != nil || exe != l.exe {
		t.Errorf("the sandbox executes %s, %v; want %s", exe, err, l.exe)
	}
	found, err := l.driver(t).Attach(t.Context(), m.Handle())
	must(t, err)
	_, err = drivertest.Open(found).Ask(t.Context(), "GET", "/ticks", nil)
	must(t, err)
}
