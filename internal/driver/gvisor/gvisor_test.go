package gvisor_test

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
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"hearth/internal/driver"
	"hearth/internal/driver/drivertest"
	"hearth/internal/driver/gvisor"
	"hearth/internal/hearth"
)

// mine begins the IDs of this run's machines and names its cgroup, namespaces and
// devices, so that two runs on one host neither count nor sweep each other's.
var (
	mine    = fmt.Sprintf("hgt%d-", os.Getpid())
	cgroups = "/" + mine + "test"
)

// network is the second byte of the addresses of this run's machines, which no other
// run on this host has, and none of which a server gives by default. A socket keeps it.
var network = sync.OnceValue(func() (own struct {
	byte int
	kept net.Listener
}) {
	for n := 216; n < 256; n++ {
		if l, err := net.Listen("unix", fmt.Sprintf("@hearth-gvisor-test-%d", n)); err == nil {
			own.byte, own.kept = n, l
			break
		}
	}
	return own
})

// address is one of a machine's network, whose host's end is 1 and whose guest is 2.
func address(number, end int) string {
	return fmt.Sprintf("10.%d.%d.%d", network().byte, number, end)
}

// lab is what the tests of one run share: programs and images.
type lab struct {
	dir, exe, guest, root string
}

func newLab(t testing.TB) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("gvisor: needs root")
	}
	mkfs, err := exec.LookPath("mkfs.erofs")
	if err != nil {
		t.Skip("gvisor: needs mkfs.erofs")
	}
	if network().kept == nil {
		t.Fatal("no addresses are left for this run of the tests")
	}
	dir, err := os.MkdirTemp("/tmp", "hearth-gvisor-") // t.TempDir is too long a path for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Cleanup(func() {
		if d, err := gvisor.New(gvisor.Config{Root: filepath.Join(dir, "run"), CgroupParent: cgroups}); err != nil {
			t.Error(err)
		} else if err := d.Purge(); err != nil {
			t.Error(err)
		}
	})
	l := &lab{dir: dir, exe: filepath.Join(dir, "hearth-sandbox"), guest: filepath.Join(dir, "guest.erofs"), root: filepath.Join(dir, "root.erofs")}
	build(t, l.exe, "hearth/cmd/hearth-sandbox")
	must(t, os.MkdirAll(filepath.Join(dir, "g"), 0o755))
	must(t, drivertest.MakeGuest(t.Context(), filepath.Join(dir, "g")))
	must(t, drivertest.MakeRoot(filepath.Join(dir, "r")))
	run(t, mkfs, "--quiet", "-E", "noinline_data", l.guest, filepath.Join(dir, "g"))
	run(t, mkfs, "--quiet", "-E", "noinline_data", l.root, filepath.Join(dir, "r"))
	if caps(t, l.driver(t)).SharedMemory && !strings.Contains(os.Getenv("GOFLAGS"), "hearthcow") {
		t.Fatal("these tests are built with the patched gVisor, and their sandboxes would not be: set GOFLAGS to what `make gvisor` prints")
	}
	return l
}

func build(t testing.TB, out, pkg string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-o", out, pkg) // as make does, which has compiled all but pkg
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", pkg, err, text)
	}
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if text, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, text)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// driver returns a driver on the lab's root, as a restarted process would.
func (l *lab) driver(t testing.TB) driver.Driver {
	t.Helper()
	d, err := gvisor.New(l.config(t))
	must(t, err)
	return d
}

func (l *lab) config(t testing.TB) gvisor.Config {
	return gvisor.Config{
		Root:         filepath.Join(l.dir, "run"),
		Guest:        l.guest,
		Init:         []string{"/.guest/testguest"},
		Exe:          l.exe,
		CgroupParent: cgroups,
		UIDBase:      2_000_000_000, // none of a server's on the same machine
		Log:          slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
}

// start starts a machine, from a checkpoint if there is one, that ends with the test.
func (l *lab) start(t *testing.T, id string, number int, from *driver.Checkpoint) driver.Machine {
	t.Helper()
	spec := l.spec(t, id, number)
	spec.From = from
	m, err := l.driver(t).Start(t.Context(), spec)
	must(t, err)
	t.Cleanup(func() { must(t, m.Close(context.Background())) })
	return m
}

// pidOf is the process of a machine's sandbox.
func pidOf(t *testing.T, m driver.Machine) int {
	t.Helper()
	var state struct{ PID int }
	must(t, json.Unmarshal(m.Handle().State, &state))
	return state.PID
}

// spec describes a machine in a network namespace of its own.
func (l *lab) spec(t testing.TB, id string, number int) driver.Spec {
	t.Helper()
	id = mine + id
	dir := filepath.Join(l.dir, "m", id)
	must(t, os.MkdirAll(dir, 0o700))
	return driver.Spec{
		ID: id, Dir: dir, Layers: []string{l.root}, Hostname: id,
		Resources: hearth.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64},
		Net:       slot(t, number),
	}
}

// slot makes a namespace joined to the host by a veth pair, for one machine.
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
	must(t, netns.Set(host))
	t.Cleanup(func() { _ = netns.DeleteNamed(name) })
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns)}
	must(t, netlink.LinkAdd(veth))
	t.Cleanup(func() { _ = netlink.LinkDel(veth) })
	up := func(h *netlink.Handle, device, address string) {
		link, err := h.LinkByName(device)
		must(t, err)
		a, err := netlink.ParseAddr(address)
		must(t, err)
		must(t, h.AddrAdd(link, a))
		must(t, h.LinkSetUp(link))
	}
	outside, err := netlink.NewHandle()
	must(t, err)
	defer outside.Close()
	inside, err := netlink.NewHandleAt(ns)
	must(t, err)
	defer inside.Close()
	lo, err := inside.LinkByName("lo")
	must(t, err)
	must(t, inside.LinkSetUp(lo))
	up(outside, name, address(number, 1)+"/30")
	up(inside, "eth0", address(number, 2)+"/30")
	return driver.Attachment{
		NetNS:   "/run/netns/" + name,
		Guest:   netip.MustParsePrefix(address(number, 2) + "/30"),
		Gateway: netip.MustParseAddr(address(number, 1)),
		Device:  "eth0",
	}
}

func TestConformance(t *testing.T) {
	l := newLab(t)
	var number atomic.Int32
	specOf := func(t *testing.T) driver.Spec {
		n := int(number.Add(1))
		return l.spec(t, fmt.Sprintf("conf-%d", n), n%250)
	}
	drivertest.Run(t, drivertest.Env{
		Driver: func(t *testing.T) driver.Driver { return l.driver(t) },
		Spec:   specOf,
		Kernel: true,
		Kill: func(t *testing.T, m driver.Machine) {
			must(t, syscall.Kill(pidOf(t, m), syscall.SIGKILL))
		},
		Doomed: func(t *testing.T) (driver.Driver, driver.Spec) {
			cfg := l.config(t)
			cfg.Init = []string{"/.guest/no-such-program"}
			d, err := gvisor.New(cfg)
			must(t, err)
			return d, specOf(t)
		},
		Outside: func(t *testing.T, spec driver.Spec) net.Listener {
			outside, err := net.Listen("tcp", netip.AddrPortFrom(spec.Net.Gateway, 0).String())
			must(t, err)
			return outside
		},
		EndsQuietly: !caps(t, l.driver(t)).SharedMemory, // gVisor as it is published
		Count:       l.count,
	})
}

// count counts what sandboxes hold on the host.
func (l *lab) count(t *testing.T) map[string]int {
	t.Helper()
	n := map[string]int{"processes": 0}
	cmdlines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range cmdlines {
		raw, _ := os.ReadFile(path)
		if bytes.Contains(raw, []byte(l.dir)) || bytes.HasPrefix(raw, []byte("hearth-machine\x00"+mine)) {
			n["processes"]++
		}
	}
	for name, pattern := range map[string]string{
		"cgroups":     "/sys/fs/cgroup/*" + cgroups + "/" + mine + "*",
		"descriptors": "/proc/self/fd/*",
		"state":       filepath.Join(l.dir, "run", "*"+mine+"*"),
		"uid ranges":  filepath.Join(l.dir, "run", "uids", "*"),
		"namespaces":  "/run/netns/" + mine + "*",
	} {
		found, err := filepath.Glob(pattern)
		must(t, err)
		n[name] = len(found)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range bytes.Lines(mounts) {
		if bytes.Contains(line, []byte("/"+mine)) || bytes.Contains(line, []byte(l.dir)) {
			n["mounts"]++
		}
	}
	return n
}
