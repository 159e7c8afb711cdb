package microvm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"hearth/internal/hearth"
)

func field(t *testing.T, text, name string) int64 {
	t.Helper()
	m := regexp.MustCompile(`(?m)^` + name + `:\s+(\d+)`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("dumpe2fs says nothing of %q", name)
	}
	n, _ := strconv.ParseInt(m[1], 10, 64)
	return n
}

// TestMakeDisk: what ext4 says is free is what was asked for.
func TestMakeDisk(t *testing.T) {
	if _, err := exec.LookPath("mke2fs"); err != nil {
		t.Skip("e2fsprogs is not installed")
	}
	for _, size := range []int{1, 64, 512, 1024, 10 << 10, 200 << 10} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk")
			if err := MakeDisk(t.Context(), DiskSpec{Path: path, MiB: size}); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("dumpe2fs", "-h", path).Output()
			if err != nil {
				t.Fatal(err)
			}
			usable := field(t, string(out), "Free blocks") * 4096
			asked := int64(size) * mib
			t.Logf("%d MiB: %d bytes usable, %.2f%%", size, usable, 100*float64(usable)/float64(asked))
			if usable > asked+asked/2000+64<<10 || usable < asked-asked/32 {
				t.Errorf("%d bytes can be written, want %d", usable, asked)
			}
			st, _ := os.Stat(path)
			if used := st.Sys(); used == nil || st.Mode().Perm() != 0o600 {
				t.Errorf("mode %v", st.Mode())
			}
		})
	}
}

func TestMakeDiskErrors(t *testing.T) {
	there := filepath.Join(t.TempDir(), "there")
	if err := os.WriteFile(there, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		spec DiskSpec
		kind hearth.Kind
	}{
		"relative": {DiskSpec{Path: "x", MiB: 1}, hearth.InvalidArgument},
		"empty":    {DiskSpec{Path: "/x", MiB: 0}, hearth.InvalidArgument},
		"huge":     {DiskSpec{Path: "/x", MiB: maxDiskMiB + 1}, hearth.InvalidArgument},
		"exists":   {DiskSpec{Path: there, MiB: 1}, hearth.Internal},
	} {
		if err := MakeDisk(t.Context(), c.spec); hearth.KindOf(err) != c.kind {
			t.Errorf("%s: %v, want %s", name, err, c.kind)
		}
	}
	if raw, _ := os.ReadFile(there); string(raw) != "x" {
		t.Error("a file that was there is gone")
	}
}
