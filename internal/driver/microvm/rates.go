package microvm

import "hearth/internal/hearth"

// Rates are what a machine may move and do in a second, by its size: disks and
// networks are shared with its neighbours, as its processors are.
type Rates struct {
	DiskBytes int64 // of the writable disk, read and written
	DiskOps   int64
	NetBytes  int64 // each way
}

// BurstSeconds is how many seconds' worth of a rate may be used at once, beyond
// the rate, by a machine that was quiet before.
const BurstSeconds = 4

// RatesOf returns the rates of a machine.
func RatesOf(r hearth.Resources) Rates {
	n := int64(r.VCPUs)
	return Rates{DiskBytes: n * 128 << 20, DiskOps: n * 5_000, NetBytes: n * 125_000_000} // 1 Gbit/s
}
