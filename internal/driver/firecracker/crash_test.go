package firecracker_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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

// starterEnv makes this test binary a process that starts one machine, prints its
// handle, and waits to be killed.
const starterEnv = "HEARTH_TEST_FC_STARTER"

type starterJob struct {
	Dir   string // of the lab
	Spec  driver.Spec
	Bases []driver.Checkpoint // the one to restore, then what it lies over
}

func startAndWait(raw string) int {
	var job starterJob
	if err := json.Unmarshal([]byte(raw), &job); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var from *driver.Checkpoint
	for i := len(job.Bases) - 1; i >= 0; i-- {
		c := job.Bases[i]
		c.Dir, c.Base = job.Spec.Layers[1+i], from
		from = &c
	}
	job.Spec.Layers, job.Spec.From = job.Spec.Layers[:1], from
	d, err := firecracker.New((&lab{dir: job.Dir}).plainConfig())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	m, err := d.Start(context.Background(), job.Spec)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	_ = json.NewEncoder(os.Stdout).Encode(m.Handle())
	select {
	case <-m.Done():
	case <-time.After(time.Minute):
	}
	return 0
}

// starter runs such a process. A checkpoint's directory is no part of its JSON, so
// the directories travel behind the layer.
func (l *lab) starter(t *testing.T, spec driver.Spec) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	job := starterJob{Dir: l.dir, Spec: spec}
	job.Spec.From = nil
	for c := spec.From; c != nil; c = c.Base {
		job.Bases = append(job.Bases, *c)
		job.Spec.Layers = append(job.Spec.Layers[:len(job.Spec.Layers):len(job.Spec.Layers)], c.Dir)
	}
	raw, err := json.Marshal(job)
	must(t, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), starterEnv+"="+string(raw))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	return cmd, bufio.NewReader(out)
}

// The process that started a machine is killed; the machine and its pager live on
// and are found by the handle.
func TestMachineOutlivesItsStarter(t *testing.T) {
	l := newLab(t)
	base := l.spec(t)
	base.From = l.checkpoint(t, l.start(t, l.spec(t)), "a", "1")
	spec := l.spec(t)
	spec.From = l.checkpoint(t, l.start(t, base), "b", "2")
	cmd, out := l.starter(t, spec)
	line, err := out.ReadBytes('\n')
	must(t, err)
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	var h driver.Handle
	must(t, json.Unmarshal(line, &h))
	m, err := l.driver(t).Attach(t.Context(), h)
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
		cmd, out := l.starter(t, spec)
		started := make(chan struct{})
		go func() { defer close(started); _, _ = out.ReadBytes('\n') }()
		select {
		case <-started:
		case <-time.After(time.Duration(i) * 15 * time.Millisecond):
		}
		must(t, cmd.Process.Kill())
		<-started
		_ = cmd.Wait()
		must(t, d.Sweep(t.Context(), driver.Handle{Driver: d.Name(), ID: spec.ID, Dir: spec.Dir}))
		if _, err := os.Stat(spec.Dir); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", spec.Dir, err)
		}
	}
	l.settles(t, before)
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
