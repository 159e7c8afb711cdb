// Package microvmtest gives the tests of virtual machine drivers what their
// machines are started from: images of the suite's guest and of an almost empty
// root, and where the guest's kernel comes from.
//
// On a host with Go, mkfs.erofs and apt it makes them. On one without, such as
// the emulated KVM host of test/kvm, it takes what was made elsewhere from the
// directory that Env names.
package microvmtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"hearth/internal/driver/drivertest"
	"hearth/internal/driver/microvm"
)

// Env names a directory with everything that New returns, see Make.
const Env = "HEARTH_TEST_LAB"

// HostEnv is set in the emulated KVM host: to ShortHost where it has some minutes, to
// something else where it has as long as it takes.
const (
	HostEnv   = "HEARTH_TEST_KVM"
	ShortHost = "short"
)

// cacheEnv names the directory in which tests keep what is expensive to fetch.
const cacheEnv = "HEARTH_TEST_CACHE"

// Init is the first program of the suite's machines, in the image Guest.
const Init = "/.guest/testguest"

// Lab is what machines of the suite are started from.
type Lab struct {
	Root   string          // EROFS, the one layer: empty directories and /etc/hostname
	Guest  string          // EROFS, mounted at /.guest; Init is in it
	Kernel microvm.Options // of the guests
}

// Names in the directory of Env.
const (
	KernelFile = "vmlinux"
	ModulesDir = "modules"
	rootName   = "root.erofs"
	guestName  = "guest.erofs"
)

// New returns a lab. What has to be made is put in dir, which exists and is
// absolute. A host that can neither make it nor has it is a reason to skip.
func New(t testing.TB, dir string) *Lab {
	t.Helper()
	if made := os.Getenv(Env); made != "" {
		return &Lab{
			Root: filepath.Join(made, rootName), Guest: filepath.Join(made, guestName),
			Kernel: microvm.Options{
				Cache: filepath.Join(dir, "kernel"), Kernel: filepath.Join(made, KernelFile), Modules: filepath.Join(made, ModulesDir),
			},
		}
	}
	for _, tool := range []string{"go", "mkfs.erofs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s, or %s", tool, Env)
		}
	}
	if err := Make(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	cache, err := KernelCache()
	if err != nil {
		t.Fatal(err)
	}
	return &Lab{Root: filepath.Join(dir, rootName), Guest: filepath.Join(dir, guestName), Kernel: microvm.Options{Cache: cache}}
}

// KernelCache is where the kernel of tests is kept between their runs.
func KernelCache() (string, error) {
	dir := os.Getenv(cacheEnv)
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(user, "hearth-test")
	}
	return filepath.Join(dir, "kernel"), nil
}

// Make makes the two images in dir, which exists. A directory for Env also has
// KernelFile and ModulesDir.
func Make(ctx context.Context, dir string) error {
	root, guest := filepath.Join(dir, "root"), filepath.Join(dir, "guest")
	if err := os.MkdirAll(guest, 0o755); err != nil {
		return err
	}
	if err := drivertest.MakeRoot(root); err != nil {
		return err
	}
	if err := drivertest.MakeGuest(ctx, guest); err != nil {
		return err
	}
	for _, argv := range [][]string{
		{"mkfs.erofs", "--quiet", "-E", "noinline_data", filepath.Join(dir, guestName), guest},
		{"mkfs.erofs", "--quiet", "-E", "noinline_data", filepath.Join(dir, rootName), root},
	} {
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w\n%s", argv, err, text)
		}
	}
	return nil
}
