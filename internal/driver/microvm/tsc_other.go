//go:build !amd64

package microvm

import "hearth/internal/hearth"

// HostTSC returns the frequency of this host's time stamp counter in kHz, which
// only x86-64 has.
func HostTSC() (int, error) {
	return 0, hearth.Errorf(hearth.Unimplemented, "only x86-64 has a time stamp counter")
}
