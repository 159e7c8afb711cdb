package shelf

import (
	"encoding/json"
	"testing"

	"hearth/internal/hearth"
)

// Encode makes a manifest's bytes.
func Encode(t *testing.T, owner hearth.SandboxID, snap hearth.Snapshot) []byte {
	t.Helper()
	m := manifest{Sandbox: owner, Snapshot: snap}
	var err error
	if m.SHA256, err = m.sum(); err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
