package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/internal/guest"
)

// TestPut: whatever a program has put in the place of a system file, nothing is
// written through it, and nothing blocks.
func TestPut(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	base := t.TempDir()
	victim := filepath.Join(base, "victim")
	dir := filepath.Join(base, "etc")
	for name, lay := range map[string]func(path string) error{
		"nothing":       func(string) error { return nil },
		"a file":        func(p string) error { return os.WriteFile(p, []byte("something longer"), 0o644) },
		"a link":        func(p string) error { return os.Symlink(victim, p) },
		"a hard link":   func(p string) error { return os.Link(victim, p) },
		"a dead link":   func(p string) error { return os.Symlink("/nonexistent/x", p) },
		"a pipe":        func(p string) error { return unix.Mkfifo(p, 0o666) },
		"another's":     func(p string) error { return os.WriteFile(p, nil, 0o666) },
		"a link to dev": func(p string) error { return os.Symlink("/dev/full", p) },
	} {
		for _, err := range []error{os.RemoveAll(dir), os.Mkdir(dir, 0o755), os.WriteFile(victim, []byte("untouched"), 0o600), lay(filepath.Join(dir, "f"))} {
			if err != nil {
				t.Fatal(name, err)
			}
		}
		if name == "another's" {
			if err := os.Chown(filepath.Join(dir, "f"), 65534, 65534); err != nil {
				t.Fatal(err)
			}
		}
		d, err := openDirectory(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.put("f", "content", 0o644); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		d.close()
		if got := readFile(dir, "f"); got != "content" {
			t.Errorf("%s: got %q", name, got)
		}
		if raw, _ := os.ReadFile(victim); string(raw) != "untouched" {
			t.Errorf("%s: written through: %q", name, raw)
		}
		if left, _ := os.ReadDir(dir); len(left) != 1 {
			t.Errorf("%s: %d files are left", name, len(left))
		}
	}
}

func TestOwnDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	base, elsewhere := t.TempDir(), t.TempDir()
	for name, lay := range map[string]func(path string) error{
		"nothing": func(string) error { return nil },
		"a link":  func(p string) error { return os.Symlink(elsewhere, p) },
		"a file":  func(p string) error { return os.WriteFile(p, nil, 0o644) },
		"open":    func(p string) error { _ = os.Mkdir(p, 0o777); return os.Chmod(p, 0o777) },
	} {
		dir := filepath.Join(base, "d")
		if err := lay(dir); err != nil {
			t.Fatal(err)
		}
		if err := ownDirectory(base, "d"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if fi, err := os.Lstat(dir); err != nil || !fi.IsDir() || fi.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v, %v", name, fi, err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTexts(t *testing.T) {
	got := resolvConf([]string{"1.1.1.1", "evil\nsearch x", "fd00::1"})
	if got != "nameserver 1.1.1.1\nnameserver fd00::1\n" {
		t.Errorf("resolv.conf %q", got)
	}
	a, b := machineID(guest.InitRequest{SandboxID: "i1"}), machineID(guest.InitRequest{SandboxID: "i2"})
	if a == b || len(a) != 32 || a != machineID(guest.InitRequest{SandboxID: "i1"}) {
		t.Errorf("machine ids %q %q", a, b)
	}
	if !strings.HasSuffix(hosts("i9"), "127.0.1.1\ti9 # hearth\n") || !strings.Contains(hosts("i9"), "localhost") {
		t.Errorf("hosts %q", hosts("i9"))
	}
}
