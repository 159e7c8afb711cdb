package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"hearth/internal/driver/microvm"
	"hearth/internal/driver/microvm/cpio"
	"hearth/internal/driver/microvm/microvmtest"
)

// Files of the emulated host.
const (
	initrdFile = "initrd"
	diskFile   = "disk.erofs"
)

// Places in the emulated host.
const (
	labDir    = "/lab"
	suiteDir  = "/suites"
	suiteList = "/suites.json"
	prebuilt  = "/prebuilt" // as command init knows it
)

// job is a suite, as command init reads it from suiteList.
type job struct {
	Name    string   `json:"name"`
	Argv    []string `json:"argv"`
	Env     []string `json:"env"`
	Seconds int      `json:"seconds"`
}

// tree is the root file system of the emulated host while it is put together.
type tree struct {
	dir   string
	host  string   // of microvmtest.HostEnv
	flags []string // of test binaries
}

// programs are taken from this host, with their libraries.
func programs() []string {
	return []string{"qemu-system-x86_64", "mke2fs", "modprobe", "xz"}
}

// fill puts everything into the tree.
func (t *tree) fill(ctx context.Context, kernel *microvm.Boot, modules string, chosen []suite) error {
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "root", "etc", "var/tmp", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64", labDir, suiteDir, "mnt"} {
		if err := os.MkdirAll(filepath.Join(t.dir, d), 0o755); err != nil {
			return err
		}
	}
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+d, filepath.Join(t.dir, d)); err != nil {
			return err
		}
	}
	if err := t.hostParts(ctx); err != nil {
		return err
	}
	if err := t.suites(ctx, chosen); err != nil {
		return err
	}
	if err := t.modules(ctx, modules, kernel.Release); err != nil {
		return err
	}
	if err := microvmtest.Make(ctx, filepath.Join(t.dir, labDir)); err != nil {
		return err
	}
	return t.file(kernel.Kernel, filepath.Join(labDir, microvmtest.KernelFile))
}

// hostParts takes from this host what a host of virtual machines has installed.
func (t *tree) hostParts(ctx context.Context) error {
	for _, p := range programs() {
		if err := t.program(ctx, p); err != nil {
			return err
		}
	}
	globs := []string{"/usr/share/qemu/*.bin", "/usr/share/qemu/*.rom", "/usr/share/seabios/bios*.bin", "/etc/mke2fs.conf"}
	const emulation = "/usr/lib/*/qemu/accel-*.so" // where Debian's QEMU has it in modules
	if found, err := filepath.Glob(emulation); err == nil && len(found) > 0 {
		globs = append(globs, emulation)
	}
	for _, glob := range globs {
		if err := t.copies(glob); err != nil {
			return err
		}
	}
	return t.firecracker()
}

// suites builds the test binaries and tells init of them.
func (t *tree) suites(ctx context.Context, chosen []suite) error {
	var jobs []job
	for _, s := range chosen {
		out := filepath.Join(suiteDir, s.name+".test")
		if err := t.compile(ctx, filepath.Join(t.dir, out), "test", "-c", s.pkg); err != nil {
			return err
		}
		for _, p := range s.builds {
			if err := t.compile(ctx, filepath.Join(t.dir, prebuilt, p), "build", p); err != nil {
				return err
			}
		}
		jobs = append(jobs, job{
			Name: s.name,
			Argv: append([]string{out, "-test.v", "-test.run", s.run, "-test.timeout", s.timeout.String()}, t.flags...),
			Env: []string{
				"PATH=/usr/sbin:/usr/bin", "HOME=/root", "TMPDIR=/tmp", microvmtest.HostEnv + "=" + t.host, microvmtest.Env + "=" + labDir,
			},
			Seconds: int((s.timeout + 10*time.Second).Seconds()), // the binary's own limit says more
		})
	}
	b, err := json.Marshal(jobs)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(t.dir, suiteList), b, 0o644)
}

// compile runs go with a verb that takes -o.
func (t *tree) compile(ctx context.Context, out string, verb ...string) error {
	args := append([]string{verb[0], "-o", out, "-trimpath", "-ldflags", "-s -w"}, verb[1:]...)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=amd64")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, text)
	}
	if _, err := os.Stat(out); err != nil {
		return fmt.Errorf("%s has no tests: %w", verb[len(verb)-1], err)
	}
	return nil
}

// modules puts the kernel's modules where modprobe looks for them and where the
// lab has them.
func (t *tree) modules(ctx context.Context, from, release string) error {
	to := filepath.Join("/usr/lib/modules", release)
	for _, dir := range []string{to, filepath.Join(labDir, microvmtest.ModulesDir)} {
		if err := os.MkdirAll(filepath.Join(t.dir, dir), 0o755); err != nil {
			return err
		}
	}
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !strings.Contains(d.Name(), ".ko") {
			return err
		}
		return errors.Join(t.file(path, filepath.Join(to, d.Name())), t.file(path, filepath.Join(labDir, microvmtest.ModulesDir, d.Name())))
	})
	if err != nil {
		return fmt.Errorf("the kernel's modules: %w", err)
	}
	if text, err := exec.CommandContext(ctx, "depmod", "-b", t.dir, release).CombinedOutput(); err != nil {
		return fmt.Errorf("depmod: %w\n%s", err, text)
	}
	return nil
}

// program takes a program of this host and the libraries it is linked with.
func (t *tree) program(ctx context.Context, name string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return err
	}
	if err := t.file(path, filepath.Join("/usr/bin", name)); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "ldd", path).Output()
	if err != nil {
		return nil // linked statically
	}
	for line := range strings.Lines(string(out)) {
		for _, word := range strings.Fields(line) {
			if strings.HasPrefix(word, "/") {
				if err := t.copies(word); err != nil {
					return err
				}
				break
			}
		}
	}
	return nil
}

// firecracker takes Firecracker and its jailer, which are linked statically, if
// there is one.
func (t *tree) firecracker() error {
	vmm := os.Getenv("FIRECRACKER_BIN")
	if vmm == "" {
		path, err := exec.LookPath("firecracker")
		if err != nil {
			fmt.Println("==> the real Firecracker is NOT tested: it is not in PATH, and FIRECRACKER_BIN is not set")
			return nil
		}
		vmm = path
	}
	jailer := cmp.Or(os.Getenv("JAILER_BIN"), filepath.Join(filepath.Dir(vmm), "jailer"))
	return errors.Join(t.file(vmm, "/usr/bin/firecracker"), t.file(jailer, "/usr/bin/jailer"))
}

// copies takes files of this host to the same place in the tree.
func (t *tree) copies(glob string) error {
	found, err := filepath.Glob(glob)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return fmt.Errorf("this host has no %s", glob)
	}
	for _, path := range found {
		dir, err := filepath.EvalSymlinks(filepath.Dir(path))
		if err != nil {
			return err
		}
		if err := t.file(path, filepath.Join(dir, filepath.Base(path))); err != nil {
			return err
		}
	}
	return nil
}

// file links or copies a file, or what a link points to, to a place in the tree.
func (t *tree) file(from, to string) error {
	real, err := filepath.EvalSymlinks(from)
	if err != nil {
		return err
	}
	to = filepath.Join(t.dir, to)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if err := os.Link(real, to); err == nil || errors.Is(err, fs.ErrExist) {
		return nil
	}
	in, err := os.Open(real)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, st.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// pack makes initramfs and disk in dir.
func (t *tree) pack(ctx context.Context, dir, release string) error {
	initFile := filepath.Join(t.dir, "usr/bin/go") // which it is, too
	if err := t.compile(ctx, initFile, "build", "./test/kvm/init"); err != nil {
		return err
	}
	entries := []cpio.Entry{
		{Name: "dev", Mode: cpio.Dir | 0o755},
		{Name: "dev/console", Mode: cpio.Device | 0o600, Major: 5, Minor: 1},
		{Name: "root", Mode: cpio.Dir | 0o755},
		{Name: "modules", Mode: cpio.Dir | 0o755},
	}
	data, err := os.ReadFile(initFile)
	if err != nil {
		return err
	}
	entries = append(entries, cpio.Entry{Name: "init", Mode: cpio.Regular | 0o755, Data: data})
	modules, err := t.early(release)
	if err != nil {
		return err
	}
	for i, path := range modules {
		if data, err = os.ReadFile(path); err != nil {
			return err
		}
		entries = append(entries, cpio.Entry{Name: fmt.Sprintf("modules/%02d-%s", i, filepath.Base(path)), Mode: cpio.Regular | 0o644, Data: data})
	}
	var b bytes.Buffer
	if err := cpio.Write(&b, entries); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, initrdFile), b.Bytes(), 0o644); err != nil {
		return err
	}
	if text, err := exec.CommandContext(ctx, "mkfs.erofs", "--quiet", filepath.Join(dir, diskFile), t.dir).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.erofs: %w\n%s", err, text)
	}
	return nil
}

// early lists the modules without which the disk cannot be mounted, in the order
// in which they are loaded. Of depmod's file, a line is a module and, last first,
// what has to be there before.
func (t *tree) early(release string) ([]string, error) {
	dir := filepath.Join(t.dir, "usr/lib/modules", release)
	deps, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	var order []string
	seen := map[string]bool{}
	for _, want := range []string{"virtio_pci", "virtio_blk", "erofs", "overlay"} {
		for line := range strings.Lines(string(deps)) {
			name, before, ok := strings.Cut(strings.TrimSpace(line), ":")
			stem, _, _ := strings.Cut(filepath.Base(name), ".ko")
			if !ok || strings.ReplaceAll(stem, "-", "_") != want {
				continue
			}
			all := append([]string{name}, strings.Fields(before)...)
			for i := len(all) - 1; i >= 0; i-- {
				if !seen[all[i]] {
					seen[all[i]] = true
					order = append(order, filepath.Join(dir, all[i]))
				}
			}
		}
	}
	return order, nil // what is not there is built in, or init says that it is missing
}
