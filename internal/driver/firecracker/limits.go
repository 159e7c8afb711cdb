package firecracker

import (
	"fmt"

	"hearth/internal/driver/firecracker/vmm"
	"hearth/internal/driver/microvm"
	"hearth/internal/hearth"
)

// The rules by which a machine's limits follow from its Resources.
const (
	maxVCPUs = 32 // Firecracker's

	// The host memory a machine needs beyond what its guest may fill: the
	// monitor, its pager, and the tables that map guest memory, which KVM charges
	// to the machine.
	monitorMiB = 64

	// Threads: one per vCPU, and room for the monitor's and the pager's own.
	monitorThreads = 64

	cpuPeriod      = 100_000 // microseconds
	balloonSeconds = 30      // between two statistics of the guest
	openFiles      = 256
)

// memoryLimit is the cgroup's, in bytes.
func memoryLimit(r hearth.Resources) int64 {
	return int64(r.MemoryMiB+monitorMiB+r.MemoryMiB/128) << 20
}

// cgroupArgs are the jailer's, for a host with one version of cgroups or the
// other. With version 1 a machine must join the accounting of processor time by
// writing something there.
func cgroupArgs(r hearth.Resources, unified bool) []string {
	memory, quota, threads := memoryLimit(r), r.VCPUs*cpuPeriod, r.VCPUs+monitorThreads
	var files []string
	if unified {
		files = []string{
			fmt.Sprintf("memory.max=%d", memory), fmt.Sprintf("cpu.max=%d %d", quota, cpuPeriod), fmt.Sprintf("pids.max=%d", threads),
		}
	} else {
		files = []string{
			fmt.Sprintf("memory.limit_in_bytes=%d", memory), "memory.swappiness=0",
			fmt.Sprintf("cpu.cfs_period_us=%d", cpuPeriod), fmt.Sprintf("cpu.cfs_quota_us=%d", quota),
			"cpuacct.usage=0", fmt.Sprintf("pids.max=%d", threads),
		}
	}
	args := []string{"--cgroup-version", "1"}
	if unified {
		args[1] = "2"
	}
	for _, f := range files {
		args = append(args, "--cgroup", f)
	}
	return args
}

// fileLimit is how large a file of the monitor's may become, in bytes: it writes
// the disk, and snapshots of the memory.
func fileLimit(r hearth.Resources, disk int64) int64 {
	return max(int64(r.MemoryMiB)<<20, disk) + 16<<20
}

// perSecond lets n tokens through in a second. Firecracker's burst is for once.
func perSecond(n int64) *vmm.TokenBucket {
	return &vmm.TokenBucket{Size: n, OneTimeBurst: microvm.BurstSeconds * n, RefillTime: 1000}
}

func diskLimiter(r hearth.Resources) *vmm.RateLimiter {
	rates := microvm.RatesOf(r)
	return &vmm.RateLimiter{Bandwidth: perSecond(rates.DiskBytes), Ops: perSecond(rates.DiskOps)}
}

func netLimiter(r hearth.Resources) *vmm.RateLimiter {
	return &vmm.RateLimiter{Bandwidth: perSecond(microvm.RatesOf(r).NetBytes)}
}
