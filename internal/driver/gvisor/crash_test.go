package gvisor_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hearth/internal/driver"
	"hearth/internal/driver/drivertest"
	"hearth/internal/driver/gvisor"
)

// starterConfig is what a process that drivertest.RunStarter runs is told.
type starterConfig struct {
	gvisor.Config
	Blank     bool // it prepares a machine, and does not start it
	Switching bool // it freezes the machine and lets it go on, again and again
}

// prepared is a blank as a starter has it.
type prepared struct {
	driver.Machine // none
	blank          driver.Blank
	handle         driver.Handle
}

func (p prepared) Handle() driver.Handle { return p.handle }
func (p prepared) Done() <-chan struct{} { return p.blank.Done() }

func TestMain(m *testing.M) {
	drivertest.BeStarter(func(ctx context.Context, c starterConfig, spec driver.Spec) (driver.Machine, error) {
		d, err := gvisor.New(c.Config)
		if err != nil {
			return nil, err
		}
		if c.Blank {
			b, err := d.Prepare(ctx, spec)
			return prepared{blank: b, handle: driver.Handle{Driver: d.Name(), ID: spec.ID, Dir: spec.Dir}}, err
		}
		m, err := d.Start(ctx, spec)
		if err == nil && c.Switching {
			go switchForever(m)
		}
		return m, err
	})
	os.Exit(m.Run())
}

// starter runs a process that starts one machine.
func (l *lab) starter(t *testing.T, spec driver.Spec) *drivertest.Starter {
	return drivertest.RunStarter(t, starterConfig{Config: l.quiet(t)}, spec)
}

// preparer runs a process that prepares one.
func (l *lab) preparer(t *testing.T, spec driver.Spec) *drivertest.Starter {
	return drivertest.RunStarter(t, starterConfig{Config: l.quiet(t), Blank: true}, spec)
}

func (l *lab) quiet(t *testing.T) gvisor.Config {
	cfg := l.config(t)
	cfg.Log = nil
	return cfg
}

// The process that started a machine is killed; the machine lives on and is
// found by its handle.
func TestMachineOutlivesItsStarter(t *testing.T) {
	l := newLab(t)
	m, err := l.driver(t).Attach(t.Context(), l.starter(t, l.spec(t, "conf-outlives", 231)).KillStarted(t))
	must(t, err)
	ask := func(m driver.Machine) {
		t.Helper()
		_, err := drivertest.Open(m).Ask(t.Context(), "GET", "/console?mib=1", nil) // its console is nobody's now
		must(t, err)
	}
	ask(m)
	must(t, m.Freeze(t.Context()))
	c, err := m.Checkpoint(t.Context(), t.TempDir())
	must(t, err)
	must(t, m.Thaw(t.Context()))
	ask(m)
	spec := l.spec(t, "conf-outlived", 232)
	spec.From = c
	clone, err := l.driver(t).Start(t.Context(), spec)
	must(t, err)
	ask(clone)
	must(t, m.Close(t.Context()))
	must(t, clone.Close(t.Context()))
}

// The starter is killed at ever later points of a start, and what it left is swept.
func TestSweepAfterACrashAtAnyPoint(t *testing.T) {
	l := newLab(t)
	d := l.driver(t)
	m, err := d.Start(t.Context(), l.spec(t, "conf-crash", 214))
	must(t, err)
	must(t, m.Freeze(t.Context()))
	from, err := m.Checkpoint(t.Context(), t.TempDir())
	must(t, err)
	must(t, m.Close(t.Context()))
	neighbour, err := d.Start(t.Context(), l.spec(t, "conf-crash-neighbour", 215)) // is neither taken for a stray nor waited for
	must(t, err)
	_, err = drivertest.Open(neighbour).Ask(t.Context(), "GET", "/ticks", nil)
	must(t, err)
	before := l.count(t)
	t.Run("crashes", func(t *testing.T) {
		for i := range 14 {
			spec := l.spec(t, fmt.Sprintf("conf-crash-%d", i), 200+i)
			if i%2 == 1 {
				spec.From = from // half of them are restored
			}
			l.starter(t, spec).KillAndSweep(t, d, time.Duration(i)*15*time.Millisecond)
		}
	})
	l.settles(t, before)
	_, err = drivertest.Open(neighbour).Ask(t.Context(), "GET", "/ticks", nil)
	must(t, err)
	must(t, neighbour.Close(t.Context()))
}

// Every process of a machine runs as a user of its own range, with seccomp and
// without a way to new privileges.
func TestHostSideIsConfined(t *testing.T) {
	l := newLab(t)
	uids := map[string]bool{}
	for i := range 2 {
		m, err := l.driver(t).Start(t.Context(), l.spec(t, fmt.Sprintf("conf-confined-%d", i), 233+i))
		must(t, err)
		t.Cleanup(func() { must(t, m.Close(context.Background())) })
		_, err = drivertest.Open(m).Ask(t.Context(), "GET", "/ticks", nil)
		must(t, err)
		procs, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/pids", cgroups, m.Handle().ID, "cgroup.procs"))
		if os.IsNotExist(err) {
			procs, err = os.ReadFile(filepath.Join("/sys/fs/cgroup", cgroups, m.Handle().ID, "cgroup.procs"))
		}
		must(t, err)
		for _, pid := range strings.Fields(string(procs)) {
			status := statusOf(t, pid)
			if status == nil {
				continue
			}
			if status["NoNewPrivs"] != "1" || status["Seccomp"] != "2" || status["Uid"] < "2000000000" {
				t.Errorf("process %s: NoNewPrivs %s, Seccomp %s, Uid %s", pid, status["NoNewPrivs"], status["Seccomp"], status["Uid"])
			}
			haveFewRights(t, pid)
			uids[status["Uid"]] = true
		}
	}
	if len(uids) != 2 {
		t.Errorf("two machines run as users %v", uids)
	}
}

// statusOf reads what the kernel says of a process or thread; nil when it has ended.
func statusOf(t *testing.T, pid string) map[string]string {
	t.Helper()
	raw, err := os.ReadFile("/proc/" + pid + "/status")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return nil
	}
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

// The limits are in force, and the guest is told of its memory without its disk.
func TestLimitsAreInForce(t *testing.T) {
	l := newLab(t)
	m, err := l.driver(t).Start(t.Context(), l.spec(t, "conf-limits", 236))
	must(t, err)
	t.Cleanup(func() { must(t, m.Close(context.Background())) })
	read := func(one, two string) string {
		raw, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", filepath.Dir(one), cgroups, m.Handle().ID, filepath.Base(one)))
		if os.IsNotExist(err) {
			raw, err = os.ReadFile(filepath.Join("/sys/fs/cgroup", cgroups, m.Handle().ID, two))
		}
		must(t, err)
		return strings.TrimSpace(string(raw))
	}
	if got, want := read("memory/memory.limit_in_bytes", "memory.max"), fmt.Sprint((128+64+64)<<20); got != want {
		t.Errorf("memory limit %s, want %s", got, want)
	}
	if got := read("pids/pids.max", "pids.max"); got != "1280" {
		t.Errorf("pids limit %s, want 1280", got)
	}
	if got := read("cpu/cpu.cfs_quota_us", "cpu.max"); !strings.HasPrefix(got, "100000") {
		t.Errorf("cpu quota %s, want 100000", got)
	}
	meminfo, err := drivertest.Open(m).Ask(t.Context(), "GET", "/file", url.Values{"path": {"/proc/meminfo"}})
	must(t, err)
	if want := fmt.Sprintf("%d kB", 128<<10); !strings.Contains(strings.SplitN(meminfo, "\n", 2)[0], want) {
		t.Errorf("the guest is told %q, want %s", strings.SplitN(meminfo, "\n", 2)[0], want)
	}
}

func TestManyStartsAtOnce(t *testing.T) {
	l := newLab(t)
	d := l.driver(t)
	var all sync.WaitGroup
	for i := range 8 {
		spec := l.spec(t, fmt.Sprintf("conf-many-%d", i), 220+i)
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

// `PROGRAM runsc` is gVisor's own command line.
func TestStockRunsc(t *testing.T) {
	l := newLab(t)
	bundle := filepath.Join(l.dir, "stock")
	must(t, os.MkdirAll(filepath.Join(bundle, "rootfs"), 0o755))
	must(t, os.Rename(filepath.Join(l.dir, "g", "testguest"), filepath.Join(bundle, "rootfs", "testguest")))
	run(t, l.exe, "runsc", "spec", "-bundle", bundle, "--", "/testguest", "0")
	t.Cleanup(func() { // stock sandboxes have a file server, in a namespace that is kept mounted
		kept, _ := filepath.Glob(filepath.Join(l.dir, "s", "*"))
		for _, path := range kept {
			_ = syscall.Unmount(path, 0)
		}
	})
	for _, variant := range [][]string{{"runsc"}, {"runsc", "--precompiled"}} {
		args := append(variant, "--root="+filepath.Join(l.dir, "s"), "--network=none", "--ignore-cgroups", "run", "-bundle", bundle, mine+"stock")
		out, err := exec.Command(l.exe, args...).CombinedOutput()
		if err != nil || string(out) != "0" {
			t.Errorf("%v: %q, %v", variant, out, err)
		}
	}
}

// haveFewRights fails unless all threads of a process have the capabilities that gVisor keeps for its
// files and for ptrace, in a user namespace of its own, and none by other ways.
func haveFewRights(t *testing.T, pid string) {
	t.Helper()
	tasks, err := os.ReadDir("/proc/" + pid + "/task")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, task := range tasks {
		status := statusOf(t, pid+"/task/"+task.Name())
		if status == nil {
			continue
		}
		for set, want := range map[string]string{
			"CapEff": "000000000008001f", "CapPrm": "000000000008001f", "CapInh": "0000000000000000", "CapAmb": "0000000000000000",
			"NoNewPrivs": "1", "Seccomp": "2",
		} {
			if status[set] != want {
				t.Errorf("process %s, thread %s: %s is %s, want %s", pid, task.Name(), set, status[set], want)
			}
		}
	}
}
