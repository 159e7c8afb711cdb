package microvm

import (
	"strconv"
	"strings"
)

// Traffic reads a tap's counters in what /proc/net/dev says, as the guest sees
// them: what the tap sends is what the guest receives.
func Traffic(dev, tap string) (rx, tx int64) {
	for line := range strings.Lines(dev) {
		name, counters, _ := strings.Cut(line, ":")
		if f := strings.Fields(counters); strings.TrimSpace(name) == tap && len(f) >= 9 {
			tx, _ = strconv.ParseInt(f[0], 10, 64)
			rx, _ = strconv.ParseInt(f[8], 10, 64)
		}
	}
	return rx, tx
}
