// Package firecracker runs machines as Firecracker microVMs: a small virtual
// machine monitor on KVM, started by its own jailer.
//
// A machine is one monitor process in a jail: a chroot with nothing in it but
// what the machine needs, users that no other process of the host has, a control
// group, the network namespace of its slot, a PID namespace, and the monitor's
// own seccomp filters. The jail lies in the machine's directory:
//
//	Dir/firecracker/ID/root/        the chroot, owned by the machine's user
//	  kernel initrd layer0.. guest  hard links, or bind mounts from another file system
//	  disk                          the writable disk
//	  state memory                  of the snapshot it is restored from, links
//	  api vsock pager               sockets
//	Dir/pager/                      empty, the pager's chroot
//	Dir/written                     memory written since the restore, after a checkpoint
//	Dir/working-set                 what the pager records
//
// Whatever is in the chroot belongs to a process that a guest may have taken
// over: it is opened without following links, and must be a regular file.
//
// Host and guest talk by the guest channel over vsock, never by the guest's
// network. Memory of a restored machine is mapped from the checkpoint's file,
// whose pages all clones share; a checkpoint that lies over others is served by
// a pager process instead (package pager), which is watched and dies with it.
//
// Files that machines share (layers, kernel, checkpoints) are made readable for
// all: the directories above them keep everybody else out, and the jail holds
// only those that the machine may see.
//
// On the host: Config.Root/users holds one symbolic link per range of users in
// use, as package hostproc describes; Config.Root/working-sets holds the working
// set of a checkpoint under the checkpoint's ID.
package firecracker

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"

	"hearth/internal/driver/firecracker/key"
	"hearth/internal/driver/hostproc"
	"hearth/internal/driver/microvm"
	"hearth/internal/driver/microvm/kvmprobe"
	"hearth/internal/hearth"
)

// Name is what Driver.Name returns and checkpoints carry.
const Name = key.Name

// usersPerMachine are a range of host users: the first is the monitor's, the
// second its pager's.
const usersPerMachine = 4

// Config says what a driver runs and where it keeps its state.
type Config struct {
	// Root is where users in use and working sets are recorded; absolute, made
	// when missing, on a file system that a reboot empties.
	Root string
	// Firecracker and Jailer are the programs; empty: as PATH has them.
	Firecracker, Jailer string
	// Boot makes the guest's kernel and initramfs ready. It is called by Probe
	// and by the first Start, and again after an error.
	Boot func(context.Context) (*microvm.Boot, error)
	// Guest is an EROFS image mounted read-only at /.guest in every machine;
	// empty: none. A checkpoint needs the image it was written with: one of
	// another name is looked for in the same directory.
	Guest string
	// Init is the guest's first program and its arguments; empty: microvm.DefaultInit.
	Init []string
	// Env is its environment; empty: the initramfs's own.
	Env []string
	// CPUTemplate is a file with a custom CPU template, for fleets of several
	// processors; empty: none. It is part of a checkpoint's key.
	CPUTemplate string
	// CheckKVM says why this host's KVM cannot run machines; nil: package kvmprobe
	// looks, and runs a few instructions.
	CheckKVM func(context.Context) error
	// Exe is the program whose main calls Main, for pagers; empty: this one.
	Exe string
	// CgroupParent is the cgroup below which machines get theirs; empty: /hearth.
	CgroupParent string
	// UIDBase is the first host user of the first range; 0: 3221225472. Ranges
	// of other drivers on the host must not reach it.
	UIDBase uint32
	// Log takes what happens to machines.
	Log *slog.Logger
}

// Driver starts Firecracker machines. Make one with New.
type Driver struct {
	cfg   Config
	users *hostproc.Users

	mu   sync.Mutex
	host *host // what Probe found, once it has found everything
}

// New checks cfg and returns a driver. It neither reads nor writes the host.
func New(cfg Config) (*Driver, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.CheckKVM == nil {
		cfg.CheckKVM = func(ctx context.Context) error { return kvmprobe.Check(ctx, kvmprobe.Device) }
	}
	if cfg.Exe == "" {
		cfg.Exe = "/proc/self/exe"
	}
	if cfg.CgroupParent == "" {
		cfg.CgroupParent = "/hearth"
	}
	if cfg.UIDBase == 0 {
		cfg.UIDBase = 0xC000_0000
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	return &Driver{cfg: cfg, users: hostproc.NewUsers(filepath.Join(cfg.Root, "users"), cfg.UIDBase, usersPerMachine)}, nil
}

func (c Config) check() error {
	switch {
	case !filepath.IsAbs(c.Root) || filepath.Clean(c.Root) == "/":
		return hearth.Errorf(hearth.InvalidArgument, "firecracker root %q is not an absolute directory", c.Root)
	case c.Boot == nil:
		return hearth.Errorf(hearth.InvalidArgument, "firecracker: no kernel is configured")
	case c.Guest != "" && !filepath.IsAbs(c.Guest):
		return hearth.Errorf(hearth.InvalidArgument, "guest image %q is not absolute", c.Guest)
	case c.CPUTemplate != "" && !filepath.IsAbs(c.CPUTemplate):
		return hearth.Errorf(hearth.InvalidArgument, "CPU template %q is not absolute", c.CPUTemplate)
	case !strings.HasPrefix(c.CgroupParent, "/") || filepath.Clean(c.CgroupParent) != c.CgroupParent || c.CgroupParent == "/":
		return hearth.Errorf(hearth.InvalidArgument, "cgroup parent %q is not a clean path below /", c.CgroupParent)
	}
	return hostproc.CheckUsers(c.UIDBase, usersPerMachine)
}

// Name is "firecracker".
func (d *Driver) Name() string { return Name }

func (d *Driver) cgroup(id string) hostproc.Cgroup {
	return hostproc.CgroupAt(filepath.Join(d.cfg.CgroupParent, id))
}
