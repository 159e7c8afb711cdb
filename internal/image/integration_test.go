package image

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"
)

// needs skips a test by name where the host cannot run it.
func needs(t *testing.T, tools ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("skipped: needs root")
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("skipped: needs %s", tool)
		}
	}
}

func TestDebianImage(t *testing.T) {
	needs(t, "mmdebstrap", "mkfs.erofs", "fsck.erofs")
	if testing.Short() || os.Getenv("HEARTH_TEST_DEBIAN") == "" {
		t.Skip("skipped: takes minutes and the network; set HEARTH_TEST_DEBIAN=1")
	}
	dir := os.Getenv("HEARTH_TEST_CACHE")
	if dir == "" {
		dir = t.TempDir()
	}
	cache := NewCache(dir)
	packages := []string{"bash", "ca-certificates", "curl", "git", "iproute2", "less", "ncurses-bin", "procps", "python3", "python3-pip", "sudo"}
	src, err := NewDebian(cache, DebianSpec{Packages: packages})
	if err != nil {
		t.Fatal(err)
	}
	py, err := NewDebian(cache, DebianSpec{
		Packages: packages, Python: []string{"ipykernel", "numpy"}, Drop: []string{"debugpy"},
		Files: map[string]string{"/etc/hearth/probe": "here\n"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []Source{src, py} {
		start := time.Now()
		img, err := NewMaker(cache).Make(context.Background(), s, func(e Event) { t.Logf("%6.1fs %s: %s (%d %s)", e.Elapsed.Seconds(), e.Step, e.Message, e.Done, e.Unit) })
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s %d MiB in %s", img.SHA256, img.Bytes>>20, time.Since(start))
		if out, err := exec.Command("fsck.erofs", img.Path).CombinedOutput(); err != nil {
			t.Errorf("fsck.erofs: %v %s", err, out)
		}
	}
}
