package daemon

import (
	"testing"

	"hearth/internal/guest/embedded"
)

// TestResident: the daemon runs on the host, does its work, and is gone after it.
func TestResident(t *testing.T) {
	if _, err := embedded.Binary(); err != nil {
		t.Skip(err)
	}
	anonymous, file, err := Resident(t.Context())
	if err != nil || anonymous < 100<<10 || file < 100<<10 {
		t.Errorf("%d and %d bytes, %v", anonymous, file, err)
	}
	t.Logf("anonymous %.1f MiB, file %.1f MiB", float64(anonymous)/(1<<20), float64(file)/(1<<20))
}
