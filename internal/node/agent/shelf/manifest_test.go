package shelf_test

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"

	"hearth/internal/hearth"
	"hearth/internal/node/agent/shelf"
)

// TestManifestOfAnotherServer: one that knows more fields, or fewer, wrote it.
func TestManifestOfAnotherServer(t *testing.T) {
	snap := `{"ID":"s1","Base":"s0","Colour":"blue","Files":[{"Name":"a","Blob":"snapshots/s1/a","Bytes":1,"SHA256":"x"}]}`
	sum := sha256.Sum256([]byte("owner\n" + snap))
	raw := `{"sandbox":"owner","snapshot":` + snap + `,"sha256":"` + hex.EncodeToString(sum[:]) + `"}`
	got, err := shelf.Parse([]byte(raw), "s1")
	if err != nil || got.Base != "s0" || len(got.Files) != 1 {
		t.Fatalf("got %+v, %v", got, err)
	}
	if _, err := shelf.Parse([]byte(strings.Replace(raw, "blue", "bluf", 1)), "s1"); hearth.KindOf(err) != hearth.FailedPrecondition {
		t.Errorf("altered: %v", err)
	}
}

// FuzzManifest: whatever the bytes, no panic, and no name that leaves its directory.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"sandbox":"o","snapshot":{"ID":"s1","Files":[{"Name":"a","Bytes":1}]}}`))
	f.Add([]byte(`{"snapshot":{"ID":"s1","Base":"s1"},"sha256":""}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		snap, err := shelf.Parse(raw, "s1")
		if err != nil {
			if hearth.KindOf(err) != hearth.FailedPrecondition {
				t.Fatal(err)
			}
			return
		}
		for _, file := range snap.Files {
			if strings.ContainsAny(file.Name, "/\x00") || file.Name == ".." || file.Bytes < 0 {
				t.Fatalf("a file %q of %d bytes", file.Name, file.Bytes)
			}
		}
	})
}
