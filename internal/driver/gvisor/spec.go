package gvisor

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"hearth/internal/driver"
	"hearth/internal/hearth"
)

const (
	sentryMiB = 64      // host memory a sandbox needs beyond what its guest may fill
	shmMiB    = 64      // size of /dev/shm, part of the guest's memory as on any Linux
	cpuPeriod = 100_000 // microseconds

	// A machine's directory is its bundle, with the description under the name that OCI gives
	// it. There is as little else in it as can be: what makes and removes many files makes file
	// systems slow. Nothing reads the description once the machine runs: marks are further names of
	// its file, which a build before this empties when it makes one that is there.
	configFile = "config.json"
)

// guestCaps is what root inside a machine may do: install packages, change
// owners, mount file systems, trace. It may not change the network, the clock,
// the kernel or limits. All of it ends at gVisor's own kernel and, beyond it, at
// the machine's user namespace.
var guestCaps = [...]string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID",
	"CAP_IPC_LOCK", "CAP_KILL", "CAP_MKNOD", "CAP_NET_BIND_SERVICE", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP",
	"CAP_SETUID", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_SYS_NICE", "CAP_SYS_PTRACE",
}

// processLimit is how many processes and threads the users of a guest may have:
// one per 2 MiB of memory, which is about what a process costs the sandbox, and
// at least 256.
func processLimit(r hearth.Resources) int64 { return int64(min(max(r.MemoryMiB/2, 256), 16384)) }

// pidLimit is the cgroup's. It is what holds root inside, and only a backstop:
// a sandbox that reaches it dies as a whole. It must be out of reach of users
// within processLimit: a guest's process takes three of the host's under a fork
// bomb (measured with systrap), and the sandbox's own threads need room.
func pidLimit(r hearth.Resources) int64 { return 4*processLimit(r) + 256 }

// memoryLimit is the cgroup's, in bytes.
func memoryLimit(r hearth.Resources) int64 {
	return int64(r.MemoryMiB+r.DiskMiB+sentryMiB) << 20
}

// tmpMiB is the part of the disk budget that is /tmp's.
func tmpMiB(r hearth.Resources) int { return max(r.DiskMiB/4, 1) }

// ociSpec describes a machine to gVisor. Its memory limit is what the guest is
// told; the launcher raises it to memoryLimit once the guest's size is fixed.
func (d *Driver) ociSpec(s driver.Spec, guest string, firstUID uint32) *specs.Spec {
	r := s.Resources
	memory, swappiness := int64(r.MemoryMiB)<<20, uint64(0)
	quota, period := int64(r.VCPUs)*cpuPeriod, uint64(cpuPeriod)
	pids := pidLimit(r)
	users := []specs.LinuxIDMapping{{ContainerID: 0, HostID: firstUID, Size: rangeSize}}
	return &specs.Spec{
		Version:  specs.Version,
		Hostname: s.Hostname,
		Root:     &specs.Root{Path: s.Dir}, // nobody looks at it, with an image
		Process:  d.process(r),
		Mounts:   mounts(r, guest),
		Annotations: map[string]string{
			"dev.gvisor.spec.rootfs.type":    "erofs",
			"dev.gvisor.spec.rootfs.source":  s.Layers[0],
			"dev.gvisor.spec.rootfs.overlay": "memory",
			"dev.gvisor.spec.rootfs.options": fmt.Sprintf("size=%dm", max(r.DiskMiB-tmpMiB(r), 1)),
		},
		Linux: &specs.Linux{
			CgroupsPath: filepath.Join(d.cfg.CgroupParent, s.ID),
			UIDMappings: users,
			GIDMappings: users,
			Namespaces:  namespaces(s.Net.NetNS),
			Resources: &specs.LinuxResources{
				Memory: &specs.LinuxMemory{Limit: &memory, Swappiness: &swappiness},
				CPU:    &specs.LinuxCPU{Quota: &quota, Period: &period},
				Pids:   &specs.LinuxPids{Limit: pids},
			},
		},
	}
}

func (d *Driver) process(r hearth.Resources) *specs.Process {
	caps := guestCaps[:]
	nproc, nofile := uint64(processLimit(r)), uint64(1<<20)
	return &specs.Process{
		Args:         d.cfg.Init,
		Env:          d.cfg.Env,
		Cwd:          "/",
		Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps, Inheritable: caps},
		Rlimits: []specs.POSIXRlimit{
			{Type: "RLIMIT_NOFILE", Soft: nofile, Hard: nofile},
			{Type: "RLIMIT_NPROC", Soft: nproc, Hard: nproc},
		},
		// The sandbox itself runs with no_new_privs; inside, sudo must work.
		NoNewPrivileges: false,
	}
}

func mounts(r hearth.Resources, guest string) []specs.Mount {
	list := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc"},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777", fmt.Sprintf("size=%dm", min(shmMiB, r.MemoryMiB/2))}},
		{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777", fmt.Sprintf("size=%dm", tmpMiB(r))}},
	}
	if guest != "" {
		list = append(list, specs.Mount{Destination: "/.guest", Type: "erofs", Source: guest, Options: []string{"ro"}})
	}
	return list
}

func namespaces(netNS string) []specs.LinuxNamespace {
	list := []specs.LinuxNamespace{
		{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
		{Type: specs.MountNamespace}, {Type: specs.UserNamespace},
	}
	if netNS != "" {
		list = append(list, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: netNS})
	}
	return list
}

// writeBundle puts the description where the launcher and the sandbox read it.
func writeBundle(dir string, spec *specs.Spec) error {
	raw, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, configFile), raw, 0o600)
}
