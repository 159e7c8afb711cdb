// Package host looks at the machine that a node runs on.
package host

import (
	"bufio"
	"cmp"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"hearth/internal/hearth"
)

// Memory is what a host has. Bytes.
type Memory struct {
	Total     int64
	Available int64 // without swapping
}

// ReadMemory reads /proc/meminfo.
func ReadMemory() (Memory, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return Memory{}, hearth.Wrap(hearth.Internal, err, "the host's memory cannot be read")
	}
	defer f.Close()
	var m Memory
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		kib, _ := strconv.ParseInt(fields[1], 10, 64)
		switch fields[0] {
		case "MemTotal:":
			m.Total = kib << 10
		case "MemAvailable:":
			m.Available = kib << 10
		}
	}
	if err := lines.Err(); err != nil || m.Total == 0 {
		return Memory{}, hearth.Wrap(hearth.Internal, err, "the host's memory cannot be read")
	}
	return m, nil
}

// Capacity is what may be allocated: as configured in t, else what the host has; its
// disk is that of dir.
func (m Memory) Capacity(t hearth.Resources, dir string) hearth.Resources {
	t.VCPUs = cmp.Or(t.VCPUs, runtime.NumCPU())
	t.MemoryMiB = cmp.Or(t.MemoryMiB, int(m.Total>>20))
	var fs syscall.Statfs_t
	if t.DiskMiB == 0 && syscall.Statfs(dir, &fs) == nil {
		t.DiskMiB = int(fs.Blocks * uint64(fs.Bsize) >> 20)
	}
	return t
}

// Reserve is how much of it is left alone: what is configured, or a sixteenth.
func (m Memory) Reserve(configured int64) int64 {
	if configured > 0 {
		return configured
	}
	return m.Total / 16
}
