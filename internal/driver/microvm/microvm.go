// Package microvm is what every virtual machine monitor shares: the guest
// kernel and the initramfs it starts, the kernel's command line, the writable
// disk, and the console's bounded memory. How host and guest talk is package
// channel; what runs in the guest before anything else is package vminit.
// Processes of monitors, snapshots and handles belong to the drivers.
//
// A machine's disks, as every driver attaches them: the EROFS layers read-only,
// lowest first; the guest daemon's image read-only, where there is one; the
// writable disk last. CommandLine says which is which by name (vda, vdb, ...),
// which the guest's kernel gives in the order in which a monitor has them. (QEMU's
// microvm: in the order of its arguments, as long as these name no bus.)
package microvm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"hearth/internal/driver/microvm/cpio"
	"hearth/internal/driver/microvm/embedded"
	"hearth/internal/hearth"
)

// Options say where the guest's kernel comes from.
type Options struct {
	// Cache keeps unpacked kernels and initramfs files by content; absolute, made if missing.
	Cache string
	// Kernel is a vmlinux (ELF, x86-64) or a bzImage of the host. Empty: the
	// kernel of Debian's package linux-image-cloud-amd64, fetched with the
	// host's own apt once, and from then on as Cache has it.
	Kernel string
	// Modules is Kernel's /lib/modules/VERSION. Empty: everything is built in.
	Modules string
	// Init is the first program of the guest; nil: the embedded hearth-init.
	Init []byte
}

// Boot is what a machine starts from. The files are read-only, stay as they
// are, and may be mapped by any number of machines.
type Boot struct {
	Kernel  string // vmlinux, ELF
	Initrd  string // cpio archive, not compressed
	Release string // the kernel's, as uname -r says it
	PVH     bool   // the kernel has the entry that QEMU's microvm needs
	Digest  string // SHA-256 of kernel and initramfs, hex: part of a snapshot's key
}

// Prepare makes kernel and initramfs ready. Calls at once, of several processes
// too, are safe; the second finds what the first has made.
func Prepare(ctx context.Context, o Options) (*Boot, error) {
	if !filepath.IsAbs(o.Cache) {
		return nil, hearth.Errorf(hearth.InvalidArgument, "the kernel cache %q is not an absolute path", o.Cache)
	}
	if err := os.MkdirAll(o.Cache, 0o755); err != nil {
		return nil, hearth.Wrap(hearth.FailedPrecondition, err, "the kernel cache cannot be made")
	}
	init := o.Init
	if init == nil {
		var err error
		if init, err = embedded.Binary(); err != nil {
			return nil, err
		}
	}
	kernel, modules, err := o.Kernel, o.Modules, error(nil)
	if kernel == "" {
		if kernel, modules, err = debianKernel(ctx, o.Cache); err != nil {
			return nil, err
		}
	}
	image, facts, err := readKernel(ctx, kernel)
	if err != nil {
		return nil, fmt.Errorf("kernel %s: %w", kernel, err)
	}
	var list []module
	if modules != "" {
		tree, err := readModuleTree(modules)
		if err != nil {
			return nil, err
		}
		if list, err = tree.load(ctx, wanted(), facts.release); err != nil {
			return nil, err
		}
	}
	initrd, err := initramfs(init, list)
	if err != nil {
		return nil, err
	}
	return keep(o.Cache, image, initrd, facts)
}

func readKernel(ctx context.Context, path string) ([]byte, kernelFacts, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, kernelFacts{}, hearth.Wrap(hearth.InvalidArgument, err, "it cannot be read")
	}
	image, err := kernelELF(ctx, raw)
	if err != nil {
		return nil, kernelFacts{}, err
	}
	facts, err := inspect(image)
	return image, facts, err
}

// initramfs is the archive that the kernel unpacks: hearth-init, and the modules
// under names that sort in the order in which they are loaded.
func initramfs(init []byte, list []module) ([]byte, error) {
	entries := []cpio.Entry{
		{Name: "dev", Mode: cpio.Dir | 0o755},
		{Name: "dev/console", Mode: cpio.Device | 0o600, Major: 5, Minor: 1},
		{Name: "init", Mode: cpio.Regular | 0o755, Data: init},
		{Name: "modules", Mode: cpio.Dir | 0o755},
	}
	for i, m := range list {
		entries = append(entries, cpio.Entry{Name: fmt.Sprintf("modules/%03d-%s.ko", i, m.name), Mode: cpio.Regular | 0o644, Data: m.data})
	}
	var b bytes.Buffer
	err := cpio.Write(&b, entries)
	return b.Bytes(), err
}

// keep puts kernel and initramfs into the directory boot-DIGEST of the cache,
// unless they are there.
func keep(cache string, image, initrd []byte, facts kernelFacts) (*Boot, error) {
	kernelSum, initrdSum := sha256.Sum256(image), sha256.Sum256(initrd)
	both := sha256.Sum256(append(kernelSum[:], initrdSum[:]...))
	digest := hex.EncodeToString(both[:])
	dir := filepath.Join(cache, "boot-"+digest[:32])
	b := &Boot{
		Kernel: filepath.Join(dir, "vmlinux"), Initrd: filepath.Join(dir, "initrd"),
		Release: facts.release, PVH: facts.pvh, Digest: digest,
	}
	if whole(b.Kernel, len(image)) && whole(b.Initrd, len(initrd)) {
		return b, nil
	}
	tmp, err := os.MkdirTemp(cache, ".boot-")
	if err != nil {
		return nil, hearth.Wrap(hearth.FailedPrecondition, err, "the kernel cache cannot be written")
	}
	defer os.RemoveAll(tmp)
	err = errors.Join(
		os.Chmod(tmp, 0o755),
		createFile(filepath.Join(tmp, "vmlinux"), bytes.NewReader(image)),
		createFile(filepath.Join(tmp, "initrd"), bytes.NewReader(initrd)),
		syncAll(tmp),
	)
	if err == nil {
		err = os.Rename(tmp, dir)
	}
	if errors.Is(err, fs.ErrExist) { // another process was faster, or a file was damaged
		if whole(b.Kernel, len(image)) && whole(b.Initrd, len(initrd)) {
			return b, nil
		}
		err = errors.Join(os.RemoveAll(dir), os.Rename(tmp, dir))
	}
	if err != nil {
		return nil, hearth.Wrap(hearth.FailedPrecondition, err, "the kernel cache cannot be written")
	}
	return b, nil
}

// whole tells a file of the right size. Names are digests of the content, and
// files get their names once they are written and synced.
func whole(path string, size int) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Size() == int64(size)
}
