package microvm

import (
	"time"

	"hearth/internal/hearth"
)

const (
	tscTime  = 20 * time.Millisecond // of one measurement
	tscTries = 5
)

// rdtsc reads the time stamp counter.
func rdtsc() uint64

// HostTSC returns the frequency of this host's time stamp counter in kHz, for
// machines whose CPU is emulated in software: their kernel has no timer to
// measure it by. Those with KVM do not need it.
func HostTSC() (int, error) {
	var best int
	shortest := time.Hour
	for range tscTries { // the one that was interrupted least counts
		began, from := time.Now(), rdtsc()
		time.Sleep(tscTime)
		before := time.Since(began)
		to := rdtsc()
		after := time.Since(began)
		if to <= from {
			return 0, hearth.Errorf(hearth.FailedPrecondition, "this host's time stamp counter stands still")
		}
		if gap := after - before; gap < shortest {
			shortest = gap
			best = int(float64(to-from) / float64((before+after)/2) * float64(time.Millisecond))
		}
	}
	if best < 100_000 || best > 20_000_000 {
		return 0, hearth.Errorf(hearth.FailedPrecondition, "this host's time stamp counter seems to run at %d kHz", best)
	}
	return best, nil
}
