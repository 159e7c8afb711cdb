package shelf

import (
	"testing"

	"hearth/internal/hearth"
)

// Encode makes a manifest's bytes.
func Encode(t *testing.T, owner hearth.SandboxID, snap hearth.Snapshot) []byte {
	t.Helper()
	raw, err := manifest{Sandbox: owner, Snapshot: snap}.encode()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// Parse reads a manifest.
func Parse(raw []byte, id hearth.SnapshotID) (*hearth.Snapshot, error) {
	m, err := parse(raw, id)
	if err != nil {
		return nil, err
	}
	return &m.Snapshot, nil
}

// Reading is as if a file were being verified, until done is called.
func Reading(s *Shelf) (done func()) {
	s.proofs.reading <- struct{}{}
	return func() { <-s.proofs.reading }
}
