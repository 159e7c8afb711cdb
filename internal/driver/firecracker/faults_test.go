package firecracker_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hearth/internal/driver"
	"hearth/internal/driver/drivertest"
	"hearth/internal/driver/firecracker"
	"hearth/internal/driver/microvm"
	"hearth/internal/hearth"
)

// A monitor that misbehaves in a start makes the start fail, within its time, and
// leaves nothing behind.
func TestFaultsAtStart(t *testing.T) {
	l := newLab(t)
	for name, test := range map[string]struct {
		script map[string]string
		kind   hearth.Kind
		time   time.Duration // for the start, when it must be bounded from outside
	}{
		"dies at its first answer":   {map[string]string{"GET /version": "die"}, hearth.Unavailable, 0},
		"dies while it is set up":    {map[string]string{"PUT /vsock": "die"}, hearth.Unavailable, 0},
		"dies at the start":          {map[string]string{"PUT /actions": "die after"}, hearth.Unavailable, 0},
		"refuses, at length":         {map[string]string{"PUT /drives/disk": "refuse"}, hearth.Internal, 0},
		"answers garbage":            {map[string]string{"PUT /balloon": "garbage"}, hearth.Internal, 0},
		"answers without an end":     {map[string]string{"PUT /entropy": "flood"}, hearth.Internal, 0},
		"sends elsewhere":            {map[string]string{"PUT /machine-config": "redirect"}, hearth.Internal, 0},
		"never answers":              {map[string]string{"PUT /boot-source": "hang"}, hearth.DeadlineExceeded, time.Second},
		"never answers at all":       {map[string]string{"GET /version": "hang"}, hearth.DeadlineExceeded, time.Second},
		"its guest never answers":    {map[string]string{"silent guest": "yes"}, hearth.DeadlineExceeded, time.Second},
		"its guest panics at a boot": {map[string]string{"panicky guest": "yes"}, hearth.Unavailable, 0},
	} {
		t.Run(name, func(t *testing.T) {
			before := l.count(t)
			l.script(t, test.script)
			defer l.script(t, nil)
			spec, ctx := l.spec(t), t.Context()
			if test.time > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, test.time)
				defer cancel()
			}
			_, err := l.driver(t).Start(ctx, spec)
			if err == nil || hearth.KindOf(err) != test.kind {
				t.Errorf("got %v of kind %s, want %s", err, hearth.KindOf(err), test.kind)
			}
			if len(err.Error()) > 4<<10 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			if left, err := os.ReadDir(spec.Dir); err != nil || len(left) > 0 {
				t.Errorf("left %v, %v", left, err)
			}
			l.settles(t, before)
		})
	}
}

func (l *lab) settles(t *testing.T, before map[string]int) {
	t.Helper()
	drivertest.NothingLeft(t, t.Name(), before, l.count)
}

func (l *lab) start(t *testing.T, spec driver.Spec) driver.Machine {
	t.Helper()
	m, err := l.driver(t).Start(t.Context(), spec)
	must(t, err)
	t.Cleanup(func() { must(t, m.Close(context.Background())) })
	return m
}

func ask(t *testing.T, m driver.Machine, method, path string, form ...string) string {
	t.Helper()
	values := map[string][]string{}
	for i := 0; i < len(form); i += 2 {
		values[form[i]] = []string{form[i+1]}
	}
	got, err := drivertest.Open(m).Ask(t.Context(), method, path, values)
	must(t, err)
	return got
}

// A monitor that misbehaves in a checkpoint makes it fail; the machine, if it
// lives, thaws, and its next checkpoint is whole.
func TestFaultsAtCheckpoint(t *testing.T) {
	l := newLab(t)
	for name, test := range map[string]struct {
		script string
		lives  bool
		kind   hearth.Kind
	}{
		"dies before it": {"die", false, hearth.NotFound},
		"dies after it":  {"die after", false, hearth.NotFound},
		"refuses":        {"refuse", true, hearth.Internal},
		"garbage":        {"garbage", true, hearth.Internal},
		"hangs":          {"hang", true, hearth.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			l.script(t, map[string]string{"PUT /snapshot/create": test.script})
			m := l.start(t, l.spec(t))
			l.script(t, nil)
			must(t, m.Freeze(t.Context()))
			ctx := t.Context()
			if test.script == "hang" {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, time.Second)
				defer cancel()
			}
			_, err := m.Checkpoint(ctx, t.TempDir())
			if err == nil || hearth.KindOf(err) != test.kind {
				t.Errorf("got %v of kind %s, want %s", err, hearth.KindOf(err), test.kind)
			}
			if !test.lives {
				<-m.Done()
				return
			}
			if test.script == "hang" {
				return // it takes no other call, as the real one does not
			}
			must(t, m.Thaw(t.Context()))
			ask(t, m, "GET", "/ticks")
		})
	}
}

// Firecracker forgets what was dirty with every snapshot. A second checkpoint of a
// restored machine must hold what the first one held, and one after a failure too.
func TestSecondCheckpointOfARestoredMachine(t *testing.T) {
	l := newLab(t)
	first := l.checkpoint(t, l.start(t, l.spec(t)), "a", "1")
	spec := l.spec(t)
	spec.From = first
	m := l.start(t, spec)
	second := l.checkpoint(t, m, "b", "2")
	must(t, m.Thaw(t.Context()))
	third := l.checkpoint(t, m, "c", "3")
	if second.Base == nil || second.Base.Dir != first.Dir || third.Base == nil || third.Base.Dir != first.Dir {
		t.Fatalf("bases %+v and %+v, want %s", second.Base, third.Base, first.Dir)
	}
	must(t, os.RemoveAll(second.Dir)) // nothing may lie over it
	if size := allocated(t, filepath.Join(third.Dir, "memory")); size > 4<<20 {
		t.Errorf("a layer of %d bytes", size)
	}
	must(t, m.Thaw(t.Context()))

	// Now a failure: the driver cannot know any more what was written.
	must(t, m.Freeze(t.Context()))
	if _, err := m.Checkpoint(t.Context(), filepath.Join(t.TempDir(), "gone")); err == nil {
		t.Fatal("a checkpoint into nothing")
	}
	full := t.TempDir()
	must(t, os.Mkdir(filepath.Join(full, "disk"), 0o700)) // in the way, after the memory was written
	if _, err := m.Checkpoint(t.Context(), full); err == nil {
		t.Fatal("a checkpoint over a directory")
	}
	must(t, m.Thaw(t.Context()))
	fourth := l.checkpoint(t, m, "d", "4")
	if fourth.Base != nil {
		t.Errorf("after a failure it lies over %s", fourth.Base.Dir)
	}
	for name, c := range map[string]*driver.Checkpoint{"third": third, "fourth": fourth} {
		spec := l.spec(t)
		spec.From = c
		clone := l.start(t, spec)
		want := map[string]string{"a": "1", "b": "2", "c": "3"}
		if name == "fourth" {
			want["d"] = "4"
		}
		for k, v := range want {
			if got := ask(t, clone, "GET", "/memory", "key", k); got != v {
				t.Errorf("%s: %s is %q, want %q", name, k, got, v)
			}
		}
	}
}

func (l *lab) checkpoint(t *testing.T, m driver.Machine, key, value string) *driver.Checkpoint {
	t.Helper()
	ask(t, m, "POST", "/memory", "key", key, "value", value)
	must(t, m.Freeze(t.Context()))
	dir, err := os.MkdirTemp(l.dir, "checkpoint-")
	must(t, err)
	c, err := m.Checkpoint(t.Context(), dir)
	must(t, err)
	return c
}

func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	must(t, syscall.Stat(path, &st))
	return st.Blocks * 512
}

// layered starts a machine whose memory a pager serves.
func (l *lab) layered(t *testing.T) (driver.Machine, driver.Spec) {
	t.Helper()
	spec := l.spec(t)
	spec.From = l.checkpoint(t, l.start(t, l.spec(t)), "a", "1")
	upper := l.spec(t)
	upper.From = l.checkpoint(t, l.start(t, spec), "b", "2")
	return l.start(t, upper), upper
}

func pagerOf(t *testing.T, m driver.Machine) int {
	t.Helper()
	var state struct{ Pager struct{ PID int } }
	must(t, json.Unmarshal(m.Handle().State, &state))
	if state.Pager.PID == 0 {
		t.Skip("this host has no userfaultfd")
	}
	return state.Pager.PID
}

// A machine does not outlive its pager, and the reason is told.
func TestPagerThatDies(t *testing.T) {
	l := newLab(t)
	m, _ := l.layered(t)
	pid := pagerOf(t, m)
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	<-m.Done()
	if exit := m.Exit(); !strings.Contains(exit.Reason, "pager") {
		t.Errorf("exit %+v", exit)
	}
	if _, err := l.driver(t).Attach(t.Context(), m.Handle()); hearth.KindOf(err) != hearth.NotFound {
		t.Errorf("Attach: %v", err)
	}
}

// A machine whose pager died while nobody looked is found to be gone.
func TestAttachWithoutPager(t *testing.T) {
	l := newLab(t)
	m, _ := l.layered(t)
	_ = pagerOf(t, m)
	h := m.Handle()
	var state map[string]any
	must(t, json.Unmarshal(h.State, &state))
	state["pager"].(map[string]any)["start"] = 1
	raw, err := json.Marshal(state)
	must(t, err)
	h.State = raw
	if _, err := l.driver(t).Attach(t.Context(), h); hearth.KindOf(err) != hearth.NotFound {
		t.Errorf("Attach: %v", err)
	}
	ask(t, m, "GET", "/ticks") // it was not killed by that
	again, err := l.driver(t).Attach(t.Context(), m.Handle())
	must(t, err)
	if got := ask(t, again, "GET", "/memory", "key", "b"); got != "2" {
		t.Errorf("memory after Attach: %q", got)
	}
}

// The working set of the first machine from a checkpoint is there for the second.
func TestWorkingSetIsKept(t *testing.T) {
	l := newLab(t)
	m, spec := l.layered(t)
	_ = pagerOf(t, m)
	var sets []string
	for try := range 5 { // a pager that takes long to write is not waited for
		if try > 0 {
			again := l.spec(t)
			again.From = spec.From
			m = l.start(t, again)
		}
		ask(t, m, "GET", "/memory", "key", "a")
		must(t, m.Close(t.Context()))
		var err error
		sets, err = filepath.Glob(filepath.Join(l.dir, "run", "working-sets", "*"))
		must(t, err)
		if len(sets) > 0 {
			break
		}
	}
	if len(sets) != 1 {
		t.Fatalf("working sets: %v", sets)
	}
	next := l.spec(t)
	next.From = spec.From
	clone := l.start(t, next)
	if got := ask(t, clone, "GET", "/memory", "key", "a"); got != "1" {
		t.Errorf("memory: %q", got)
	}
	if found, _ := filepath.Glob(filepath.Join(next.Dir, "working-set-*")); len(found) > 0 {
		t.Errorf("a second record: %v", found)
	}
	must(t, os.WriteFile(sets[0], []byte("HEARTHWS and garbage"), 0o600)) // costs the prefetch only
	third := l.spec(t)
	third.From = spec.From
	ask(t, l.start(t, third), "GET", "/ticks")
}

// What a hostile monitor puts in the place of its files is not followed.
func TestHostileJail(t *testing.T) {
	l := newLab(t)
	secret := filepath.Join(l.dir, "secret")
	must(t, os.WriteFile(secret, []byte("secret"), 0o600))
	for name, replace := range map[string]func(path string) error{
		"link":      func(path string) error { return os.Symlink(secret, path) },
		"pipe":      func(path string) error { return syscall.Mkfifo(path, 0o666) },
		"directory": func(path string) error { return os.Mkdir(path, 0o777) },
		"root's":    func(path string) error { return os.WriteFile(path, []byte("secret"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			spec := l.spec(t)
			m := l.start(t, spec)
			must(t, m.Freeze(t.Context()))
			disk := filepath.Join(spec.Dir, "firecracker", spec.ID, "root", "disk")
			must(t, os.Remove(disk))
			must(t, replace(disk))
			dir := t.TempDir()
			if _, err := m.Checkpoint(t.Context(), dir); err == nil {
				t.Error("the checkpoint succeeded")
			}
			if raw, err := os.ReadFile(filepath.Join(dir, "disk")); err == nil {
				t.Errorf("it took %q", raw)
			}
		})
	}
	t.Run("socket of another", func(t *testing.T) {
		victim, spec := l.start(t, l.spec(t)), l.spec(t)
		m := l.start(t, spec)
		api := filepath.Join(spec.Dir, "firecracker", spec.ID, "root", "api")
		must(t, os.Remove(api))
		h := victim.Handle()
		must(t, os.Symlink(filepath.Join(h.Dir, "firecracker", h.ID, "root", "api"), api))
		if err := m.Freeze(t.Context()); err == nil {
			t.Error("a call went to another machine")
		}
		ask(t, victim, "GET", "/ticks")
	})
}

// Probe says what is missing, and what to do.
func TestProbe(t *testing.T) {
	l := newLab(t)
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(l.dir, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(text), mode))
		return path
	}
	says := func(dir, name, text string) string {
		return write(filepath.Join(dir, name), "#!/bin/sh\necho '"+text+"'\n", 0o755)
	}
	for name, test := range map[string]struct {
		spoil func(*firecracker.Config)
		want  []string
	}{
		"no firecracker": {func(c *firecracker.Config) { c.Firecracker = ""; t.Setenv("PATH", "/nowhere") }, []string{"firecracker 1.16.1 or newer is not installed", "PATH"}},
		"gone":           {func(c *firecracker.Config) { c.Firecracker = "/nowhere/firecracker" }, []string{"firecracker is not there"}},
		"jailer gone":    {func(c *firecracker.Config) { c.Jailer = "/nowhere/jailer" }, []string{"jailer is not there"}},
		"not executable": {func(c *firecracker.Config) { c.Firecracker = write("x/firecracker", "x", 0o644) }, []string{"chmod +x"}},
		"no program":     {func(c *firecracker.Config) { c.Firecracker = write("y/firecracker", "x", 0o755) }, []string{"does not run"}},
		"too old":        {func(c *firecracker.Config) { c.Firecracker = says("o", "firecracker", "Firecracker v1.16.0") }, []string{"1.16.0", "at least 1.16.1", "install a newer"}},
		"much too old":   {func(c *firecracker.Config) { c.Firecracker = says("oo", "firecracker", "Firecracker v0.25.2") }, []string{"0.25.2"}},
		"something else": {func(c *firecracker.Config) { c.Firecracker = says("e", "firecracker", "bash 5") }, []string{"bash 5"}},
		"another jailer": {func(c *firecracker.Config) { c.Jailer = says("j", "jailer", "Jailer v1.17.0") }, []string{"one release"}},
		"jailer is none": {func(c *firecracker.Config) { c.Jailer = c.Firecracker }, []string{"jailer"}},
		"another name":   {func(c *firecracker.Config) { c.Firecracker = says("n", "fc", "Firecracker v1.16.1") }, []string{"rename"}},
		"no KVM": {func(c *firecracker.Config) {
			c.CheckKVM = func(context.Context) error { return errors.New("no /dev/kvm: buy one") }
		}, []string{"buy one"}},
		"no kernel": {func(c *firecracker.Config) {
			c.Boot = func(context.Context) (*microvm.Boot, error) { return nil, errors.New("no network") }
		}, []string{"no guest kernel", "no network"}},
		"bzImage": {func(c *firecracker.Config) {
			path := write("bzImage", "MZ not ELF", 0o644)
			c.Boot = func(context.Context) (*microvm.Boot, error) { return &microvm.Boot{Kernel: path, Digest: "x"}, nil }
		}, []string{"no vmlinux"}},
		"guest image":  {func(c *firecracker.Config) { c.Guest = write("g.erofs", "x", 0o644) }, []string{"guest image"}},
		"CPU template": {func(c *firecracker.Config) { c.CPUTemplate = "/nowhere.json" }, []string{"CPU template"}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := l.config(t)
			if name == "no firecracker" {
				cfg.Firecracker = ""
				t.Setenv("PATH", "/nowhere")
			} else {
				test.spoil(&cfg)
			}
			d, err := firecracker.New(cfg)
			must(t, err)
			_, err = d.Probe(t.Context())
			if hearth.KindOf(err) != hearth.FailedPrecondition || err == nil {
				t.Fatalf("got %v", err)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
			if _, err := d.Start(t.Context(), l.spec(t)); hearth.KindOf(err) != hearth.FailedPrecondition {
				t.Errorf("Start: %v", err)
			}
		})
	}
	caps, err := l.driver(t).Probe(t.Context())
	must(t, err)
	for _, want := range []string{"firecracker=1.16.1", "cpu=", "host-kernel=", "guest-kernel=abab", "layout="} {
		if !strings.Contains(caps.Key, want) {
			t.Errorf("key %q lacks %q", caps.Key, want)
		}
	}
}

// A checkpoint of another host is refused, and the part that differs is named.
func TestKeyPartsAreNamed(t *testing.T) {
	l := newLab(t)
	good := l.checkpoint(t, l.start(t, l.spec(t)), "a", "1")
	for part, words := range map[string]string{
		"firecracker": "version of Firecracker", "cpu": "processor", "features": "processor features",
		"host-kernel": "host kernel", "guest-kernel": "guest kernel", "layout": "layout",
	} {
		c := *good
		list := strings.Split(c.Key, ",")
		for i := range list {
			if strings.HasPrefix(list[i], part+"=") {
				list[i] = part + "=other"
			}
		}
		c.Key = strings.Join(list, ",")
		spec := l.spec(t)
		spec.From = &c
		_, err := l.driver(t).Start(t.Context(), spec)
		if hearth.KindOf(err) != hearth.FailedPrecondition || !strings.Contains(fmt.Sprint(err), words) {
			t.Errorf("%s: %v", part, err)
		}
	}
}

// A checkpoint that was cut, mixed up, or lies over another than it was written
// over is refused before anything runs.
func TestDamagedCheckpoints(t *testing.T) {
	l := newLab(t)
	base := l.checkpoint(t, l.start(t, l.spec(t)), "a", "1")
	other := l.checkpoint(t, l.start(t, l.spec(t)), "x", "9")
	spec := l.spec(t)
	spec.From = base
	layer := l.checkpoint(t, l.start(t, spec), "b", "2")
	copyOf := func(t *testing.T) *driver.Checkpoint {
		dir := t.TempDir()
		for _, name := range layer.Files {
			_, err := microvm.CopySparse(t.Context(), filepath.Join(layer.Dir, name), filepath.Join(dir, name), microvm.Cached)
			must(t, err)
		}
		c := *layer
		c.Dir = dir
		return &c
	}
	before := l.count(t)
	for name, spoil := range map[string]func(c *driver.Checkpoint, s *driver.Spec) error{
		"no base":      func(c *driver.Checkpoint, _ *driver.Spec) error { c.Base = nil; return nil },
		"another base": func(c *driver.Checkpoint, _ *driver.Spec) error { c.Base = other; return nil },
		"short memory": func(c *driver.Checkpoint, _ *driver.Spec) error {
			return os.Truncate(filepath.Join(c.Dir, "memory"), 4096)
		},
		"no state":      func(c *driver.Checkpoint, _ *driver.Spec) error { return os.Remove(filepath.Join(c.Dir, "state")) },
		"flipped state": func(c *driver.Checkpoint, _ *driver.Spec) error { return flip(filepath.Join(c.Dir, "state")) },
		"no disk":       func(c *driver.Checkpoint, _ *driver.Spec) error { return os.Remove(filepath.Join(c.Dir, "disk")) },
		"no manifest": func(c *driver.Checkpoint, _ *driver.Spec) error {
			return os.Remove(filepath.Join(c.Dir, "machine.json"))
		},
		"bad manifest": func(c *driver.Checkpoint, _ *driver.Spec) error {
			return os.WriteFile(filepath.Join(c.Dir, "machine.json"), []byte(`{"id":"../x"}`), 0o600)
		},
		"more memory": func(_ *driver.Checkpoint, s *driver.Spec) error { s.Resources.MemoryMiB = 256; return nil },
		"more disk":   func(_ *driver.Checkpoint, s *driver.Spec) error { s.Resources.DiskMiB = 128; return nil },
		"more vcpus":  func(_ *driver.Checkpoint, s *driver.Spec) error { s.Resources.VCPUs = 2; return nil },
		"another layer": func(_ *driver.Checkpoint, s *driver.Spec) error {
			s.Layers = []string{filepath.Join(l.dir, "guest.erofs")}
			return nil
		},
	} {
		c := copyOf(t)
		spec := l.spec(t)
		spec.From = c
		must(t, spoil(c, &spec))
		m, err := l.driver(t).Start(t.Context(), spec)
		if err == nil {
			t.Errorf("%s: it started", name)
			must(t, m.Close(t.Context()))
			continue
		}
		if left, err := os.ReadDir(spec.Dir); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v, %v", name, left, err)
		}
	}
	l.settles(t, before)
}

func flip(path string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	raw[len(raw)/2] ^= 1
	return os.WriteFile(path, raw, 0o600)
}
