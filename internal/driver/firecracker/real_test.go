package firecracker_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"hearth/internal/driver"
	"hearth/internal/driver/drivertest"
	"hearth/internal/driver/firecracker"
	"hearth/internal/driver/microvm"
	"hearth/internal/driver/microvm/kvmprobe"
	"hearth/internal/driver/microvm/microvmtest"
	"hearth/internal/hearth"
)

// Where the real programs are; PATH has them else.
const (
	firecrackerEnv = "FIRECRACKER_BIN"
	jailerEnv      = "JAILER_BIN" // empty: beside the other
)

// realLab is what machines of the real monitor are started from.
type realLab struct {
	*lab
	firecracker, jailer string
	images              *microvmtest.Lab
	boot                func() (*microvm.Boot, error)
}

// newRealLab skips, and says so, where there is no Firecracker or no KVM.
func newRealLab(t *testing.T) *realLab {
	t.Helper()
	l := &realLab{firecracker: os.Getenv(firecrackerEnv), jailer: os.Getenv(jailerEnv)}
	if l.firecracker == "" {
		path, err := exec.LookPath("firecracker")
		if err != nil {
			t.Skipf("firecracker: the real program is NOT tested: it is not in PATH, and %s is not set", firecrackerEnv)
		}
		l.firecracker = path
	}
	if l.jailer == "" {
		l.jailer = filepath.Join(filepath.Dir(l.firecracker), "jailer")
	}
	if os.Geteuid() != 0 {
		t.Skip("firecracker: the real program is NOT tested: needs root")
	}
	if err := kvmprobe.Check(t.Context(), kvmprobe.Device); err != nil {
		t.Skipf("firecracker: the real program is NOT tested: %v", err)
	}
	dir := t.TempDir()
	l.lab, l.images = &lab{dir: dir}, microvmtest.New(t, dir)
	init := filepath.Join(dir, "hearth-init")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", init, "hearth/cmd/hearth-init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, text)
	}
	raw, err := os.ReadFile(init)
	must(t, err)
	l.images.Kernel.Init = raw
	l.boot = sync.OnceValues(func() (*microvm.Boot, error) { return microvm.Prepare(context.Background(), l.images.Kernel) })
	t.Cleanup(func() { must(t, l.driver(t, []string{microvmtest.Init}).Purge()) })
	return l
}

func (l *realLab) driver(t *testing.T, init []string) *firecracker.Driver {
	t.Helper()
	d, err := firecracker.New(firecracker.Config{
		Root: filepath.Join(l.dir, "run"), Firecracker: l.firecracker, Jailer: l.jailer,
		Boot:  func(context.Context) (*microvm.Boot, error) { return l.boot() },
		Guest: l.images.Guest, Init: init, CgroupParent: cgroupParent, UIDBase: 3_900_000_000,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	must(t, err)
	return d
}

func (l *realLab) spec(t *testing.T) driver.Spec {
	t.Helper()
	n := l.number.Add(1)
	id := fmt.Sprintf("%s%d", mine, n)
	dir := filepath.Join(l.dir, "m", id)
	must(t, os.MkdirAll(dir, 0o700))
	return driver.Spec{
		ID: id, Dir: dir, Layers: []string{l.images.Root}, Hostname: id,
		Resources: hearth.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64},
		Net:       tapSlot(t, int(n)),
	}
}

// tapSlot makes a namespace with a tap, for one machine.
func tapSlot(t *testing.T, number int) driver.Attachment {
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
	address, err := netlink.ParseAddr("10.214.0.1/30")
	must(t, err)
	must(t, inside.AddrAdd(tap, address))
	must(t, inside.LinkSetUp(tap)) // what both ends say about themselves is their first traffic
	return driver.Attachment{
		NetNS: "/run/netns/" + name, Device: "eth0", Tap: "tap0",
		Guest: netip.MustParsePrefix("10.214.0.2/30"), Gateway: netip.MustParseAddr("10.214.0.1"),
		MAC: net.HardwareAddr{2, 0, 0, 0, byte(number >> 8), byte(number)},
	}
}

// TestConformanceOfFirecracker runs the suite with the real programs, which no
// package registry has: they must be given.
func TestConformanceOfFirecracker(t *testing.T) {
	l := newRealLab(t)
	drivertest.Run(t, drivertest.Env{
		Driver: func(t *testing.T) driver.Driver { return l.driver(t, []string{microvmtest.Init}) },
		Spec:   func(t *testing.T) driver.Spec { return l.spec(t) },
		Kernel: true,
		Kill: func(t *testing.T, m driver.Machine) {
			must(t, syscall.Kill(pidOf(t, m), syscall.SIGKILL))
		},
		Doomed: func(t *testing.T) (driver.Driver, driver.Spec) {
			return l.driver(t, []string{"/.guest/no-such-program"}), l.spec(t)
		},
		Outside: microvmtest.Outside,
		Count:   l.count,
	})
}
