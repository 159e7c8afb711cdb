package app

import (
	"os"
	"path/filepath"
	"runtime/debug"
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

func TestBuiltWithCgo(t *testing.T) {
	for value, want := range map[string]hearth.Kind{"1": hearth.FailedPrecondition, "0": hearth.KindOf(nil)} {
		info := &debug.BuildInfo{Settings: []debug.BuildSetting{{Key: "CGO_ENABLED", Value: value}}}
		if got := hearth.KindOf(built(info)); got != want {
			t.Errorf("CGO_ENABLED=%s: got %v, want %v", value, got, want)
		}
	}
	if err := built(nil); err != nil {
		t.Errorf("no build information: %v", err)
	}
}
