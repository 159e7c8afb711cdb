package hostproc

import (
	"os"
	"strconv"
	"strings"
)

// Traffic reads a network interface's counters, in bytes, in the network namespace
// of a process; 0 when either is gone.
func Traffic(pid int, device string) (received, sent int64) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/net/dev")
	if err != nil {
		return 0, 0
	}
	return Counters(string(raw), device)
}

// Counters finds an interface's in what /proc/net/dev says.
func Counters(dev, device string) (received, sent int64) {
	for line := range strings.Lines(dev) {
		name, counters, _ := strings.Cut(line, ":")
		if f := strings.Fields(counters); strings.TrimSpace(name) == device && len(f) >= 9 {
			received, _ = strconv.ParseInt(f[0], 10, 64)
			sent, _ = strconv.ParseInt(f[8], 10, 64)
		}
	}
	return received, sent
}
