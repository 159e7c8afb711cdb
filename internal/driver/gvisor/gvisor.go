// Package gvisor runs machines in gVisor sandboxes. gVisor is compiled into this
// binary: a sandbox is a program that is embedded in it, or the binary itself, executed
// again, so nothing has to be installed, and what was built from other sources
// than the server is not executed.
//
// A machine is one sandbox process with its children, in a cgroup of its own, in
// a user namespace whose 65536 host users no other machine has, in the network
// namespace of its slot. Its root file system is a read-only EROFS image that
// all machines of a build share, below an overlay kept in memory. No file of the
// host is reachable from it, so there is no file server process beside it.
//
// Memory: the overlay and tmpfs pages are host memory. A machine's cgroup limit
// is therefore Resources.MemoryMiB + Resources.DiskMiB + sentryMiB, while the
// guest is told MemoryMiB. Three quarters of DiskMiB are the root overlay's, a
// quarter is /tmp's; writes beyond fail with ENOSPC inside the guest.
//
// Memory of a checkpoint that its machines only read is not theirs: it is page
// cache, one copy for all of them (see layers.go), which the host reclaims when it
// needs room and reads again. It is no part of Usage.Memory. The host charges it to
// the cgroup of whoever touched it first, where it is reclaimed before the limit
// hurts.
//
// On disk: a machine's bundle is in Spec.Dir; its control socket is
// in Config.Root, named by ID; Config.Root/uids holds one symbolic link per range
// of users in use, named by its number and pointing at the machine's ID;
// Config.Root/hot holds what was learned of checkpoints (hot.go).
package gvisor

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/flag"

	"hearth/internal/driver/gvisor/launcher"
	"hearth/internal/driver/gvisor/program"
	"hearth/internal/driver/hostproc"
	"hearth/internal/hearth"
)

// Name is what Driver.Name returns and checkpoints carry.
const Name = "gvisor"

const (
	usersDir      = "uids"
	sidecarPolicy = "LEGACY_DEPRECATED_SLOW_EMBEDDED_FALLBACK" // boot from this binary, not from files beside it
	maxRoot       = 56                                         // socket path limit 107, less "/runsc-" + ID + ".sock"
	rangeSize     = 65536                                      // host users per machine
)

// Config says where a driver keeps its state and what it runs.
type Config struct {
	// Root holds sockets of running machines; absolute, at most 56
	// bytes, on a file system that a reboot empties. It is made when missing.
	Root string
	// Guest is an EROFS image mounted read-only at /.guest in every machine;
	// empty mounts nothing. A checkpoint needs the image it was written with: one
	// of another name is looked for in the same directory, so an upgrade that
	// keeps the old image keeps old checkpoints.
	Guest string
	// Init is the guest's first process; empty means /.guest/hearth-guest.
	Init []string
	// Env is its environment; empty means a PATH.
	Env []string
	// Exe is the program whose main calls Main; empty means what Program returns.
	Exe string
	// Program returns a file whose main calls Main, built from the same sources; the driver
	// keeps it open and has it executed by its name in /proc. Where that cannot be, or it
	// is nil, this very program is what is executed.
	Program func() (*os.File, error) `json:"-"`
	// CgroupParent is the cgroup below which machines get theirs; empty means /hearth.
	CgroupParent string
	// Lessons is a directory for what is learned of checkpoints (at most 32 MiB); it
	// should outlive a reboot, as they do. Empty means one in Root, which Purge removes.
	Lessons string
	// UIDBase is the first host user of the first range; 0 means 1000000. Drivers
	// with different Roots on one host must not have overlapping ranges.
	UIDBase uint32
	// Unshared restores machines as plain gVisor does, with their memory their
	// own, and writes checkpoints that refer to no other.
	Unshared bool
	// Log takes what happens to machines, and gVisor's own messages at Debug.
	Log *slog.Logger
}

// Driver starts gVisor machines. Make one with New.
type Driver struct {
	cfg  Config
	conf *config.Config // of the control calls
	uids *hostproc.Users
	key  func() (string, error) // checkpointKey, read once

	lessons lessons

	launchers *launcher.Pool
}

// New checks cfg and returns a driver. It neither reads nor writes the host.
func New(cfg Config) (*Driver, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if len(cfg.Init) == 0 {
		cfg.Init = []string{"/.guest/hearth-guest"}
	}
	if len(cfg.Env) == 0 {
		cfg.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	}
	if cfg.CgroupParent == "" {
		cfg.CgroupParent = "/hearth"
	}
	if cfg.UIDBase == 0 {
		cfg.UIDBase = 1_000_000
	}
	if cfg.Lessons == "" {
		cfg.Lessons = filepath.Join(cfg.Root, ownLessons)
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	conf, err := runtimeConfig(cfg.flags())
	if err != nil {
		return nil, err
	}
	log.SetTarget(ourLog{cfg.Log})
	if !sharing {
		cfg.Program = nil // it has the patches
	}
	return &Driver{
		cfg: cfg, conf: conf, key: sync.OnceValues(func() (string, error) { return checkpointKey(pageFormat) }),
		lessons: lessons{dir: cfg.Lessons}, launchers: launcher.New(program.New(cfg.Exe, cfg.Program, cfg.Log).Path),
		uids: hostproc.NewUsers(filepath.Join(cfg.Root, usersDir), cfg.UIDBase, rangeSize),
	}, nil
}

func (c Config) check() error {
	switch {
	case !filepath.IsAbs(c.Root) || filepath.Clean(c.Root) == "/":
		return hearth.Errorf(hearth.InvalidArgument, "gvisor root %q is not an absolute directory", c.Root)
	case len(c.Root) > maxRoot:
		return hearth.Errorf(hearth.InvalidArgument, "gvisor root %q is longer than %d bytes", c.Root, maxRoot)
	case !filepath.IsAbs(c.Lessons):
		return hearth.Errorf(hearth.InvalidArgument, "gvisor lessons %q is not an absolute directory", c.Lessons)
	case c.Guest != "" && !filepath.IsAbs(c.Guest):
		return hearth.Errorf(hearth.InvalidArgument, "guest image %q is not absolute", c.Guest)
	case !strings.HasPrefix(c.CgroupParent, "/") || filepath.Clean(c.CgroupParent) != c.CgroupParent || c.CgroupParent == "/":
		return hearth.Errorf(hearth.InvalidArgument, "cgroup parent %q is not a clean path below /", c.CgroupParent)
	}
	return hostproc.CheckUsers(c.UIDBase, rangeSize)
}

// share says whether machines share the pages of their checkpoints.
func (c Config) share() bool { return sharing && !c.Unshared }

// flags are runsc's, for the launcher and, through it, the sandbox.
func (c Config) flags() []string {
	return []string{
		"--root=" + c.Root,
		"--platform=systrap",
		"--network=sandbox",
		"--overlay2=none", // the root's overlay is asked for by annotation
		"--directfs=true", // the sandbox runs in the machine's user namespace
		"--allow-suid=true",
		"--allow-rootfs-tar-annotation=true", // ours alone: a machine that boots with files of a checkpoint
		"--host-settings=ignore",
		"--restore-spec-validation=warning", // checkMatch is ours
		"--sidecar-usage-policy=" + sidecarPolicy,
	}
}

// withoutNetwork replaces the flag for a machine that has no slot.
func withoutNetwork(flags []string) []string {
	flags = slices.Clone(flags)
	for i, f := range flags {
		if strings.HasPrefix(f, "--network=") {
			flags[i] = "--network=none"
		}
	}
	return flags
}

// runtimeConfig parses flags into gVisor's configuration.
func runtimeConfig(flags []string) (*config.Config, error) {
	set := flag.NewFlagSet("runsc", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	config.RegisterFlags(set)
	if err := set.Parse(flags); err != nil {
		return nil, fmt.Errorf("gVisor does not know its flags: %w", err)
	}
	return config.NewFromFlags(set)
}

// ourLog takes the warnings of gVisor's own packages in this process. It is given
// to them whole, as their level cannot be set while another driver is made.
type ourLog struct{ log *slog.Logger }

func (l ourLog) Emit(_ int, level log.Level, _ time.Time, format string, args ...any) {
	if level <= log.Warning {
		l.log.Debug("gvisor: " + strings.TrimSpace(fmt.Sprintf(format, args...)))
	}
}
