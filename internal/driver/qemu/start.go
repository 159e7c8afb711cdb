package qemu

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"hearth/internal/driver"
	"hearth/internal/driver/hostproc"
	"hearth/internal/driver/microvm"
	"hearth/internal/driver/qemu/jail"
	"hearth/internal/driver/qemu/qmp"
	"hearth/internal/driver/qemu/tap"
	"hearth/internal/hearth"
)

const (
	diskFile    = "disk.img"
	guestDevice = "eth0"
	cleanupTime = 10 * time.Second
	// answerTime is what a guest may take until its first process answers, where
	// the caller is more patient. An emulated one takes 3 to 10 s, and many times as
	// long on a host that is busy.
	answerTime = 5 * time.Minute
	settleTime = 30 * time.Second // for a guest to write out its files
	pollTime   = 2 * time.Millisecond
)

// Names of the sockets in a machine's directory.
const (
	qmpSocket     = "qmp"
	guestSocket   = "guest"
	consoleSocket = "console"
)

// Start boots or restores a machine, and returns when its first process knows
// its settings: one that cannot be told the time, its address and fresh entropy
// must not run.
func (d *Driver) Start(ctx context.Context, spec driver.Spec) (driver.Machine, error) {
	if err := d.checkSpec(spec); err != nil {
		return nil, err
	}
	from, err := d.origin(ctx, spec)
	if err != nil {
		return nil, err
	}
	user, err := d.users.Take(spec.ID)
	if err != nil {
		if hearth.KindOf(err) != hearth.Internal {
			return nil, err
		}
		return nil, hearth.Wrap(hearth.Internal, err, "no user ID can be reserved")
	}
	from.user = int(user)
	m, err := d.start(ctx, spec, from)
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		if err := d.clear(clean, spec.ID, spec.Dir, hostproc.KeepDir); err != nil {
			d.cfg.Log.Error("machine that did not start left something behind", "id", spec.ID, "error", err)
		}
		return nil, err
	}
	return m, nil
}

// origin is what a machine is made of, beyond its spec.
type origin struct {
	facts  *facts
	guest  string // guest image
	user   int
	chain  *chain // what it is restored from; nil boots
	disk   string // directory of a checkpoint whose disk it has; empty: an empty one
	memory int64  // bytes
}

func (d *Driver) checkSpec(spec driver.Spec) error {
	if err := spec.Check(); err != nil {
		return err
	}
	if n := len(spec.Layers); n < 1 || n > maxLayers {
		return hearth.Errorf(hearth.InvalidArgument, "layers: the qemu driver takes 1 to %d, got %d", maxLayers, n)
	}
	for _, l := range spec.Layers {
		if _, err := driver.LayerID(l); err != nil {
			return hearth.Wrap(hearth.InvalidArgument, err, "layer %s cannot be used", filepath.Base(l))
		}
	}
	switch n := spec.Net; {
	case n.NetNS != "" && n.Tap == "":
		return hearth.Errorf(hearth.InvalidArgument, "net: there is a namespace but no tap in it")
	case n.Tap != "" && (n.NetNS == "" || !n.Guest.IsValid()):
		return hearth.Errorf(hearth.InvalidArgument, "net: there is a tap but no namespace or no guest address")
	case n.Tap != "" && len(n.MAC) != 6:
		return hearth.Errorf(hearth.InvalidArgument, "net: hardware address %q has not 6 bytes", n.MAC)
	case spec.Resources.VCPUs > 64:
		return hearth.Errorf(hearth.InvalidArgument, "vcpus %d is more than the 64 of the qemu driver", spec.Resources.VCPUs)
	}
	return nil
}

// start does what can fail half way; Start cleans up.
func (d *Driver) start(ctx context.Context, spec driver.Spec, from origin) (started *machine, err error) {
	staging := filepath.Join(d.cfg.Root, jailDir)
	if err := os.MkdirAll(staging, 0o711); err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "qemu root cannot be made")
	}
	if err := d.makeDisk(ctx, spec, from); err != nil {
		return nil, err
	}
	bag := &jail.Baggage{}
	defer bag.Close()
	plan, err := d.pack(spec, from, bag)
	if err != nil {
		return nil, hearth.Wrap(hearth.KindOf(err), err, "machine %s cannot be prepared", spec.ID)
	}
	if from.chain != nil {
		id := from.chain.template.ID
		t, err := d.templates.acquire(ctx, id, func(ctx context.Context) (*os.File, error) {
			return fillTemplate(ctx, from.chain.template.Dir, from.memory)
		})
		if err != nil {
			return nil, hearth.Wrap(hearth.KindOf(err), err, "the checkpoint's memory cannot be read")
		}
		defer func() {
			if started != nil {
				d.templates.lend(id, t, started.done)
			} else {
				d.templates.release(id, t)
			}
		}()
		file, err := dup(t.file)
		if err != nil {
			return nil, hearth.Wrap(hearth.Internal, err, "machine %s cannot be prepared", spec.ID)
		}
		plan.Template = bag.Add(file)
	}
	c, err := d.launchPlan(ctx, spec, from, plan, bag)
	if err != nil {
		return nil, err
	}
	return d.bringUp(ctx, spec, from, c)
}

// makeDisk makes the writable disk, empty or as it was.
func (d *Driver) makeDisk(ctx context.Context, spec driver.Spec, from origin) error {
	path := filepath.Join(spec.Dir, diskFile)
	if from.disk == "" {
		return microvm.MakeDisk(ctx, microvm.DiskSpec{Path: path, MiB: spec.Resources.DiskMiB})
	}
	_, err := microvm.CopySparse(ctx, filepath.Join(from.disk, diskFile), path, microvm.Cached)
	return err
}

// pack opens what QEMU is to have, and says what it is.
func (d *Driver) pack(spec driver.Spec, from origin, bag *jail.Baggage) (blueprint, error) {
	f := from.facts
	b := blueprint{
		ID: spec.ID, Program: f.Program, Firmware: f.Firmware, Accelerator: f.accel, Resources: spec.Resources,
		Kernel: f.boot.Kernel, Initrd: f.boot.Initrd, Init: d.cfg.Init, TSC: f.tsc,
	}
	var err error
	for _, s := range []struct {
		fd   *int
		name string
	}{{&b.QMP, qmpSocket}, {&b.Guest, guestSocket}, {&b.Console, consoleSocket}} {
		if *s.fd, err = bag.Listen(spec.Dir, s.name); err != nil {
			return b, err
		}
	}
	for _, path := range spec.Layers {
		fd, err := bag.Open(path, os.O_RDONLY)
		if err != nil {
			return b, err
		}
		b.Layers = append(b.Layers, fd)
	}
	if from.guest != "" {
		if b.GuestImage, err = bag.Open(from.guest, os.O_RDONLY); err != nil {
			return b, err
		}
	}
	if b.Disk, err = bag.Open(filepath.Join(spec.Dir, diskFile), os.O_RDWR); err != nil {
		return b, err
	}
	if spec.Net.Tap != "" {
		device, err := tap.Open(spec.Net, microvm.RatesOf(spec.Resources).NetBytes)
		if err != nil {
			return b, err
		}
		b.Tap, b.MAC = bag.Add(device), spec.Net.MAC.String()
	}
	return b, nil
}

func dup(f *os.File) (*os.File, error) {
	// Of its own, so that reading offsets and flags are nobody else's.
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDONLY, 0)
}

// launchPlan makes the group and the process.
func (d *Driver) launchPlan(ctx context.Context, spec driver.Spec, from origin, plan blueprint, bag *jail.Baggage) (*jail.Child, error) {
	disk, err := os.Stat(filepath.Join(spec.Dir, diskFile))
	if err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "machine %s has no disk", spec.ID)
	}
	group := d.cgroup(spec.ID)
	if err := group.Make(hostproc.Limits{
		Memory: memoryLimit(spec.Resources, from.facts.accel, from.chain != nil),
		CPUs:   spec.Resources.VCPUs, PIDs: threadLimit(spec.Resources),
	}); err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "machine %s: its control group cannot be made", spec.ID)
	}
	f := from.facts
	req := jail.Request{
		Staging: filepath.Join(d.cfg.Root, jailDir), Files: f.Files, User: from.user,
		Program: f.Program, Args: plan.argv(), Env: []string{"LC_ALL=C", "LD_LIBRARY_PATH=" + strings.Join(f.Dirs, ":")},
		FileSize: max(disk.Size(), maxState), OpenMax: 256, Threads: threadLimit(spec.Resources),
	}
	if f.accel == KVM {
		req.Device = kvmDevice
	}
	if plan.Template == 0 {
		req.Files = slices.Concat(f.Files, []string{plan.Kernel, plan.Initrd})
	}
	return jail.Start{Exe: d.cfg.Exe, ID: spec.ID, Request: req, Baggage: bag, Group: group}.Run(ctx)
}

// bringUp makes a machine of a QEMU that has just begun, and lets its guest run.
func (d *Driver) bringUp(ctx context.Context, spec driver.Spec, from origin, c *jail.Child) (*machine, error) {
	failed := func(err error) error {
		select {
		case <-c.Ended():
			return hearth.Wrap(hearth.Internal, fmt.Errorf("%w%s", err, c.Said()), "machine %s ended as it started", spec.ID)
		default:
		}
		return err
	}
	state := machineState{
		Key: from.facts.key.String(), Accelerator: from.facts.accel, Layers: spec.Layers, Guest: from.guest, Resources: spec.Resources, Net: spec.Net, Hostname: spec.Hostname,
	}
	if from.chain != nil {
		state.Template = &from.chain.template
	}
	var err error
	if state.Process, err = hostproc.Identify(c.PID); err != nil {
		return nil, failed(hearth.Wrap(hearth.Internal, err, "machine %s cannot be found", spec.ID))
	}
	m, err := d.adopt(spec.ID, spec.Dir, state, c)
	if err != nil {
		return nil, failed(err)
	}
	if err := m.begin(ctx, from); err != nil {
		m.closing.Store(true)
		m.kill()
		<-m.done
		return nil, d.explain(ctx, m, err)
	}
	return m, nil
}

// explain adds what QEMU and the guest's console say to the error of a start.
func (d *Driver) explain(ctx context.Context, m *machine, err error) error {
	if said := m.said.Load(); said != nil {
		err = fmt.Errorf("%w; the guest says %q, exit %d", err, said.Reason, said.Code)
	}
	if tail := strings.TrimSpace(m.link.console.Tail(600)); tail != "" {
		err = fmt.Errorf("%w%s; the end of its console: %q", err, panicLine(m.link.console.Tail(consoleTail)), tail)
	}
	kind := hearth.KindOf(err)
	if ctx.Err() != nil {
		kind = hearth.DeadlineExceeded
	} else if kind == hearth.NotFound {
		kind = hearth.Internal
	}
	return hearth.Wrap(kind, fmt.Errorf("%w%s", err, m.child.Said()), "machine %s did not start", m.id)
}

// begin loads what is to be restored, lets the guest run and tells it its settings.
func (m *machine) begin(ctx context.Context, from origin) error {
	ctx, cancel := context.WithTimeoutCause(ctx, answerTime, fmt.Errorf("no answer in %s", answerTime))
	defer cancel()
	if err := m.link.own(ctx); err != nil {
		return err
	}
	return m.control(ctx, "start", func(ctx context.Context, q *qmp.Conn) error {
		h := boots
		if from.chain != nil {
			h = restored
			if err := m.load(ctx, q, from); err != nil {
				return err
			}
		}
		return m.resume(ctx, q, h)
	})
}
