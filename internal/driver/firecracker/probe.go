package firecracker

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"hearth/internal/driver"
	"hearth/internal/driver/firecracker/key"
	"hearth/internal/driver/hostproc"
	"hearth/internal/driver/microvm"
	"hearth/internal/hearth"
)

// oldest is the oldest version that is run. Before 1.15.1 a guest could write
// beyond a device's queue (CVE-2026-5747), before 1.16 clocks jumped at a restore,
// before 1.16.1 the guest channel did not survive one.
var oldest = version{1, 16, 1}

const versionTime = 10 * time.Second // for a program to say its version

// version is major, minor, patch.
type version [3]int

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

func (v version) before(w version) bool {
	for i := range v {
		if v[i] != w[i] {
			return v[i] < w[i]
		}
	}
	return false
}

// host is what Probe found and every start needs.
type host struct {
	firecracker, jailer string // absolute, links resolved
	version             version
	boot                *microvm.Boot
	template            []byte // of the CPU; nil: none
	key                 key.Key
}

// Probe checks what a start would trip over. It changes nothing but what
// Config.Boot makes.
func (d *Driver) Probe(ctx context.Context) (driver.Capabilities, error) {
	h, err := d.probe(ctx)
	if err != nil {
		return driver.Capabilities{}, err
	}
	c := driver.Capabilities{Isolation: hearth.HardwareVM, MemorySnapshot: true, FileSnapshot: true, SharedMemory: true, Tap: true, Key: h.key.String()}
	if canPage() {
		c.PackedFile = checkpointMemory
	}
	return c, nil
}

// probe looks at the host until it has found everything once.
func (d *Driver) probe(ctx context.Context) (*host, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.host != nil {
		return d.host, nil
	}
	h, err := d.look(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, hearth.Wrap(hearth.DeadlineExceeded, err, "firecracker: the host was not looked at in time")
		}
		return nil, hearth.Errorf(hearth.FailedPrecondition, "firecracker: %v", err)
	}
	d.host = h
	return h, nil
}

func (d *Driver) look(ctx context.Context) (*host, error) {
	if err := hostproc.Check(); err != nil {
		return nil, err
	}
	h := &host{}
	var err error
	if h.firecracker, h.version, err = program(ctx, "firecracker", d.cfg.Firecracker); err != nil {
		return nil, err
	}
	if !strings.Contains(filepath.Base(h.firecracker), "firecracker") {
		return nil, fmt.Errorf("the jailer runs no program without firecracker in its name: rename %s", h.firecracker)
	}
	var jailer version
	if h.jailer, jailer, err = program(ctx, "jailer", d.cfg.Jailer); err != nil {
		return nil, err
	}
	if jailer != h.version {
		return nil, fmt.Errorf("firecracker is %s and jailer %s: install both from one release", h.version, jailer)
	}
	if _, err := exec.LookPath("mke2fs"); err != nil {
		return nil, errors.New("mke2fs is not installed: install the package e2fsprogs")
	}
	if err := d.cfg.CheckKVM(ctx); err != nil { // may take seconds, so after what takes none
		return nil, err
	}
	if h.boot, err = d.cfg.Boot(ctx); err != nil {
		return nil, fmt.Errorf("no guest kernel: %w", err)
	}
	if err := checkKernel(h.boot.Kernel); err != nil {
		return nil, err
	}
	if d.cfg.Guest != "" {
		if _, err := driver.LayerID(d.cfg.Guest); err != nil {
			return nil, fmt.Errorf("guest image %s cannot be used: %w", d.cfg.Guest, err)
		}
	}
	if d.cfg.CPUTemplate != "" {
		if h.template, err = os.ReadFile(d.cfg.CPUTemplate); err != nil {
			return nil, fmt.Errorf("CPU template cannot be read: %w", err)
		}
	}
	h.key, err = key.New(key.Host{Firecracker: h.version.String(), GuestKernel: h.boot.Digest, Template: h.template})
	return h, err
}

// program finds a program and asks it for its version.
func program(ctx context.Context, name, configured string) (string, version, error) {
	path := configured
	if path == "" {
		found, err := exec.LookPath(name)
		if err != nil {
			return "", version{}, fmt.Errorf("%s %s or newer is not installed: put it in PATH, or name it in the configuration", name, oldest)
		}
		path = found
	}
	path, err := filepath.EvalSymlinks(path)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", version{}, fmt.Errorf("%s is not there: %w", name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, versionTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if errors.Is(err, fs.ErrPermission) {
		return "", version{}, fmt.Errorf("%s is not executable: chmod +x %s", name, path)
	}
	if err != nil {
		return "", version{}, fmt.Errorf("%s does not run: %w", path, err)
	}
	v, err := parseVersion(name, string(out))
	if err != nil {
		return "", version{}, fmt.Errorf("%s: %w", path, err)
	}
	if v.before(oldest) {
		return "", version{}, fmt.Errorf("%s is version %s, at least %s is needed: install a newer release", path, v, oldest)
	}
	return path, v, nil
}

var versionLine = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)^(firecracker|jailer) v([0-9]{1,4})\.([0-9]{1,4})\.([0-9]{1,4})(-[0-9a-z.+-]{1,64})?\s*$`)
})

// parseVersion reads what a program says when it is asked.
func parseVersion(name, said string) (version, error) {
	first, _, _ := strings.Cut(said, "\n")
	m := versionLine().FindStringSubmatch(first)
	if m == nil || !strings.EqualFold(m[1], name) {
		return version{}, fmt.Errorf("it says %.60q and not which version of %s it is", first, name)
	}
	var v version
	for i := range v {
		v[i], _ = strconv.Atoi(m[2+i]) // digits, by the pattern
	}
	return v, nil
}

// checkKernel refuses a file that Firecracker cannot boot.
func checkKernel(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("kernel %s is no vmlinux: it must be the ELF file, not a bzImage: %w", path, err)
	}
	defer f.Close()
	if f.Class != elf.ELFCLASS64 || f.Machine != thisArch().machine || f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return fmt.Errorf("kernel %s is for %s: a %s vmlinux is needed", path, f.Machine, thisArch().machine)
	}
	return nil
}
