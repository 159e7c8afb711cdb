// Package microvm is what every virtual machine monitor shares: the guest
// kernel and the initramfs it starts, the kernel's command line, the writable
// disk, and the console's bounded memory. How host and guest talk is package
// channel; what runs in the guest before anything else is package vminit.
// Processes of monitors, snapshots and handles belong to the drivers.
//
// A machine's disks, as every driver attaches them: the EROFS layers read-only,
// lowest first; the guest daemon's image read-only, where there is one; the
// writable disk last. CommandLine says which is which by name (vda, vdb, ...).
package microvm

import (
	"context"

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
	return nil, hearth.Errorf(hearth.Unimplemented, "not yet")
}
