// Package doctor looks at a host and says, line by line, what Hearth can do on
// it, and for what it cannot, the remedy.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/internal/config"
	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// Status is the verdict of one line.
type Status string

// The verdicts: fail keeps `hearth up` from starting, warn does not.
const (
	Pass          Status = "pass"
	Warn          Status = "warn"
	Fail          Status = "fail"
	NotApplicable Status = "n/a"
)

// Line is one thing that was looked at.
type Line struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"` // what to do about a Warn or Fail; else empty
}

// Host is what the doctor needs to know of this build to examine a host for it.
type Host struct {
	Config  *config.Config
	Drivers []driver.Driver             // the strongest isolation first
	Wanted  []string                    // those that the configuration names; none: one that runs is enough
	Network func(context.Context) error // tries namespaces, veth and nftables; nil skips
	Guest   func() error                // whether the guest daemon is in this binary
	KVM     func(context.Context) error // whether virtual machines run; nil skips what is asked of hosts of such

	// Settled says that the data directory has been used: its sandboxes and
	// templates can be served although no more may be made.
	Settled bool
}

// needed bounds: what a first sandbox with both built-in templates uses.
const (
	minKernelMajor, minKernelMinor = 5, 10 // as Debian 11 has
	minMemoryMiB                   = 2048
	minDiskMiB                     = 4096
)

// Examine runs every check. It changes nothing on the host that it does not undo.
func Examine(ctx context.Context, h Host) []Line {
	host := view{fs: os.DirFS("/"), data: h.Config.Data, exempt: h.Config.Network.Exempt}
	if abs, err := filepath.Abs(host.data); err == nil {
		host.data = abs
	}
	lines := []Line{system(), root(), kernel(), memory(), cgroups(host), namespaces()}
	asRoot := os.Geteuid() == 0
	var kvm error
	if h.KVM != nil {
		kvm = h.KVM(ctx)
	}
	if h.Network != nil && asRoot {
		lines = append(lines, verdict("network", h.Network(ctx), "namespaces, veth pairs and nftables work",
			"load the kernel's veth and nf_tables modules, or run on a kernel that has them"))
	}
	if h.Guest != nil {
		lines = append(lines, verdict("guest daemon", h.Guest(), "built into this binary", "run `make build`"))
	}
	if asRoot {
		lines = append(lines, h.drivers(ctx, kvm)...)
	} else {
		lines = append(lines, Line{"not tried", Warn, "network, drivers", "run as root"})
	}
	lines = append(lines, h.settled(tools()), h.settled(disk(h.Config.Data)), port(h.Config))
	if h.KVM != nil {
		lines = append(lines, vmHost(host, kvm)...)
	}
	return lines
}

// settled makes a warning of what keeps templates from being made, on a
// directory that may have sandboxes to look after.
func (h Host) settled(l Line) Line {
	if h.Settled && l.Status == Fail {
		l.Status = Warn
	}
	return l
}

// Failed returns an error that names the first failing line and its remedy, or nil.
func Failed(lines []Line) error {
	for _, l := range lines {
		if l.Status == Fail {
			return hearth.Errorf(hearth.FailedPrecondition, "this host cannot run Hearth: %s: %s; %s", l.Name, l.Detail, l.Remedy)
		}
	}
	return nil
}

func verdict(name string, err error, good, remedy string) Line {
	if err != nil {
		return Line{name, Fail, err.Error(), remedy}
	}
	return Line{name, Pass, good, ""}
}

func system() Line {
	what := runtime.GOOS + "/" + runtime.GOARCH
	if what != "linux/amd64" && what != "linux/arm64" {
		return Line{"system", Fail, what, "use Linux on x86-64 or arm64"}
	}
	return Line{"system", Pass, fmt.Sprintf("%s, %d cores", what, runtime.NumCPU()), ""}
}

func root() Line {
	if os.Geteuid() != 0 {
		return Line{"root", Fail, fmt.Sprintf("running as uid %d", os.Geteuid()), "run as root: namespaces, cgroups and nftables need it"}
	}
	return Line{"root", Pass, "uid 0", ""}
}

func kernel() Line {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Line{"kernel", Fail, err.Error(), "use Linux"}
	}
	release := unix.ByteSliceToString(u.Release[:])
	major, minor := version(release)
	if major < minKernelMajor || major == minKernelMajor && minor < minKernelMinor {
		return Line{"kernel", Fail, release, fmt.Sprintf("use Linux %d.%d or newer", minKernelMajor, minKernelMinor)}
	}
	return Line{"kernel", Pass, release, ""}
}

// version reads the first two numbers of a kernel release.
func version(release string) (major, minor int) {
	parts := strings.FieldsFunc(release, func(r rune) bool { return r < '0' || r > '9' })
	if len(parts) > 1 {
		major, _ = strconv.Atoi(parts[0])
		minor, _ = strconv.Atoi(parts[1])
	}
	return major, minor
}

func memory() Line {
	var s unix.Sysinfo_t
	if err := unix.Sysinfo(&s); err != nil {
		return Line{"memory", Fail, err.Error(), "use Linux"}
	}
	mib := int(s.Totalram * uint64(s.Unit) >> 20)
	if mib < minMemoryMiB {
		return Line{"memory", Warn, fmt.Sprintf("%d MiB", mib), fmt.Sprintf("use a host with at least %d MiB", minMemoryMiB)}
	}
	return Line{"memory", Pass, fmt.Sprintf("%d MiB", mib), ""}
}

const cgroupRoot = "sys/fs/cgroup"

func cgroups(v view) Line {
	needed := []string{"cpu", "memory", "pids"}
	if text, there := v.text(cgroupRoot + "/cgroup.controllers"); there {
		have := strings.Fields(text)
		for _, c := range needed {
			if !slices.Contains(have, c) {
				return Line{"cgroups", Fail, "version 2 without the " + c + " controller", "enable it on the kernel command line or in the container's host"}
			}
		}
		return Line{"cgroups", Pass, "version 2: " + strings.Join(needed, ", "), ""}
	}
	for _, c := range needed {
		if _, err := fs.Stat(v.fs, cgroupRoot+"/"+c); err != nil {
			return Line{"cgroups", Fail, "the " + c + " controller is not mounted under /" + cgroupRoot, "mount cgroup2 there, or the version 1 controllers cpu, memory and pids"}
		}
	}
	return Line{"cgroups", Pass, "version 1: " + strings.Join(needed, ", "), ""}
}

func namespaces() Line {
	raw, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
	if err != nil {
		return Line{"user namespaces", Fail, "the kernel has none", "use a kernel built with CONFIG_USER_NS"}
	}
	if n, _ := strconv.Atoi(strings.TrimSpace(string(raw))); n < 1 {
		return Line{"user namespaces", Fail, "none are allowed", "sysctl -w user.max_user_namespaces=65536"}
	}
	return Line{"user namespaces", Pass, "every sandbox gets host user ids of its own", ""}
}

// drivers says of each driver whether it runs here, and what it would put
// between guest and host. kvm says why virtual machines do not run, if they do not.
func (h Host) drivers(ctx context.Context, kvm error) []Line {
	var lines []Line
	able := false
	for _, d := range h.Drivers {
		l := Line{"driver " + d.Name(), Pass, "", ""}
		caps, err := d.Probe(ctx)
		switch {
		case err == nil && caps.Isolation == hearth.EmulatedVM:
			l.Status, l.Detail = Warn, "isolation: "+caps.Isolation.Words()
			l.Remedy = "use a host with /dev/kvm; sandboxes get this driver only where it is asked for"
		case err == nil:
			able = true
			l.Detail = "isolation: " + caps.Isolation.Words()
			if d.Name() == "gvisor" && !caps.SharedMemory {
				l.Status, l.Detail = Warn, l.Detail+"; sandboxes of one snapshot do not share its memory"
				l.Remedy = "build Hearth with `make build`, which patches gVisor"
			}
		case slices.Contains(h.Wanted, d.Name()):
			l.Status, l.Detail, l.Remedy = Fail, err.Error(), h.without(d, kvm)+"see docs/OPERATIONS.md, or take it out of the configuration"
		default:
			l.Status, l.Detail, l.Remedy = Warn, err.Error(), h.without(d, kvm)+"needed only where it is asked for"
		}
		lines = append(lines, l)
	}
	if len(h.Drivers) > 0 && h.Config.Node.Driver == config.Auto && !able {
		lines = append(lines, Line{"driver", Fail, "none runs on this host", "mend one of the above"})
	}
	return lines
}

// without is the remedy for a driver that lacks KVM, where there is one but another host.
func (h Host) without(d driver.Driver, kvm error) string {
	if d.Name() != "qemu" || kvm == nil || h.Config.Node.QEMU.Emulate {
		return ""
	}
	return "set node.qemu.emulate for guests on an emulated processor, 20 to 80 times slower; "
}

// hostTools are what making templates runs, and the Debian package each is in.
var hostTools = []struct{ command, pkg string }{
	{"mkfs.erofs", "erofs-utils"},
	{"mmdebstrap", "mmdebstrap"},
}

func tools() Line {
	var missing []string
	for _, t := range hostTools {
		if _, err := exec.LookPath(t.command); err != nil {
			missing = append(missing, t.pkg)
		}
	}
	if len(missing) > 0 {
		return Line{"template tools", Fail, "missing: " + strings.Join(missing, ", "), "apt-get install -y " + strings.Join(missing, " ")}
	}
	return Line{"template tools", Pass, "mkfs.erofs and mmdebstrap are there", ""}
}

func disk(dir string) Line {
	at := dir
	for {
		if _, err := os.Stat(at); err == nil || at == "/" {
			break
		}
		at = filepath.Dir(at)
	}
	var s unix.Statfs_t
	if err := unix.Statfs(at, &s); err != nil {
		return Line{"disk", Fail, at + ": " + err.Error(), "choose another directory with --data"}
	}
	mib := int(s.Bavail * uint64(s.Bsize) >> 20)
	if mib < minDiskMiB {
		return Line{"disk", Fail, fmt.Sprintf("%d MiB free at %s", mib, at), fmt.Sprintf("free %d MiB, or choose another directory with --data", minDiskMiB)}
	}
	return Line{"disk", Pass, fmt.Sprintf("%d MiB free at %s", mib, at), ""}
}

func port(c *config.Config) Line {
	l, err := net.Listen("tcp", c.Listen)
	if err == nil {
		l.Close()
		return Line{"listen", Pass, c.Listen + " is free", ""}
	}
	if errors.Is(err, unix.EADDRINUSE) {
		return Line{"listen", Warn, c.Listen + " is in use", "if that is not Hearth, choose another address with --listen"}
	}
	return Line{"listen", Fail, err.Error(), "choose another address with --listen"}
}
