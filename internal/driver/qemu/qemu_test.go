package qemu_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"hearth/internal/driver"
	"hearth/internal/driver/drivertest"
	"hearth/internal/driver/microvm"
	"hearth/internal/driver/microvm/kvmprobe"
	"hearth/internal/driver/microvm/microvmtest"
	"hearth/internal/driver/qemu"
	"hearth/internal/hearth"
)

// emulate asks for these tests under software emulation, where KVM does not work.
const emulate = "HEARTH_TEST_VM"

// mine begins the IDs of this run's machines and names its cgroup and namespaces, so
// that two runs on one host neither count nor sweep each other's.
var mine = fmt.Sprintf("hqt%d-", os.Getpid())

// initName is the guests' first process, beside the launcher.
const initName = "hearth-init"

// lab is what the tests of one run share: programs and images.
type lab struct {
	*microvmtest.Lab
	dir, exe string
	accel    qemu.Accelerator
	first    *qemu.Driver       // has found out what this host has
	warm     *driver.Checkpoint // of a machine that has booted
}

func newLab(t testing.TB) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("qemu: needs root")
	}
	accel := qemu.KVM
	if err := kvmprobe.Check(t.Context(), kvmprobe.Device); err != nil {
		if os.Getenv(emulate) == "" {
			t.Skipf("qemu: %v; set %s=1 to emulate in software", err, emulate)
		}
		accel = qemu.TCG
	}
	dir, err := os.MkdirTemp("/tmp", "hearth-qemu-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := &lab{Lab: microvmtest.New(t, dir), dir: dir, exe: filepath.Join(dir, "launchertest"), accel: accel}
	t.Cleanup(func() {
		if d, err := qemu.New(l.config(t)); err != nil {
			t.Error(err)
		} else if err := d.Purge(); err != nil {
			t.Error(err)
		}
	})
	build(t, l.exe, "hearth/internal/driver/qemu/launchertest")
	init := filepath.Join(dir, initName)
	build(t, init, "hearth/cmd/hearth-init")
	l.Kernel.Init, err = os.ReadFile(init)
	must(t, err)
	return l
}

func build(t testing.TB, out, pkg string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", pkg, err, text)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// driver returns a driver on the lab's root, as a restarted process would.
func (l *lab) driver(t testing.TB) *qemu.Driver {
	t.Helper()
	d, err := qemu.New(l.config(t))
	must(t, err)
	if l.first != nil {
		d.ShareHost(l.first)
	}
	return d
}

// heat boots a machine and takes the checkpoint from which others start.
func (l *lab) heat(t *testing.T) {
	t.Helper()
	l.first = l.driver(t)
	m, err := l.first.Start(t.Context(), l.spec(t, "conf-warm", 250))
	must(t, err)
	_, err = drivertest.Open(m).Ask(t.Context(), "GET", "/ticks", nil)
	must(t, err)
	must(t, m.Freeze(t.Context()))
	dir := filepath.Join(l.dir, "warm")
	must(t, os.Mkdir(dir, 0o700))
	l.warm, err = m.Checkpoint(t.Context(), dir)
	must(t, err)
	must(t, m.Close(t.Context()))
}

func (l *lab) config(t testing.TB) qemu.Config {
	return qemu.Config{
		Root: filepath.Join(l.dir, "run"), Guest: l.Guest, Init: microvmtest.Init, Exe: l.exe,
		Boot:        func(ctx context.Context) (*microvm.Boot, error) { return microvm.Prepare(ctx, l.Kernel) },
		Accelerator: l.accel, CgroupParent: "/" + mine + "test", UIDBase: 4_200_000_000,
		KeepTemplates: 500 * time.Millisecond,
		Log:           slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
}

// spec describes a machine in a network namespace of its own.
func (l *lab) spec(t testing.TB, id string, number int) driver.Spec {
	t.Helper()
	id = mine + id
	dir := filepath.Join(l.dir, "m", id)
	must(t, os.MkdirAll(dir, 0o700))
	return driver.Spec{
		ID: id, Dir: dir, Layers: []string{l.Root}, Hostname: id,
		Resources: hearth.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64},
		Net:       slot(t, number),
	}
}

// slot makes a namespace with a tap, for one machine.
func slot(t testing.TB, number int) driver.Attachment {
	t.Helper()
	name := fmt.Sprintf("%s%d", mine, number)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	host, err := netns.Get()
	must(t, err)
	defer host.Close()
	ns, err := netns.NewNamed(name)
	must(t, err)
	defer ns.Close()
	t.Cleanup(func() { _ = netns.DeleteNamed(name) })
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "tap0"
	err = netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR})
	must(t, netns.Set(host))
	must(t, err)
	inside, err := netlink.NewHandleAt(ns)
	must(t, err)
	defer inside.Close()
	tap, err := inside.LinkByName("tap0")
	must(t, err)
	address, err := netlink.ParseAddr(fmt.Sprintf("10.214.%d.1/30", number))
	must(t, err)
	must(t, inside.AddrAdd(tap, address))
	must(t, inside.LinkSetUp(tap))
	return driver.Attachment{
		NetNS:   "/run/netns/" + name,
		Guest:   netip.MustParsePrefix(fmt.Sprintf("10.214.%d.2/30", number)),
		Gateway: netip.MustParseAddr(fmt.Sprintf("10.214.%d.1", number)),
		Device:  "tap0", Tap: "tap0",
		MAC: net.HardwareAddr{0x02, 0, 0, 0, 0, byte(number)},
	}
}

func TestConformance(t *testing.T) {
	// How many of the suite's machines boot. A boot takes seconds when it is
	// emulated, so the others are clones; in an emulated host, where it takes
	// half a minute, the one that they are cloned from has to do.
	booting, boots, generations := 3, 10, 10
	var skip func(string) string
	if os.Getenv(microvmtest.Env) != "" {
		booting, boots = 0, 3
	}
	if os.Getenv(microvmtest.HostEnv) == microvmtest.ShortHost {
		boots, generations, skip = 1, 2, inEmulatedHost
	}
	l := newLab(t)
	t.Run("heat", l.heat)
	var number atomic.Int32
	specOf := func(t *testing.T) driver.Spec {
		n := int(number.Add(1))
		spec := l.spec(t, fmt.Sprintf("conf-%d", n), n%250)
		if n > booting {
			spec.From = l.warm
		}
		return spec
	}
	drivertest.Run(t, drivertest.Env{
		Driver: func(t *testing.T) driver.Driver { return l.driver(t) },
		Spec:   specOf,
		Kernel: true,
		Kill: func(t *testing.T, m driver.Machine) {
			must(t, syscall.Kill(pidOf(t, m), syscall.SIGKILL))
		},
		Doomed: func(t *testing.T) (driver.Driver, driver.Spec) {
			return l.broken(t), specOf(t)
		},
		Outside: microvmtest.Outside,
		Boots:   boots, Generations: generations,
		Skip:  skip,
		Count: l.count,
	})
}

// inEmulatedHost says why a case is not among those that an emulated host has time
// for. What it has are the cases that KVM makes different, and the hazards of a machine
// that wakes up in another life but the guest daemon's, which takes minutes. All run outside, emulated in software.
func inEmulatedHost(name string) string {
	const (
		host  = "the host's side alone does it, with KVM as without; make test-kvm SUITE=all runs it"
		guest = "the guest's kernel alone does it, with KVM as without; make test-kvm SUITE=all runs it"
		slow  = "it boots machines, half a minute each in an emulated host; make test-kvm SUITE=all runs it"
	)
	switch name {
	case "BootAndDial":
		return "heat boots a machine, and every other case dials one; make test-kvm SUITE=all runs it"
	case "RestoreKeepsMemoryAndFiles":
		return "NothingIsLostOverTenRestores shows it twice; make test-kvm SUITE=all runs it"
	case "DaemonBelongsToItsMachine":
		return "the guest daemon alone does it, with KVM as without, in minutes here; make test-kvm SUITE=all runs it"
	case "TwoRestoresAreIsolated":
		return "ClonesDrawTheirOwnRandomness has two clones beside their parent, too; make test-kvm SUITE=all runs it"
	case "HandleIsPlainData", "UsageIsWithinLimits", "FreezeAndThawAreIdempotent", "CheckpointNeedsFrozen", "CheckpointKeepsFrozenAndThawable",
		"FailedCheckpointKeepsThawable", "AttachFrozenAfterCrash", "AttachUnknownIsNotFound", "SweepKillsTheLiving",
		"CloseIsIdempotentAndConcurrent", "DoomedStartLeavesNothing", "CancelledStartLeavesNothing", "SameIDTwiceIsRefused":
		return host
	case "RefusedPort", "GuestExitIsReported", "OutOfMemoryIsReported", "DiskQuota", "ConsoleFloodIsHarmless", "RootMayMount":
		return guest
	case "ClocksKeepPace", "ForkBombIsContained", "RootForkBombIsContained":
		return slow
	}
	return ""
}

// broken returns a driver whose QEMU ends as it starts: its firmware is damaged.
func (l *lab) broken(t *testing.T) *qemu.Driver {
	t.Helper()
	cfg := l.config(t)
	cfg.Firmware = filepath.Join(l.dir, "firmware")
	must(t, os.MkdirAll(cfg.Firmware, 0o755))
	must(t, os.WriteFile(filepath.Join(cfg.Firmware, "qboot.rom"), []byte("no firmware"), 0o644))
	d, err := qemu.New(cfg)
	must(t, err)
	return d
}

func pidOf(t testing.TB, m driver.Machine) int {
	t.Helper()
	var state struct{ PID int }
	must(t, json.Unmarshal(m.Handle().State, &state))
	return state.PID
}

// count counts what machines hold on the host.
func (l *lab) count(t *testing.T) map[string]int {
	t.Helper()
	n := map[string]int{"processes": 0}
	cmdlines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range cmdlines {
		raw, _ := os.ReadFile(path)
		if bytes.HasPrefix(raw, []byte("hearth-qemu")) && bytes.Contains(raw, []byte("\x00"+mine)) {
			n["processes"]++
		}
	}
	for name, pattern := range map[string]string{
		"cgroups":     "/sys/fs/cgroup/*/" + mine + "test/" + mine + "*",
		"cgroups v2":  "/sys/fs/cgroup/" + mine + "test/" + mine + "*",
		"descriptors": "/proc/self/fd/*",
		"users":       filepath.Join(l.dir, "run", "uids", "*"),
		"namespaces":  "/run/netns/" + mine + "*",
	} {
		found, err := filepath.Glob(pattern)
		must(t, err)
		n[name] = len(found)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range bytes.Lines(mounts) {
		if strings.Contains(string(line), "/"+mine) || bytes.Contains(line, []byte(l.dir)) {
			n["mounts"]++
		}
	}
	return n
}
