package firecracker_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"hearth/internal/driver"
	"hearth/internal/driver/drivertest"
	"hearth/internal/driver/firecracker"
	"hearth/internal/driver/microvm"
	"hearth/internal/hearth"
)

// lab is what the tests of one run share: stand-ins for Firecracker's programs,
// and images that only need to look like some.
type lab struct {
	dir    string
	number atomic.Int32
}

// mine begins the IDs of this run's machines and names its cgroup and namespaces, so
// that two runs on one host neither count nor sweep each other's.
var mine = fmt.Sprintf("hfc%d-", os.Getpid())

var cgroupParent = "/" + mine + "test"

func newLab(t testing.TB) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("firecracker: needs root")
	}
	if _, err := exec.LookPath("mke2fs"); err != nil {
		t.Skip("firecracker: needs mke2fs")
	}
	l := &lab{dir: t.TempDir()}
	must(t, os.Mkdir(filepath.Join(l.dir, "bin"), 0o755))
	program, err := standIn()
	must(t, err)
	for _, name := range []string{"firecracker", "jailer"} {
		must(t, os.WriteFile(filepath.Join(l.dir, "bin", name), program, 0o755))
	}
	image(t, filepath.Join(l.dir, "root.erofs"))
	image(t, filepath.Join(l.dir, "guest.erofs"))
	must(t, os.WriteFile(filepath.Join(l.dir, "initrd"), []byte("070701"), 0o400))
	t.Cleanup(func() {
		d, err := firecracker.New(l.config(t))
		must(t, err)
		if err := d.Purge(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// standIn builds the stand-in once.
var standIn = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "hearth-fc-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", filepath.Join(dir, "vmmtest"), "hearth/internal/driver/firecracker/vmmtest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build: %w\n%s", err, text)
	}
	return os.ReadFile(filepath.Join(dir, "vmmtest"))
})

// image writes a file with an EROFS superblock of its own.
func image(t testing.TB, path string) {
	t.Helper()
	raw := make([]byte, 8<<10)
	rand.Read(raw[1024:1152])
	copy(raw[1024:], []byte{0xe2, 0xe1, 0xf5, 0xe0})
	must(t, os.WriteFile(path, raw, 0o400))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// boot is a kernel that is one by its header only: the stand-in itself.
func (l *lab) boot(context.Context) (*microvm.Boot, error) {
	return &microvm.Boot{
		Kernel: filepath.Join(l.dir, "bin", "firecracker"), Initrd: filepath.Join(l.dir, "initrd"),
		Release: "6.1.0", Digest: strings.Repeat("ab", 32),
	}, nil
}

func (l *lab) config(t testing.TB) firecracker.Config {
	cfg := l.plainConfig()
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	return cfg
}

func (l *lab) plainConfig() firecracker.Config {
	return firecracker.Config{
		Root:        filepath.Join(l.dir, "run"),
		Firecracker: filepath.Join(l.dir, "bin", "firecracker"), Jailer: filepath.Join(l.dir, "bin", "jailer"),
		Boot: l.boot, Guest: filepath.Join(l.dir, "guest.erofs"), Init: []string{"/.guest/testguest"},
		CheckKVM:     func(context.Context) error { return nil },
		CgroupParent: cgroupParent,
		UIDBase:      3_900_000_000, // none of a server's on the same machine
	}
}

// driver returns a driver on the lab's root, as a restarted process would.
func (l *lab) driver(t testing.TB) driver.Driver {
	t.Helper()
	d, err := firecracker.New(l.config(t))
	must(t, err)
	return d
}

// spec describes a machine without a network: a stand-in has no packets.
func (l *lab) spec(t testing.TB) driver.Spec {
	t.Helper()
	id := fmt.Sprintf("%s%d", mine, l.number.Add(1))
	dir := filepath.Join(l.dir, "m", id)
	must(t, os.MkdirAll(dir, 0o700))
	return driver.Spec{
		ID: id, Dir: dir, Layers: []string{filepath.Join(l.dir, "root.erofs")}, Hostname: id,
		Resources: hearth.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64},
	}
}

// script makes monitors that are started from now on misbehave; nil stops that.
func (l *lab) script(t testing.TB, s map[string]string) {
	t.Helper()
	path := filepath.Join(l.dir, "bin", "script.json")
	if s == nil {
		must(t, os.RemoveAll(path))
		return
	}
	raw, err := json.Marshal(s)
	must(t, err)
	must(t, os.WriteFile(path, raw, 0o644))
}

// count counts what machines hold on the host.
func (l *lab) count(t *testing.T) map[string]int {
	t.Helper()
	n := map[string]int{"processes": 0, "mounts": 0}
	cmdlines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range cmdlines {
		raw, _ := os.ReadFile(path)
		if bytes.Contains(raw, []byte("\x00"+mine)) {
			n["processes"]++
		}
	}
	for name, pattern := range map[string]string{
		"cgroups":     "/sys/fs/cgroup/*" + cgroupParent + "/" + mine + "*",
		"unified":     "/sys/fs/cgroup" + cgroupParent + "/" + mine + "*",
		"descriptors": "/proc/self/fd/*",
		"users":       filepath.Join(l.dir, "run", "users", "*"),
	} {
		found, err := filepath.Glob(pattern)
		must(t, err)
		n[name] = len(found)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range bytes.Lines(mounts) {
		if bytes.Contains(line, []byte(l.dir)) {
			n["mounts"]++
		}
	}
	return n
}

func pidOf(t *testing.T, m driver.Machine) int {
	t.Helper()
	var state struct{ PID int }
	must(t, json.Unmarshal(m.Handle().State, &state))
	return state.PID
}

// call is one line of what the stand-in was asked.
type call struct {
	Call string          `json:"call"`
	Body json.RawMessage `json:"body"`
}

// calls reads what a machine's monitor was asked so far.
func calls(t *testing.T, spec driver.Spec) []call {
	t.Helper()
	f, err := os.Open(filepath.Join(spec.Dir, "firecracker", spec.ID, "root", "calls.json"))
	must(t, err)
	defer f.Close()
	var list []call
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var c call
		must(t, json.Unmarshal(lines.Bytes(), &c))
		list = append(list, c)
	}
	return list
}

func TestMain(m *testing.M) {
	if firecracker.Main(os.Args) {
		return
	}
	drivertest.BeStarter(startAsStarter)
	os.Exit(m.Run())
}

// TestConformanceOfStandIn runs the suite against a stand-in that knows
// Firecracker's command lines and API, and has no processor.
func TestConformanceOfStandIn(t *testing.T) {
	l := newLab(t)
	drivertest.Run(t, drivertest.Env{
		Driver: func(t *testing.T) driver.Driver { return l.driver(t) },
		Spec:   func(t *testing.T) driver.Spec { return l.spec(t) },
		Kill: func(t *testing.T, m driver.Machine) {
			must(t, syscall.Kill(pidOf(t, m), syscall.SIGKILL))
		},
		Doomed: func(t *testing.T) (driver.Driver, driver.Spec) {
			l.script(t, map[string]string{"PUT /actions": "refuse"})
			t.Cleanup(func() { l.script(t, nil) })
			return l.driver(t), l.spec(t)
		},
		Count: l.count,
	})
}
