package app

import (
	"os"
	"path/filepath"
	"testing"

	"hearth/internal/hearth"
)

func TestOverwrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), PidFile)
	if err := overwrite(path, "1\n"); hearth.KindOf(err) != hearth.ResourceExhausted {
		t.Errorf("got %v for a file that is not there", err)
	}
	if err := writeFile(path, "1234567\n"); err != nil {
		t.Fatal(err)
	}
	if err := overwrite(path, "89\n"); err != nil {
		t.Fatal(err)
	}
	if raw, err := os.ReadFile(path); err != nil || string(raw) != "89\n" {
		t.Errorf("got %q, %v", raw, err)
	}
}
