package daemon

import (
	"bufio"
	"io"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// usage is the answer of GET /metrics; sizes are in bytes.
type usage struct {
	Timestamp  int64   `json:"ts"` // Unix seconds
	CPUCount   int     `json:"cpu_count"`
	CPUUsedPct float64 `json:"cpu_used_pct"` // of all CPUs, since the reading before
	MemTotal   uint64  `json:"mem_total"`
	MemUsed    uint64  `json:"mem_used"`
	MemCache   uint64  `json:"mem_cache"`
	MemTotalMB uint64  `json:"mem_total_mib"`
	MemUsedMB  uint64  `json:"mem_used_mib"`
	DiskUsed   uint64  `json:"disk_used"`
	DiskTotal  uint64  `json:"disk_total"`
}

// meter reads the machine's usage when it is asked, never by itself: an idle
// daemon must not wake up.
type meter struct {
	mu   sync.Mutex
	busy float64 // clock ticks at the last reading
	all  float64
	pct  float64
	at   time.Time
}

// newMeter returns a meter whose first reading is the average since boot.
func newMeter() *meter { return &meter{} }

// settle is the shortest span over which a percentage means something.
const settle = 100 * time.Millisecond

func (m *meter) read() usage {
	u := usage{Timestamp: time.Now().Unix(), CPUCount: runtime.NumCPU(), CPUUsedPct: m.cpu()}
	total, free, cache := memory()
	u.MemTotal, u.MemCache = total, cache
	u.MemUsed = total - min(total, free+cache)
	u.MemTotalMB, u.MemUsedMB = total>>20, u.MemUsed>>20
	var st unix.Statfs_t
	if unix.Statfs("/", &st) == nil && st.Bsize > 0 {
		u.DiskTotal = st.Blocks * uint64(st.Bsize)
		u.DiskUsed = (st.Blocks - min(st.Blocks, st.Bfree)) * uint64(st.Bsize)
	}
	return u
}

// cpu is the share of time that was not idle since the reading before, in percent.
func (m *meter) cpu() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.at) < settle {
		return m.pct
	}
	busy, all := ticks()
	if all > m.all {
		m.pct = math.Round((busy-m.busy)/(all-m.all)*10_000) / 100
	}
	m.busy, m.all, m.at = busy, all, time.Now()
	return m.pct
}

// maxProc bounds what is read of a file in /proc.
const maxProc = 64 << 10

// ticks reads the first line of /proc/stat.
func ticks() (busy, all float64) {
	f, err := os.Open("/proc/stat")
	if err != nil {
		return 0, 0
	}
	defer f.Close()
	line, _ := bufio.NewReader(io.LimitReader(f, maxProc)).ReadString('\n')
	const idle, iowait, guest = 3, 4, 8
	for i, field := range strings.Fields(strings.TrimPrefix(line, "cpu ")) {
		n, err := strconv.ParseFloat(field, 64)
		if err != nil || i >= guest { // guest time is part of user time
			break
		}
		all += n
		if i != idle && i != iowait {
			busy += n
		}
	}
	return busy, all
}

// memory reads /proc/meminfo.
func memory() (total, free, cache uint64) {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0, 0
	}
	for line := range strings.SplitSeq(string(raw), "\n") {
		name, rest, _ := strings.Cut(line, ":")
		n, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 10, 64)
		if err != nil {
			continue
		}
		switch name {
		case "MemTotal":
			total = n << 10
		case "MemFree":
			free = n << 10
		case "Buffers", "Cached", "SReclaimable":
			cache += n << 10
		}
	}
	return total, free, cache
}
