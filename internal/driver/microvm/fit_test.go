package microvm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// image writes the head of an EROFS image that differs from others by its fill.
func image(t *testing.T, path string, fill byte) string {
	t.Helper()
	raw := make([]byte, 4096)
	copy(raw[1024:], []byte{0xe2, 0xe1, 0xf5, 0xe0, fill})
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCheckpointsMustFit(t *testing.T) {
	dir := t.TempDir()
	layer, guest := image(t, filepath.Join(dir, "layer"), 1), image(t, filepath.Join(dir, "old.erofs"), 2)
	own := image(t, filepath.Join(dir, "new.erofs"), 3)
	spec := driver.Spec{Layers: []string{layer}, Resources: hearth.Resources{VCPUs: 1, MemoryMiB: 64, DiskMiB: 64}}
	good, err := NewFit("k", spec, guest)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := good.Check("k", spec, own); err != nil || got != guest {
		t.Errorf("it needs %q, %v; want the image that it was written with", got, err)
	}
	none, err := NewFit("k", spec, "")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := none.Check("k", spec, ""); err != nil || got != "" {
		t.Errorf("without a guest image it needs %q, %v", got, err)
	}
	for name, spoil := range map[string]func(*Fit){
		"written by":                      func(f *Fit) { f.Key = "x" },
		"other layers":                    func(f *Fit) { f.Layers = []string{"x"} },
		"has 2 vCPUs":                     func(f *Fit) { f.Resources.VCPUs = 2 },
		"1 MiB of memory":                 func(f *Fit) { f.Resources.MemoryMiB = 1 },
		"3 of disk":                       func(f *Fit) { f.Resources.DiskMiB = 3 },
		"network true":                    func(f *Fit) { f.Network = true },
		"this host has":                   func(f *Fit) { f.Guest = "" },
		"names guest image \"../escape\"": func(f *Fit) { f.Guest = "../escape" },
		"names guest image \"..\"":        func(f *Fit) { f.Guest = ".." },
		"which is not here":               func(f *Fit) { f.Guest = "gone.erofs" },
		"another guest image":             func(f *Fit) { f.GuestID = "x" },
	} {
		f := good
		spoil(&f)
		if _, err := f.Check("k", spec, own); hearth.KindOf(err) != hearth.FailedPrecondition || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewFit("k", driver.Spec{Layers: []string{dir}}, ""); hearth.KindOf(err) != hearth.InvalidArgument {
		t.Errorf("a directory as a layer: %v", err)
	}
}
