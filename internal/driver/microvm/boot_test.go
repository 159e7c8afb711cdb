package microvm

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"hearth/internal/driver/microvm/channel"
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
	ctx, cancel := context.WithTimeout(m.Context(), 60*time.Second)
	defer cancel()
	var conn net.Conn
	for conn == nil {
		var err error
		if conn, err = net.Dial("unix", m.socket); err != nil && ctx.Err() != nil {
			m.Fatal(err)
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
	ctx, cancel := context.WithTimeout(m.Context(), 30*time.Second)
	defer cancel()
	if err := m.channel.Configure(ctx, s); err != nil {
		m.Fatal(err)
	}
}

// get asks testguest, once it listens.
func (m *machine) get(path string) string {
	m.Helper()
	ctx, cancel := context.WithTimeout(m.Context(), 60*time.Second)
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
	}
}

func TestBoot(t *testing.T) {
	began := time.Now()
	m := start(t, 128, "/init")
	t.Logf("session after %s", time.Since(began))
	m.configure(channel.Settings{Hostname: "box"})
	m.get("/ticks")
	t.Logf("first answer after %s", time.Since(began))
	var mib int
	var full bool
	total := 0
	for _, path := range []string{"/root/big", "/tmp/big"} {
		answer := m.get("/fill?mib=1024&path=" + path)
		if _, err := fmt.Sscanf(answer, "%d %t", &mib, &full); err != nil || !full {
			t.Errorf("%s: %q, want a full disk", path, answer)
		}
		total += mib
	}
	if total < 60 || total > 64 {
		t.Errorf("%d MiB could be written on a disk of 64", total)
	}
	if name := m.get("/file?path=/proc/sys/kernel/hostname"); name != "box\n" {
		t.Errorf("hostname %q", name)
	}
}
