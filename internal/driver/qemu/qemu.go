// Package qemu runs machines in QEMU's microvm, with KVM, or emulated in
// software where the configuration asks for that.
//
// A machine is one QEMU process, child of none of our namespaces: its root holds
// the program, its libraries and its firmware, read-only, and nothing of the
// machine's own. Everything else comes as open descriptors: disks, tap, memory,
// sockets. It runs as a user that no other machine has, without capabilities and
// without a way to new ones, under QEMU's own seccomp filter, in a control group
// of its own and in a network namespace that is empty.
//
// Memory: a machine boots on anonymous memory. Its checkpoint becomes a sealed
// memory file, filled once, which every clone maps privately: clones share the
// pages that they do not write, and not even a QEMU that a guest has taken over
// can write to the file. What a clone has written is what its own checkpoint
// keeps, beside the name of the template's; see package ram. The state of the
// devices is what QEMU writes for Xen's toolstack, which is all of it without the
// memory (xen-save-devices-state); it is taken up again by -incoming.
//
// On disk, in Spec.Dir: disk.img, the writable disk; the sockets qmp (QEMU's
// control), guest (the channel to the guest's first process), console, and owner
// (see package tenure). Config.Root holds uids, as package hostproc keeps them,
// and jail, an empty directory.
//
// A checkpoint: machine.json (what it needs), device.state (QEMU's), ram.index
// and ram.pages (package ram's), disk.img. It is layered at most once: a clone of
// a clone still refers to the first template, and keeps all that differs from it.
// One of the files alone is machine.json and disk.img, and a machine that starts
// from it boots.
//
// What a guest frees it reports through its balloon, and QEMU drops those pages of
// the private mapping: jail's filter of system calls sees to that.
package qemu

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"hearth/internal/driver"
	"hearth/internal/driver/hostproc"
	"hearth/internal/driver/microvm"
	"hearth/internal/driver/qemu/jail"
	"hearth/internal/hearth"
)

// Name is what Driver.Name returns and checkpoints carry.
const Name = "qemu"

// Accelerator is what executes the guest's instructions.
type Accelerator string

// The accelerators.
const (
	KVM      Accelerator = "kvm"        // the processor
	TCG      Accelerator = "tcg"        // QEMU's emulation: 20 to 80 times slower, never the default
	KVMOrTCG Accelerator = "kvm or tcg" // emulation where KVM does not run
)

// Config says where a driver keeps its state and what it runs.
type Config struct {
	// Root holds what is kept between machines; absolute, on a file system that a
	// reboot empties. It is made when missing.
	Root string
	// Guest is an EROFS image mounted read-only at /.guest in every machine;
	// empty mounts nothing. A checkpoint needs the image it was written with: one
	// of another name is looked for in the same directory.
	Guest string
	// Init is the guest's first program; empty means microvm.DefaultInit.
	Init string
	// Program is QEMU; empty: qemu-system-x86_64 in PATH.
	Program string
	// Firmware is the directory of qboot.rom and pvh.bin; empty: where QEMU's
	// packages put them.
	Firmware string
	// Accelerator is KVM when empty.
	Accelerator Accelerator
	// Boot makes ready what guests boot; see microvm.Prepare. It must be set.
	Boot func(context.Context) (*microvm.Boot, error)
	// Exe is the program whose main calls Main; empty means this one.
	Exe string
	// CgroupParent is the cgroup below which machines get theirs; empty means /hearth.
	CgroupParent string
	// UIDBase is the first host user; 0 means 4000000000, far above the ranges
	// of other drivers. Drivers with different Roots on one host must not share users.
	UIDBase uint32
	// KeepTemplates is how long a template's memory is kept when no machine uses it
	// any more; 0 means ten minutes. All of these have an eighth of the host's
	// memory; beyond that those go first that were not used for longest.
	KeepTemplates time.Duration
	// Log takes what happens to machines.
	Log *slog.Logger
}

// Driver starts QEMU machines. Make one with New.
type Driver struct {
	cfg       Config
	users     *hostproc.Users
	templates *templates
	host      *host
}

const (
	usersDir = "uids"
	jailDir  = "jail"
)

// New checks cfg and returns a driver. It neither reads nor writes the host.
func New(cfg Config) (*Driver, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Init == "" {
		cfg.Init = microvm.DefaultInit
	}
	if cfg.Accelerator == "" {
		cfg.Accelerator = KVM
	}
	if cfg.Exe == "" {
		cfg.Exe = "/proc/self/exe"
	}
	if cfg.CgroupParent == "" {
		cfg.CgroupParent = "/hearth"
	}
	if cfg.UIDBase == 0 {
		cfg.UIDBase = 4_000_000_000
	}
	if cfg.KeepTemplates == 0 {
		cfg.KeepTemplates = 10 * time.Minute
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	return &Driver{
		cfg:       cfg,
		users:     hostproc.NewUsers(filepath.Join(cfg.Root, usersDir), cfg.UIDBase, 1),
		templates: newTemplates(cfg.KeepTemplates, idleRoom),
		host:      &host{cfg: cfg},
	}, nil
}

func (c Config) check() error {
	for _, p := range []struct{ name, path string }{{"guest image", c.Guest}, {"firmware directory", c.Firmware}, {"program", c.Program}} {
		if p.path != "" && !filepath.IsAbs(p.path) {
			return hearth.Errorf(hearth.InvalidArgument, "%s %q is not absolute", p.name, p.path)
		}
	}
	switch {
	case !filepath.IsAbs(c.Root) || filepath.Clean(c.Root) == "/":
		return hearth.Errorf(hearth.InvalidArgument, "qemu root %q is not an absolute directory", c.Root)
	case !slices.Contains([]Accelerator{KVM, TCG, KVMOrTCG}, c.Accelerator):
		return hearth.Errorf(hearth.InvalidArgument, "accelerator %q is not %q, %q or %q", c.Accelerator, KVM, TCG, KVMOrTCG)
	case !strings.HasPrefix(c.Init, "/") || strings.ContainsAny(c.Init, " \t\n\""):
		return hearth.Errorf(hearth.InvalidArgument, "init %q is not an absolute path without blanks", c.Init)
	case c.Boot == nil:
		return hearth.Errorf(hearth.InvalidArgument, "there is no kernel for guests")
	case !strings.HasPrefix(c.CgroupParent, "/") || filepath.Clean(c.CgroupParent) != c.CgroupParent || c.CgroupParent == "/":
		return hearth.Errorf(hearth.InvalidArgument, "cgroup parent %q is not a clean path below /", c.CgroupParent)
	}
	return hostproc.CheckUsers(c.UIDBase, 1)
}

// Main is the driver's half of the program. The first thing a main function does
// is to call it with os.Args: it reports false in a process that is not to become
// a QEMU, and does not return in one that is.
func Main(args []string) bool { return jail.Main(args) }

// Name is "qemu".
func (d *Driver) Name() string { return Name }

var _ driver.Driver = (*Driver)(nil)
