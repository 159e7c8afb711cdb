// Package hostproc is what a driver needs to keep the processes of its machines
// apart on the host, and to find them again: a control group per machine, host
// users that no other machine has, the identity of a process that outlives
// the one that started it, and how exact its timers are.
package hostproc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Check says what of this host's an isolated process needs and is not there,
// with the remedy.
func Check() error {
	if os.Geteuid() != 0 {
		return errors.New("needs root to make cgroups and namespaces: run as root")
	}
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return fmt.Errorf("the kernel has no pidfd_open (%w): Linux 5.10 or newer is needed", err)
	}
	_ = unix.Close(fd)
	if UnifiedCgroups() {
		return nil
	}
	for _, c := range []string{"memory", "cpu", "cpuacct", "pids"} {
		if _, err := os.Stat(filepath.Join(CgroupRoot, c)); err != nil {
			return fmt.Errorf("cgroup controller %q is not mounted below %s: boot with cgroup v2, or mount it", c, CgroupRoot)
		}
	}
	return nil
}
