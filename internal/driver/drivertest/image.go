package drivertest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

// MakeRoot makes the tree of the machines' one layer: next to nothing, and testguest
// for a shell.
func MakeRoot(dir string) error {
	for _, d := range []string{"root", "tmp", "etc", "mnt", "var", "dev", "proc", "sys", "run", ".guest", "bin"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "etc/hostname"), []byte("image\n"), 0o644),
		os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0::/root:/bin/sh\n"), 0o644),
		os.Symlink("/.guest/testguest", filepath.Join(dir, "bin/sh")),
	)
}

// MakeGuest builds what the machines have at /.guest, in dir: testguest, the guest
// daemon, and Python if the host has one.
func MakeGuest(ctx context.Context, dir string) error {
	for name, pkg := range map[string]string{
		"testguest":    "hearth/internal/driver/drivertest/testguest",
		"hearth-guest": "hearth/cmd/hearth-guest",
	} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, name), pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go build %s: %w\n%s", pkg, err, text)
		}
	}
	err := copyPython(ctx, filepath.Join(dir, "python"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
