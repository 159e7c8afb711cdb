package app

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/blob/blobtest"
	"hearth/internal/config"
	"hearth/internal/hearth"
)

// TestMemoryDir: plain files go where only this user can read them, in memory, or
// the server does not start.
func TestMemoryDir(t *testing.T) {
	a := &App{cfg: &config.Config{Data: t.TempDir()}, opts: Options{Log: slog.New(slog.DiscardHandler)}}
	parent := blobtest.TempDir(t)
	if !strings.HasPrefix(parent, defaultPlainDir) {
		t.Skip("this host has no /dev/shm")
	}
	own := filepath.Join(parent, "hearth-"+nodeTag(a.cfg.Data))
	for range 2 { // made, then found
		dir, room, err := a.memoryDir(parent)
		if dir != own || room <= 0 || err != nil {
			t.Errorf("%q, %d, %v", dir, room, err)
		}
	}
	for name, spoil := range map[string]func() (parent string, err error){
		"a disk":  func() (string, error) { return "/proc", nil },
		"nothing": func() (string, error) { return filepath.Join(parent, "gone"), nil },
		"open":    func() (string, error) { return parent, os.Chmod(own, 0o755) },
		"foreign": func() (string, error) { return parent, os.Chown(own, 12345, 12345) },
		"a link":  func() (string, error) { return parent, os.Symlink(t.TempDir(), own) },
		"a file":  func() (string, error) { return parent, os.WriteFile(own, nil, 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			if name == "foreign" && os.Geteuid() != 0 {
				t.Skip("only root gives files away")
			}
			if name == "a link" || name == "a file" {
				if err := os.RemoveAll(own); err != nil {
					t.Fatal(err)
				}
			} else if err := os.MkdirAll(own, 0o700); err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(own)
			parent, err := spoil()
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := a.memoryDir(parent); hearth.KindOf(err) != hearth.FailedPrecondition || !strings.Contains(err.Error(), "snapshots.plain_dir") {
				t.Error(err)
			}
		})
	}
}

func TestSwaps(t *testing.T) {
	for text, want := range map[string]bool{"": false, "Filename\tType\n": false, "Filename\tType\n/swapfile file\n": true} {
		list := filepath.Join(t.TempDir(), "swaps")
		if err := os.WriteFile(list, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if swaps(list) != want {
			t.Errorf("%q: %v", text, !want)
		}
	}
	if swaps(filepath.Join(t.TempDir(), "none")) {
		t.Error("no list")
	}
}
