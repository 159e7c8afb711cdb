package builder

import (
	"context"
	"os"
	"os/exec"
	"testing"

	"hearth/internal/image"
)

// TestBuiltinImages makes the images of the built-in templates. HEARTH_TEST_CACHE
// names a directory to keep them in.
func TestBuiltinImages(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("skipped: needs root")
	}
	for _, tool := range []string{"mmdebstrap", "mkfs.erofs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("skipped: needs %s", tool)
		}
	}
	if testing.Short() || os.Getenv("HEARTH_TEST_DEBIAN") == "" {
		t.Skip("skipped: takes minutes and the network; set HEARTH_TEST_DEBIAN=1")
	}
	dir := os.Getenv("HEARTH_TEST_CACHE")
	if dir == "" {
		dir = t.TempDir()
	}
	cache := image.NewCache(dir)
	for _, name := range BuiltinNames() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, err := Builtin(name, cache)
			if err != nil {
				t.Fatal(err)
			}
			img, err := image.NewMaker(cache).Make(context.Background(), r.Source, func(e image.Event) { t.Log(describe(e)) })
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %s, %d MiB", name, img.SHA256, img.Bytes>>20)
		})
	}
}
