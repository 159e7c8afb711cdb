// Package gauge reads what a host says of itself and of its control groups: what
// benchmarks are measured on, and what machines cost.
package gauge

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Host is one line about what was measured on, and how busy it was.
func Host() string {
	var u unix.Utsname
	kernel := "unknown"
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Release[:])
	}
	load, _ := os.ReadFile("/proc/loadavg")
	return fmt.Sprintf("%s; %d cores, %s; %d MiB; Linux %s %s; load before %s",
		time.Now().UTC().Format("2006-01-02 15:04 UTC"), runtime.NumCPU(), field("/proc/cpuinfo", "model name"),
		Memory("MemTotal")>>20, kernel, runtime.GOARCH, strings.Join(firstFields(string(load), 3), " "))
}

func firstFields(s string, n int) []string {
	f := strings.Fields(s)
	return f[:min(n, len(f))]
}

// field finds "name : value" in a file of /proc; "unknown" when it is not there.
func field(path, name string) string {
	f, err := os.Open(path)
	if err != nil {
		return "unknown"
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if key, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// Memory reads a line of /proc/meminfo, in bytes; 0 when it is not there.
func Memory(name string) int64 {
	var kib int64
	if _, err := fmt.Sscanf(field("/proc/meminfo", name), "%d kB", &kib); err != nil {
		return 0
	}
	return kib << 10
}

// Held is what a cgroup, named below the hierarchies' root, holds less
// the page cache that the kernel can drop, in bytes.
func Held(group string) (int64, error) {
	const root = "/sys/fs/cgroup"
	dir, usage, prefix := root+group, "memory.current", ""
	if _, err := os.Stat(root + "/memory"); err == nil {
		dir, usage, prefix = root+"/memory"+group, "memory.usage_in_bytes", "total_"
	}
	raw, err := os.ReadFile(dir + "/" + usage)
	if err != nil {
		return 0, err
	}
	var held int64
	if _, err := fmt.Sscanf(string(raw), "%d", &held); err != nil {
		return 0, err
	}
	stat, err := os.ReadFile(dir + "/memory.stat")
	if err != nil {
		return 0, err
	}
	return held - reclaimable(string(stat), prefix), nil
}

// CPU is what a cgroup, named below the hierarchies' root, has used.
func CPU(group string) (time.Duration, error) {
	const root = "/sys/fs/cgroup"
	if raw, err := os.ReadFile(root + "/cpuacct" + group + "/cpuacct.usage"); err == nil {
		ns, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
		return time.Duration(ns), err
	}
	raw, err := os.ReadFile(root + group + "/cpu.stat")
	if err != nil {
		return 0, err
	}
	var us int64
	_, err = fmt.Sscanf(string(raw), "usage_usec %d", &us) // the first line
	return time.Duration(us) * time.Microsecond, err
}

// reclaimable sums the file pages of a memory.stat. Shared memory, which cannot
// be dropped, is not among them.
func reclaimable(stat, prefix string) int64 {
	var sum int64
	for l := range strings.Lines(stat) {
		var n int64
		for _, key := range []string{"active_file", "inactive_file"} {
			if _, err := fmt.Sscanf(l, prefix+key+" %d", &n); err == nil {
				sum += n
			}
		}
	}
	return sum
}
