package microvm

import "hearth/internal/driver/hostproc"

// Traffic reads a tap's counters in what /proc/net/dev says, as the guest sees
// them: what the tap sends is what the guest receives.
func Traffic(dev, tap string) (rx, tx int64) {
	tx, rx = hostproc.Counters(dev, tap)
	return rx, tx
}
