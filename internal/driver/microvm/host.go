package microvm

import (
	"crypto/rand"

	"hearth/internal/hearth"
)

// NewSeed returns entropy for channel.Settings.
func NewSeed() []byte {
	seed := make([]byte, 64)
	rand.Read(seed) // never fails
	return seed
}

// HostTSC returns the frequency of this host's time stamp counter in kHz, for
// machines whose CPU is emulated in software. Those with KVM do not need it.
func HostTSC() (int, error) {
	return 0, hearth.Errorf(hearth.Unimplemented, "not yet")
}
