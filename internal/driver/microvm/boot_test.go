package microvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"hearth/internal/driver/microvm/channel"
	"hearth/internal/hearth"
)

const (
	patience = 5 * time.Minute  // for one step: only what hangs takes as long
	still    = 20 * time.Second // for which a settled disk surely stands still: somewhat less than its 30 s
	pause    = 5 * time.Millisecond
)

// machine is one virtual machine that is emulated in software, with testguest
// as its first program.
type machine struct {
	*testing.T
	console *Console
	ended   chan error
	socket  string
	channel *channel.Channel
	http    *http.Client
}

// need skips the test where a program is missing or emulation was not asked for:
// a boot takes seconds of a whole core.
func need(t *testing.T, programs ...string) {
	t.Helper()
	if os.Getenv("HEARTH_TEST_VM") == "" {
		t.Skip("set HEARTH_TEST_VM=1 to boot virtual machines in software emulation")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not installed", p)
		}
	}
}

// compile builds a static program of this module.
func compile(t *testing.T, out, pkg string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, text)
	}
}

// prepare makes kernel and initramfs with the hearth-init of this tree.
func prepare(t *testing.T) *Boot {
	t.Helper()
	init := filepath.Join(t.TempDir(), "hearth-init")
	compile(t, init, "hearth/cmd/hearth-init")
	raw, err := os.ReadFile(init)
	if err != nil {
		t.Fatal(err)
	}
	cache := os.Getenv("HEARTH_TEST_KERNEL_CACHE")
	if cache == "" {
		cache = filepath.Join(os.TempDir(), "hearth-test-kernel")
	}
	b, err := Prepare(t.Context(), Options{Cache: cache, Init: raw})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// layer makes an EROFS image with testguest as /init and the directories that a
// root file system has.
func layer(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	compile(t, filepath.Join(root, "init"), "hearth/internal/driver/drivertest/testguest")
	for _, d := range []string{"proc", "sys", "dev", "run", "tmp", "root", "etc"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(t.TempDir(), "layer.erofs")
	if text, err := exec.Command("mkfs.erofs", "--quiet", out, root).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v\n%s", err, text)
	}
	return out
}

func start(t *testing.T, memoryMiB int, program ...string) *machine {
	t.Helper()
	need(t, "qemu-system-x86_64", "mkfs.erofs", "mke2fs", "apt-get")
	dir := t.TempDir()
	m := &machine{T: t, console: &Console{}, ended: make(chan error, 1), socket: filepath.Join(dir, "channel")}
	boot, root, disk := prepare(t), layer(t), filepath.Join(dir, "disk")
	if err := MakeDisk(t.Context(), DiskSpec{Path: disk, MiB: 64, UID: os.Getuid(), GID: os.Getgid()}); err != nil {
		t.Fatal(err)
	}
	khz, err := HostTSC()
	if err != nil {
		t.Fatal(err)
	}
	line := CommandLine{
		Layers: []string{"vda"}, Disk: "vdb", Transport: Serial, Init: program,
		Console: "ttyS0", Reboot: "t", TSC: khz,
	}
	cmd := exec.Command("qemu-system-x86_64", "-M", "microvm,pit=off,pic=off,rtc=on", "-bios", "qboot.rom", "-accel", "tcg", "-cpu", "max",
		"-m", fmt.Sprint(memoryMiB), "-nodefaults", "-no-user-config", "-nographic", "-serial", "stdio", "-no-reboot",
		"-kernel", boot.Kernel, "-initrd", boot.Initrd, "-append", line.String(),
		"-drive", "id=d0,format=raw,if=none,readonly=on,file="+root, "-device", "virtio-blk-device,drive=d0",
		"-drive", "id=d1,format=raw,if=none,discard=unmap,file="+disk, "-device", "virtio-blk-device,drive=d1",
		"-device", "virtio-serial-device", "-chardev", "socket,id=c0,server=on,wait=off,path="+m.socket,
		"-device", "virtserialport,chardev=c0,name="+PortName,
		"-netdev", "hubport,id=n0,hubid=0", "-device", "virtio-net-device,netdev=n0,mac=02:00:00:00:00:01")
	cmd.Stdout, cmd.Stderr = m.console, m.console
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { m.ended <- cmd.Wait() }()
	t.Cleanup(func() {
		if m.channel != nil {
			_ = m.channel.Close()
		}
		_ = cmd.Process.Kill()
		<-m.ended
		if t.Failed() {
			t.Logf("console:\n%s", m.console.Tail(8<<10))
		}
	})
	m.connect()
	return m
}

// connect begins a session, as a host does that has just started.
func (m *machine) connect() {
	m.Helper()
	ctx, cancel := context.WithTimeout(m.Context(), patience)
	defer cancel()
	var conn net.Conn
	for conn == nil {
		var err error
		if conn, err = net.Dial("unix", m.socket); err != nil && ctx.Err() != nil {
			m.Fatal(err)
		}
		if err != nil {
			<-time.After(pause)
		}
	}
	c, err := channel.Open(ctx, conn)
	if err != nil {
		m.Fatal(err)
	}
	m.channel = c
	m.http = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return m.channel.Dial(ctx, 8080)
	}}}
}

func (m *machine) configure(s channel.Settings) {
	m.Helper()
	s.Now, s.Seed = time.Now(), NewSeed()
	ctx, cancel := context.WithTimeout(m.Context(), patience)
	defer cancel()
	if err := m.channel.Configure(ctx, s); err != nil {
		m.Fatal(err)
	}
}

// get asks testguest, once it listens.
func (m *machine) get(path string) string {
	m.Helper()
	ctx, cancel := context.WithTimeout(m.Context(), patience)
	defer cancel()
	for {
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://guest"+path, nil)
		res, err := m.http.Do(req)
		if err == nil {
			raw, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if err != nil {
				m.Fatalf("%s: %v", path, err)
			}
			return string(raw)
		}
		if ctx.Err() != nil {
			m.Fatalf("%s: %v", path, err)
		}
		<-time.After(pause)
	}
}

// TestBoot goes through what a machine's life has, with one machine: every boot
// is expensive.
func TestBoot(t *testing.T) {
	began := time.Now()
	m := start(t, 256, "/init")
	t.Logf("session after %s", time.Since(began))
	if _, err := m.channel.Dial(t.Context(), 8080); hearth.KindOf(err) != hearth.FailedPrecondition {
		t.Errorf("Dial before Configure: %v", err)
	}
	lan := channel.Settings{
		Hostname: "box", Device: "eth0", MAC: "02:00:00:00:00:02",
		Address: netip.MustParsePrefix("10.3.0.2/30"), Gateway: netip.MustParseAddr("10.3.0.1"),
	}
	m.configure(lan)
	m.get("/ticks")
	t.Logf("first answer after %s", time.Since(began))
	for path, want := range map[string]string{
		"/proc/sys/kernel/hostname": "box\n", "/sys/class/net/eth0/address": "02:00:00:00:00:02\n",
		"/proc/self/status": "NSpid:\t1\n", "/proc/net/route": "eth0\t00000000\t0100030A\t", "/proc/self/cgroup": "0::/\n",
		"/proc/self/limits": "Max open files            1048576",
	} {
		if got := m.get("/file?path=" + path); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q in it", path, got, want)
		}
	}
	if _, err := m.channel.Dial(t.Context(), 81); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a port where nothing listens: %v", err)
	}
	m.settles(lan)
	m.quota()
	m.get("/mount")
	began = time.Now()
	m.get("/console?mib=16")
	t.Logf("32 MiB to the console took %s", time.Since(began))
	m.forks()
	m.reconnect(lan)
	m.exits()
}

// settles makes the disk stand still: a write waits, and all else goes on, until
// the machine is configured.
func (m *machine) settles(s channel.Settings) {
	m.Helper()
	ctx, cancel := context.WithTimeout(m.Context(), patience)
	defer cancel()
	var began time.Time
	for range 2 {
		began = time.Now()
		if err := m.channel.Settle(ctx); err != nil {
			m.Fatal(err)
		}
	}
	wrote := make(chan error, 1)
	go func() {
		req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://guest/file?path=/root/late&value=late", nil)
		res, err := m.http.Do(req)
		if err == nil {
			_ = res.Body.Close()
		}
		wrote <- err
	}()
	for range 20 {
		m.get("/ticks")
	}
	select {
	case err := <-wrote:
		if took := time.Since(began); took < still {
			m.Errorf("a disk that stands still was written to: %v", err)
		} else {
			m.Logf("not tried: this host took %s for twenty answers", took)
		}
		wrote <- err
	default:
	}
	m.configure(s)
	if err := <-wrote; err != nil {
		m.Errorf("the write that waited: %v", err)
	}
	if got := m.get("/file?path=/root/late"); got != "late" {
		m.Errorf("it wrote %q", got)
	}
}

// quota fills the disk from two places.
func (m *machine) quota() {
	m.Helper()
	total := 0
	for _, path := range []string{"/root/big", "/tmp/big"} {
		var mib int
		var full bool
		answer := m.get("/fill?mib=1024&path=" + path)
		if _, err := fmt.Sscanf(answer, "%d %t", &mib, &full); err != nil || !full {
			m.Errorf("%s: %q, want a full disk", path, answer)
		}
		total += mib
	}
	if total < 60 || total > 64 {
		m.Errorf("%d MiB could be written on a disk of 64", total)
	}
}

// forks lets users and root fork without end: both are stopped, and it is the
// first program that lives on.
func (m *machine) forks() {
	m.Helper()
	for _, uid := range []int{1000, 0} {
		n, err := strconv.Atoi(m.get(fmt.Sprintf("/fork?max=5000&uid=%d", uid)))
		m.Logf("user %d could start %d processes", uid, n)
		if err != nil || n < 32 || n > 1000 {
			m.Errorf("user %d could start %d processes, %v", uid, n, err)
		}
	}
}

// reconnect is what a host does that has been killed in the middle of a frame.
func (m *machine) reconnect(s channel.Settings) {
	m.Helper()
	old, err := m.channel.Dial(m.Context(), 8080)
	if err != nil {
		m.Fatal(err)
	}
	_ = m.channel.Close()
	if _, err := old.Read(make([]byte, 1)); err == nil {
		m.Error("a connection of a closed channel lives on")
	}
	half, err := net.Dial("unix", m.socket)
	if err != nil {
		m.Fatal(err)
	}
	_, _ = half.Write([]byte("\xc2\x3d\x10\x00half a frame"))
	_ = half.Close()
	m.connect()
	if _, err := m.channel.Dial(m.Context(), 8080); hearth.KindOf(err) != hearth.FailedPrecondition {
		m.Errorf("Dial in a new session: %v", err)
	}
	s.Restored = true
	m.configure(s)
	m.get("/ticks")
}

// exits ends the first program: the machine reports it and ends.
func (m *machine) exits() {
	m.Helper()
	go func() {
		req, _ := http.NewRequest(http.MethodGet, "http://guest/exit?code=7", nil)
		if res, err := m.http.Do(req); err == nil {
			_ = res.Body.Close()
		}
	}()
	m.ends(channel.Exit{Code: 7})
}

func (m *machine) ends(want channel.Exit) {
	m.Helper()
	ctx, cancel := context.WithTimeout(m.Context(), patience)
	defer cancel()
	got, err := m.channel.Wait(ctx)
	if err != nil || got != want {
		m.Errorf("the machine ended with %+v, %v; want %+v", got, err, want)
	}
	select {
	case err := <-m.ended:
		if err != nil {
			m.Errorf("the monitor ended with %v", err)
		}
		m.ended <- nil // for the clean-up
	case <-ctx.Done():
		m.Error("the monitor goes on after the machine has ended")
	}
}

func TestOutOfMemory(t *testing.T) {
	m := start(t, 128, "/init")
	m.configure(channel.Settings{})
	m.get("/ticks")
	began := time.Now()
	go func() {
		req, _ := http.NewRequest(http.MethodGet, "http://guest/hog?mib=2048", nil)
		if res, err := m.http.Do(req); err == nil {
			_ = res.Body.Close()
		}
	}()
	m.ends(channel.Exit{Code: 137, Signal: 9, OOM: true})
	t.Logf("out of memory after %s", time.Since(began))
}

// TestBadRoot: a machine whose first program is not there says so, and ends.
func TestBadRoot(t *testing.T) {
	m := start(t, 128, "/nothing")
	m.ends(channel.Exit{Code: 1, Reason: "start /nothing: no such file or directory"})
}
