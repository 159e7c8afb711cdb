package drivertest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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
// daemon as the Makefile builds it, and Python if the host has one.
func MakeGuest(ctx context.Context, dir string) error {
	module, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return fmt.Errorf("go env GOMOD: %w", err)
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return err
	}
	for _, args := range [][]string{
		{"go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "testguest"), "hearth/internal/driver/drivertest/testguest"},
		{"make", "-C", filepath.Dir(strings.TrimSpace(string(module))), "guest", "GUEST=" + filepath.Join(dir, "hearth-guest")},
	} {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, text)
		}
	}
	err = copyPython(ctx, filepath.Join(dir, "python"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
