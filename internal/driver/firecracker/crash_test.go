package firecracker_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/driver"
	"hearth/internal/driver/drivertest"
	"hearth/internal/driver/firecracker"
	"hearth/internal/hearth"
)

// starterConfig is what of a run another process of it cannot find out.
type starterConfig struct{ Dir, CgroupParent string }

// startAsStarter starts the machine of a process of its own.
func startAsStarter(ctx context.Context, c starterConfig, spec driver.Spec) (driver.Machine, error) {
	cfg := (&lab{dir: c.Dir}).plainConfig()
	cfg.CgroupParent = c.CgroupParent
	d, err := firecracker.New(cfg)
	if err != nil {
		return nil, err
	}
	return d.Start(ctx, spec)
}

// The process that started a machine is killed; the machine and its pager live on
// and are found by the handle.
func TestMachineOutlivesItsStarter(t *testing.T) {
	l := newLab(t)
	base := l.spec(t)
	base.From = l.checkpoint(t, l.start(t, l.spec(t)), "a", "1")
	spec := l.spec(t)
	spec.From = l.checkpoint(t, l.start(t, base), "b", "2")
	m, err := l.driver(t).Attach(t.Context(), drivertest.RunStarter(t, starterConfig{l.dir, cgroupParent}, spec).KillStarted(t))
	must(t, err)
	t.Cleanup(func() { must(t, m.Close(context.Background())) })
	pager := pagerOf(t, m)
	ask(t, m, "GET", "/console", "mib", "1") // its console is nobody's now
	for k, v := range map[string]string{"a": "1", "b": "2"} {
		if got := ask(t, m, "GET", "/memory", "key", k); got != v {
			t.Errorf("%s is %q, want %q", k, got, v)
		}
	}
	c := l.checkpoint(t, m, "c", "3")
	if c.Base == nil || c.Base.Dir != spec.From.Dir || c.Base.Base == nil || c.Base.Base.Dir != base.From.Dir {
		t.Fatalf("base %+v", c.Base)
	}
	must(t, m.Thaw(t.Context()))
	clone := l.spec(t)
	clone.From = c
	if got := ask(t, l.start(t, clone), "GET", "/memory", "key", "c"); got != "3" {
		t.Errorf("c is %q after a restore from what an attached machine wrote", got)
	}
	must(t, unix.Kill(pager, unix.SIGKILL)) // an attached machine is watched like any other
	<-m.Done()
}

// The starter is killed at ever later points of a start, and what it left is swept.
func TestSweepAfterACrashAtAnyPoint(t *testing.T) {
	l := newLab(t)
	base := l.spec(t)
	base.From = l.checkpoint(t, l.start(t, l.spec(t)), "a", "1")
	layered := l.checkpoint(t, l.start(t, base), "b", "2")
	d := l.driver(t)
	before := l.count(t)
	for i := range 12 {
		spec := l.spec(t)
		if i%2 == 1 {
			spec.From = layered
		}
		drivertest.RunStarter(t, starterConfig{l.dir, cgroupParent}, spec).KillAndSweep(t, d, time.Duration(i)*15*time.Millisecond)
	}
	l.settles(t, before)
}

// A jailer that has not got far enough to be found by its arguments does not outlive
// its starter.
func TestJailerEndsWithItsStarter(t *testing.T) {
	l := newLab(t)
	begun, never, real := filepath.Join(l.dir, "begun"), filepath.Join(l.dir, "never"), filepath.Join(l.dir, "real")
	for _, fifo := range []string{begun, never} {
		must(t, unix.Mkfifo(fifo, 0o600))
	}
	must(t, os.Mkdir(real, 0o755))
	jailer := filepath.Join(l.dir, "bin", "jailer")
	must(t, os.Rename(jailer, filepath.Join(real, "jailer")))
	script := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = --version ] && exec %s/jailer --version\necho $$ >%s\nread -r x <%s\n", real, begun, never)
	must(t, os.WriteFile(jailer, []byte(script), 0o755)) // its arguments are a shell's
	starter := drivertest.RunStarter(t, starterConfig{l.dir, cgroupParent}, l.spec(t))
	raw, err := os.ReadFile(begun)
	must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	must(t, err)
	fd, err := unix.PidfdOpen(pid, 0)
	must(t, err)
	defer unix.Close(fd)
	defer func() { _ = unix.Kill(pid, unix.SIGKILL) }()
	starter.KillAndSweep(t, l.driver(t), 0)
	ended := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(ended, int(time.Minute.Milliseconds())); n != 1 || err != nil {
		t.Errorf("the jailer lives on (%v)", err)
	}
}

// The jailer was asked for everything it gives: users of its own, no way to root,
// a root with nothing else in it, namespaces, limits.
func TestHostSideIsConfined(t *testing.T) {
	l := newLab(t)
	uids := map[string]bool{}
	for range 2 {
		m := l.start(t, l.spec(t))
		ask(t, m, "GET", "/ticks")
		pid := pidOf(t, m)
		status := statusOf(t, pid)
		if status["Uid"] < "3900000000" || status["Gid"] != status["Uid"] || status["CapEff"] != "0000000000000000" {
			t.Errorf("uid %s, gid %s, capabilities %s", status["Uid"], status["Gid"], status["CapEff"])
		}
		uids[status["Uid"]] = true
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/root", pid))
		must(t, err)
		for _, e := range entries {
			switch e.Name() {
			case "dev", "run", "firecracker", "firecracker.pid", "kernel", "initrd", "layer0", "guest", "disk", "api", "vsock", "calls.json":
			default:
				t.Errorf("the jail holds %s", e.Name())
			}
		}
		for _, ns := range []string{"pid", "mnt"} {
			mine, err := os.Readlink("/proc/self/ns/" + ns)
			must(t, err)
			if its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns)); err != nil || its == mine {
				t.Errorf("its %s namespace is ours (%v)", ns, err)
			}
		}
		limit, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/memory", cgroupParent, m.Handle().ID, "memory.limit_in_bytes"))
		if os.IsNotExist(err) {
			limit, err = os.ReadFile(filepath.Join("/sys/fs/cgroup", cgroupParent, m.Handle().ID, "memory.max"))
		}
		must(t, err)
		if got, want := strings.TrimSpace(string(limit)), fmt.Sprint((128+64+1)<<20); got != want {
			t.Errorf("memory limit %s, want %s", got, want)
		}
		files, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
		must(t, err)
		if !strings.Contains(string(files), fmt.Sprint((128+16)<<20)) {
			t.Errorf("file size is not limited:\n%s", files)
		}
	}
	if len(uids) != 2 {
		t.Errorf("two machines run as users %v", uids)
	}
}

func statusOf(t *testing.T, pid int) map[string]string {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	status := map[string]string{}
	for line := range bytes.Lines(raw) {
		name, value, _ := strings.Cut(strings.TrimSpace(string(line)), ":")
		if f := strings.Fields(value); len(f) > 0 {
			status[name] = f[0]
		}
	}
	return status
}

func TestManyStartsAtOnce(t *testing.T) {
	l := newLab(t)
	d := l.driver(t)
	var all sync.WaitGroup
	for range 6 {
		spec := l.spec(t)
		all.Go(func() {
			m, err := d.Start(t.Context(), spec)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := drivertest.Open(m).Ask(t.Context(), "GET", "/ticks", nil); err != nil {
				t.Error(err)
			}
			if err := m.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// An order whose answer is none may have been carried out: the next one does not
// rely on either.
func TestFreezeOfUnknownOutcome(t *testing.T) {
	l := newLab(t)
	l.script(t, map[string]string{"PATCH /vm": "garbage"})
	m := l.start(t, l.spec(t))
	l.script(t, nil)
	if err := m.Freeze(t.Context()); hearth.KindOf(err) != hearth.Internal {
		t.Errorf("freeze: %v", err)
	}
	if _, err := m.Checkpoint(t.Context(), t.TempDir()); hearth.KindOf(err) != hearth.FailedPrecondition {
		t.Errorf("checkpoint of a guest that may run: %v", err)
	}
	if err := m.Thaw(t.Context()); hearth.KindOf(err) != hearth.Internal {
		t.Errorf("thaw of a guest that may stand still: %v", err)
	}
}
