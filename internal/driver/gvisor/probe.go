package gvisor

import (
	"context"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// Probe checks, without changing anything, what a start would trip over.
func (d *Driver) Probe(context.Context) (driver.Capabilities, error) {
	missing := func(format string, args ...any) (driver.Capabilities, error) {
		return driver.Capabilities{}, hearth.Errorf(hearth.FailedPrecondition, "gvisor: "+format, args...)
	}
	if os.Geteuid() != 0 {
		return missing("needs root to make cgroups and namespaces: run as root")
	}
	if n := readNumber("/proc/sys/user/max_user_namespaces"); n == 0 && exists("/proc/sys/user/max_user_namespaces") {
		return missing("user namespaces are off: sysctl user.max_user_namespaces=15000")
	}
	if fd, err := unix.PidfdOpen(os.Getpid(), 0); err != nil {
		return missing("the kernel has no pidfd_open (%v): Linux 5.10 or newer is needed", err)
	} else {
		_ = unix.Close(fd)
	}
	if !unifiedCgroups() {
		for _, c := range []string{"memory", "cpu", "cpuacct", "pids"} {
			if !exists(filepath.Join(cgroupRoot, c)) {
				return missing("cgroup controller %q is not mounted below %s: boot with cgroup v2, or mount it", c, cgroupRoot)
			}
		}
	}
	if d.cfg.Guest != "" {
		if _, err := imageID(d.cfg.Guest); err != nil {
			return missing("guest image %s cannot be used: %v", d.cfg.Guest, err)
		}
	}
	key, err := d.key()
	if err != nil {
		return missing("processor cannot be identified: %v", err)
	}
	return driver.Capabilities{Isolation: hearth.UserKernel, MemorySnapshot: true, Key: key}, nil
}
