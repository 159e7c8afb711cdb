package qemu

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"

	"hearth/internal/driver"
	"hearth/internal/driver/hostproc"
	"hearth/internal/driver/microvm"
	"hearth/internal/driver/microvm/kvmprobe"
	"hearth/internal/driver/qemu/install"
	"hearth/internal/hearth"
)

const (
	kvmDevice     = kvmprobe.Device
	layoutVersion = 2 // of machines and checkpoints; counts changes of the devices, too
)

// host is what this host has for machines, found once.
type host struct {
	cfg  Config
	mu   sync.Mutex
	kept *facts
}

// facts are what machines are made of here.
type facts struct {
	*install.Installation
	accel Accelerator // KVM or TCG
	boot  *microvm.Boot
	tsc   int
	key   key
}

// find returns the facts. A failure is not kept: what is missing may be installed.
func (h *host) find(ctx context.Context) (*facts, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.kept != nil {
		return h.kept, nil
	}
	f, err := h.look(ctx)
	if err != nil {
		return nil, err
	}
	h.kept = f
	return f, nil
}

// accelerator decides what executes guests. That KVM's device is there says
// little, so a virtual processor is tried.
func (h *host) accelerator(ctx context.Context) (Accelerator, error) {
	if h.cfg.Accelerator == TCG {
		return TCG, nil
	}
	err := kvmprobe.Check(ctx, kvmDevice)
	switch {
	case err == nil:
		return KVM, nil
	case h.cfg.Accelerator == KVMOrTCG && ctx.Err() == nil:
		return TCG, nil
	}
	return "", err
}

func (h *host) look(ctx context.Context) (*facts, error) {
	f := &facts{}
	var err error
	if f.Installation, err = install.Find(h.cfg.Program, h.cfg.Firmware); err != nil {
		return nil, err
	}
	if f.accel, err = h.accelerator(ctx); err != nil {
		return nil, err
	}
	emulation := install.Hardware
	if f.accel == TCG {
		emulation = install.Emulated
	}
	if err := f.Inspect(ctx, emulation); err != nil {
		return nil, err
	}
	if f.boot, err = h.cfg.Boot(ctx); err != nil {
		return nil, err
	}
	if !f.boot.PVH {
		return nil, hearth.Errorf(hearth.FailedPrecondition,
			"kernel %s has no PVH entry, which QEMU's microvm needs: build it with CONFIG_PVH, or leave node.vm.kernel empty", f.boot.Release)
	}
	for _, path := range []string{f.boot.Kernel, f.boot.Initrd} {
		if st, err := os.Stat(path); err != nil || st.Mode()&0o004 == 0 {
			return nil, hearth.Wrap(hearth.FailedPrecondition, err, "%s must be readable by every user: chmod o+r", path)
		}
	}
	cpu, features, err := hostproc.Processor()
	if err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "processor cannot be identified")
	}
	f.key = key{QEMU: f.Version.String(), Machine: "microvm", Accelerator: string(f.accel),
		CPU: "host-" + cpu + "-" + features, Boot: f.boot.Digest[:min(16, len(f.boot.Digest))], Layout: layoutVersion}
	if f.accel == TCG {
		if f.tsc, err = microvm.HostTSC(); err != nil {
			return nil, err
		}
		// An emulated processor is QEMU's, but counts the time as the host's does.
		f.key.CPU = fmt.Sprintf("max-%dMHz", (f.tsc+500)/1000)
	}
	return f, nil
}

// key names everything that a checkpoint depends on.
type key struct {
	QEMU        string
	Machine     string
	Accelerator string
	CPU         string
	Boot        string // kernel and initramfs
	Layout      int
}

// String is what Capabilities.Key says.
func (k key) String() string {
	return fmt.Sprintf("qemu=%s machine=%s accel=%s cpu=%s boot=%s layout=%d", k.QEMU, k.Machine, k.Accelerator, k.CPU, k.Boot, k.Layout)
}

// difference says in which parts another key differs, for people.
func (k key) difference(other string) string {
	theirs := map[string]string{}
	for _, part := range strings.Fields(other) {
		name, value, _ := strings.Cut(part, "=")
		theirs[name] = value
	}
	names := map[string]string{"qemu": "QEMU", "machine": "machine type", "accel": "accelerator", "cpu": "processor", "boot": "guest kernel and initramfs", "layout": "layout of the machine"}
	var list []string
	for _, part := range strings.Fields(k.String()) {
		name, value, _ := strings.Cut(part, "=")
		if theirs[name] != value {
			list = append(list, fmt.Sprintf("%s: it needs %q, here is %q", names[name], theirs[name], value))
		}
	}
	if len(list) == 0 {
		return fmt.Sprintf("it needs %q, here is %q", other, k)
	}
	return strings.Join(list, "; ")
}

// Probe checks what a start would trip over. The first time it may fetch a
// kernel for the guests.
func (d *Driver) Probe(ctx context.Context) (driver.Capabilities, error) {
	missing := func(err error) (driver.Capabilities, error) {
		return driver.Capabilities{}, hearth.Errorf(hearth.FailedPrecondition, "qemu: %v", err)
	}
	if err := hostproc.Check(); err != nil {
		return missing(err)
	}
	if d.cfg.Guest != "" {
		if _, err := driver.LayerID(d.cfg.Guest); err != nil {
			return missing(fmt.Errorf("guest image %s cannot be used: %w", d.cfg.Guest, err))
		}
	}
	f, err := d.host.find(ctx)
	if err != nil {
		return missing(err)
	}
	isolation := hearth.HardwareVM
	if f.accel == TCG {
		isolation = hearth.EmulatedVM
		d.cfg.Log.Warn("qemu: guests are emulated in software, 20 to 80 times slower than this host's processor")
	}
	return driver.Capabilities{Isolation: isolation, MemorySnapshot: true, FileSnapshot: true, SharedMemory: true, Tap: true, Key: f.key.String()}, nil
}
