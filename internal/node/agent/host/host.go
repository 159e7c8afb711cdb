// Package host looks at the machine that a node runs on.
package host

import (
	"bufio"
	"os"
	"strconv"
	"strings"

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
