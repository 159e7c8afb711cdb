package qemu_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"hearth/internal/driver"
	"hearth/internal/driver/drivertest"
	"hearth/internal/driver/microvm"
	"hearth/internal/driver/qemu"
	"hearth/internal/hearth"
)

// starterConfig is what of a driver's configuration can be told another process.
type starterConfig struct {
	Root, Guest, Init, Exe, CgroupParent string
	Accelerator                          qemu.Accelerator
	UIDBase                              uint32
	Kernel                               microvm.Options
}

func TestMain(m *testing.M) {
	drivertest.BeStarter(startAsStarter)
	os.Exit(m.Run())
}

func startAsStarter(ctx context.Context, c starterConfig, spec driver.Spec) (driver.Machine, error) {
	d, err := qemu.New(qemu.Config{
		Root: c.Root, Guest: c.Guest, Init: c.Init, Exe: c.Exe, CgroupParent: c.CgroupParent,
		Accelerator: c.Accelerator, UIDBase: c.UIDBase,
		Boot: func(ctx context.Context) (*microvm.Boot, error) {
			var err error
			if c.Kernel.Init, err = os.ReadFile(filepath.Join(filepath.Dir(c.Exe), initName)); err != nil {
				return nil, err
			}
			return microvm.Prepare(ctx, c.Kernel)
		},
	})
	if err != nil {
		return nil, err
	}
	return d.Start(ctx, spec)
}

// starter runs a process that starts one machine.
func (l *lab) starter(t *testing.T, spec driver.Spec) *drivertest.Starter {
	c := l.config(t)
	return drivertest.RunStarter(t, starterConfig{
		Root: c.Root, Guest: c.Guest, Init: c.Init, Exe: c.Exe, CgroupParent: c.CgroupParent,
		Accelerator: c.Accelerator, UIDBase: c.UIDBase,
		Kernel: microvm.Options{Cache: l.Kernel.Cache, Kernel: l.Kernel.Kernel, Modules: l.Kernel.Modules},
	}, spec)
}

// The faults share one lab: what machines are made of takes seconds to make.
func TestFaults(t *testing.T) {
	l := newLab(t)
	t.Run("heat", l.heat)
	for _, c := range []struct {
		name string
		run  func(*testing.T, *lab)
	}{
		{"MachineOutlivesItsStarter", outlives},
		{"SweepAfterACrashAtAnyPoint", crashes},
		{"HostSideIsConfined", confined},
		{"QEMUDiesDuringACheckpoint", diesInCheckpoint},
		{"FullDiskIsTold", fullDisk},
		{"CloneKeepsOnlyWhatItWrote", cloneIsSmall},
		{"FreedMemoryGoesBack", balloons},
		{"DiskIsLimited", limited},
		{"DamagedCheckpoint", damaged},
		{"SilentGuest", silent},
		{"PanickingGuest", panics},
		{"FloodingGuest", floods},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := l.count(t)
			t.Run("case", func(t *testing.T) { c.run(t, l) })
			l.settles(t, before)
		})
	}
}

// settles waits for what is freed behind the caller's back, but for templates, which
// are descriptors.
func (l *lab) settles(t *testing.T, before map[string]int) {
	t.Helper()
	drivertest.NothingLeft(t, t.Name(), before, func(t *testing.T) map[string]int {
		after := l.count(t)
		delete(after, "descriptors")
		return after
	})
}

// clone describes a machine that starts from the lab's checkpoint.
func (l *lab) clone(t *testing.T, id string, number int) driver.Spec {
	spec := l.spec(t, id, number)
	spec.From = l.warm
	return spec
}

// begin starts a machine that is closed with the test.
func begin(t *testing.T, l *lab, spec driver.Spec) driver.Machine {
	t.Helper()
	m, err := l.driver(t).Start(t.Context(), spec)
	must(t, err)
	t.Cleanup(func() { must(t, m.Close(context.Background())) })
	return m
}

func ask(t *testing.T, m driver.Machine, path string) string {
	t.Helper()
	answer, err := drivertest.Open(m).Ask(t.Context(), "GET", path, nil)
	must(t, err)
	return answer
}

// The process that started a machine is killed; the machine lives on and is
// found by its handle.
func outlives(t *testing.T, l *lab) {
	h := l.starter(t, l.spec(t, "conf-outlives", 231)).KillStarted(t)
	m, err := l.driver(t).Attach(t.Context(), h)
	must(t, err)
	t.Cleanup(func() { must(t, m.Close(context.Background())) })
	ask(t, m, "/ticks")
	must(t, m.Freeze(t.Context()))
	again, err := l.driver(t).Attach(t.Context(), h) // and once more, while it is frozen
	must(t, err)
	c, err := again.Checkpoint(t.Context(), t.TempDir())
	must(t, err)
	must(t, again.Thaw(t.Context()))
	ask(t, again, "/ticks")
	spec := l.spec(t, "conf-outlived", 232)
	spec.From = c
	ask(t, begin(t, l, spec), "/ticks")
}

// The starter is killed at ever later points of a start, and what it left is swept.
func crashes(t *testing.T, l *lab) {
	d := l.driver(t)
	for i := range 10 {
		spec := l.spec(t, fmt.Sprintf("conf-crash-%d", i), 200+i)
		l.starter(t, spec).KillAndSweep(t, d, time.Duration(i*i)*25*time.Millisecond)
	}
}

// QEMU is a user of its own without capabilities, behind seccomp, in a root that
// holds nothing but QEMU, in a network namespace without devices.
func confined(t *testing.T, l *lab) {
	users := map[string]bool{}
	for i := range 2 {
		m := begin(t, l, l.clone(t, fmt.Sprintf("conf-confined-%d", i), 233+i))
		pid := strconv.Itoa(pidOf(t, m))
		status := statusOf(t, pid)
		for field, want := range map[string]string{
			"NoNewPrivs": "1", "Seccomp": "2", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapBnd": "0000000000000000", "Groups": "",
		} {
			if status[field] != want {
				t.Errorf("%s is %q, want %q", field, status[field], want)
			}
		}
		users[status["Uid"]] = true
		if uid, err := strconv.ParseInt(status["Uid"], 10, 64); err != nil || uid < 4_200_000_000 {
			t.Errorf("QEMU is user %s", status["Uid"])
		}
		seen := map[string]bool{}
		must(t, filepath.WalkDir("/proc/"+pid+"/root/", func(path string, e os.DirEntry, err error) error {
			rel := "/" + strings.TrimPrefix(path, "/proc/"+pid+"/root/")
			if rel == "/proc" {
				return filepath.SkipDir
			}
			if err == nil && !e.IsDir() {
				seen[rel] = true
			}
			return err
		}))
		for path := range seen {
			if !strings.Contains(path, ".so") && !strings.Contains(path, "qemu") && path != "/dev/kvm" {
				t.Errorf("QEMU can see %s", path)
			}
		}
		if len(seen) == 0 {
			t.Error("QEMU's root is empty")
		}
		devices, err := os.ReadFile("/proc/" + pid + "/net/dev")
		must(t, err)
		if n := bytes.Count(devices, []byte(":")); n != 1 { // lo, which is down
			t.Errorf("QEMU's network namespace has %d devices:\n%s", n, devices)
		}
		if err := os.WriteFile("/proc/"+pid+"/root/x", nil, 0o600); err == nil {
			t.Error("the root can be written to")
		}
	}
	if len(users) != 2 {
		t.Errorf("two machines are users %v", users)
	}
}

func statusOf(t *testing.T, pid string) map[string]string {
	t.Helper()
	raw, err := os.ReadFile("/proc/" + pid + "/status")
	must(t, err)
	status := map[string]string{}
	for line := range strings.Lines(string(raw)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		first, _, _ := strings.Cut(strings.TrimSpace(value), "\t")
		status[name] = first
	}
	return status
}

func diesInCheckpoint(t *testing.T, l *lab) {
	m := begin(t, l, l.clone(t, "conf-dies", 235))
	must(t, m.Freeze(t.Context()))
	must(t, syscall.Kill(pidOf(t, m), syscall.SIGKILL))
	_, err := m.Checkpoint(t.Context(), t.TempDir())
	if hearth.KindOf(err) != hearth.NotFound {
		t.Errorf("Checkpoint of a QEMU that was killed: %v", err)
	}
	<-m.Done()
	if exit := m.Exit(); exit.Code != 137 || exit.OOM {
		t.Errorf("exit %+v", exit)
	}
}

func fullDisk(t *testing.T, l *lab) {
	m := begin(t, l, l.clone(t, "conf-full", 236))
	must(t, m.Freeze(t.Context()))
	small := t.TempDir()
	must(t, syscall.Mount("small", small, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { _ = syscall.Unmount(small, syscall.MNT_DETACH) })
	if _, err := m.Checkpoint(t.Context(), small); hearth.KindOf(err) != hearth.ResourceExhausted {
		t.Errorf("Checkpoint onto a full disk: %v", err)
	}
	must(t, m.Thaw(t.Context()))
	ask(t, m, "/ticks")
}

// A clone's checkpoint keeps what it wrote, refers to the template, and one of a
// clone of a clone still does.
func cloneIsSmall(t *testing.T, l *lab) {
	size := func(c *driver.Checkpoint) int64 {
		st, err := os.Stat(filepath.Join(c.Dir, "ram.pages"))
		must(t, err)
		return st.Size()
	}
	from := l.warm
	for i := range 2 {
		spec := l.clone(t, fmt.Sprintf("conf-small-%d", i), 237+i)
		spec.From = from
		m := begin(t, l, spec)
		ask(t, m, "/ticks")
		must(t, m.Freeze(t.Context()))
		c, err := m.Checkpoint(t.Context(), t.TempDir())
		must(t, err)
		if c.Base == nil || c.Base.Dir != l.warm.Dir || c.Base.Base != nil {
			t.Errorf("generation %d refers to %+v, want the template", i, c.Base)
		}
		t.Logf("template %d KiB, generation %d %d KiB", size(l.warm)>>10, i, size(c)>>10)
		if size(c) > size(l.warm)/3 {
			t.Errorf("generation %d keeps %d bytes, the template has %d", i, size(c), size(l.warm))
		}
		from = c
	}
	spec := l.clone(t, "conf-baseless", 239)
	spec.From = &driver.Checkpoint{Driver: from.Driver, Key: from.Key, Dir: from.Dir, Files: from.Files}
	if _, err := l.driver(t).Start(t.Context(), spec); hearth.KindOf(err) != hearth.FailedPrecondition {
		t.Errorf("a layered checkpoint without its base: %v", err)
	}
}

// Each file of a checkpoint is cut short: the start fails, and nothing is left.
func damaged(t *testing.T, l *lab) {
	for i, name := range []string{"machine.json", "device.state", "ram.index", "ram.pages"} {
		dir := t.TempDir()
		c := *l.warm
		c.Dir = dir
		for _, file := range c.Files {
			raw, err := os.ReadFile(filepath.Join(l.warm.Dir, file))
			must(t, err)
			switch {
			case file == name:
				raw = raw[:len(raw)/2]
			case file == "machine.json": // another template than the sound one
				raw = bytes.Replace(raw, []byte(`"id":"`), []byte(fmt.Sprintf(`"id":"%d`, i)), 1)
			}
			must(t, os.WriteFile(filepath.Join(dir, file), raw, 0o600))
		}
		spec := l.spec(t, fmt.Sprintf("conf-damaged-%d", i), 240+i)
		spec.From = &c
		if m, err := l.driver(t).Start(t.Context(), spec); err == nil {
			t.Errorf("half of %s was enough", name)
			must(t, m.Close(t.Context()))
		} else {
			t.Logf("half of %s: %v", name, err)
		}
		if entries, _ := os.ReadDir(spec.Dir); len(entries) > 0 {
			t.Errorf("%s left %v", name, entries)
		}
	}
}

// bad returns a driver whose guests' first process misbehaves.
func (l *lab) bad(t *testing.T, mode string) *qemu.Driver {
	t.Helper()
	out := filepath.Join(t.TempDir(), "badinit")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-X main.mode="+mode, "-o", out, "hearth/internal/driver/qemu/badinit")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	options := l.Kernel
	var err error
	options.Init, err = os.ReadFile(out)
	must(t, err)
	options.Cache = t.TempDir()
	if options.Kernel == "" {
		boot, err := microvm.Prepare(t.Context(), l.Kernel)
		must(t, err)
		options.Kernel = boot.Kernel // it is not fetched again
	}
	cfg := l.config(t)
	cfg.Boot = func(ctx context.Context) (*microvm.Boot, error) { return microvm.Prepare(ctx, options) }
	d, err := qemu.New(cfg)
	must(t, err)
	_, err = d.Probe(t.Context()) // which takes its time
	must(t, err)
	return d
}

// fails starts a machine that must not come up.
func fails(t *testing.T, l *lab, d *qemu.Driver, mode string, patience time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	spec := l.spec(t, "conf-"+mode, 245)
	m, err := d.Start(ctx, spec)
	if err == nil {
		must(t, m.Close(t.Context()))
		t.Fatal("it started")
	}
	if entries, _ := os.ReadDir(spec.Dir); len(entries) > 0 {
		t.Errorf("%v is left", entries)
	}
	return err
}

func silent(t *testing.T, l *lab) {
	if err := fails(t, l, l.bad(t, "silent"), "silent", 10*time.Second); hearth.KindOf(err) != hearth.DeadlineExceeded {
		t.Errorf("%v", err)
	}
}

// A kernel that panics ends its QEMU, and the console says why.
func panics(t *testing.T, l *lab) {
	err := fails(t, l, l.bad(t, "exit"), "panic", 5*time.Minute)
	if hearth.KindOf(err) == hearth.DeadlineExceeded || !strings.Contains(err.Error(), "Kernel panic") {
		t.Errorf("%v", err)
	}
}

// A guest that writes to its console without end is bounded like any other.
func floods(t *testing.T, l *lab) {
	err := fails(t, l, l.bad(t, "flood"), "flood", 12*time.Second)
	if hearth.KindOf(err) != hearth.DeadlineExceeded || len(err.Error()) > 10_000 {
		t.Errorf("%d bytes: %.300v", len(err.Error()), err)
	}
}
