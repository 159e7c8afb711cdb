package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"hearth/internal/driver"
	"hearth/internal/driver/firecracker/jail"
	"hearth/internal/driver/firecracker/vmm"
	"hearth/internal/driver/hostproc"
	"hearth/internal/driver/microvm"
	"hearth/internal/hearth"
)

const (
	cleanupTime = 10 * time.Second
	apiTime     = 10 * time.Second // for a monitor to open its socket
	apiRetry    = 2 * time.Millisecond
	guestTime   = 5 * time.Minute  // for a guest to answer after boot or restore, where the caller is more patient
	settleTime  = 30 * time.Second // for a guest to write out its files
)

// origin is what a machine is made of, beyond its spec.
type origin struct {
	host     *host
	guest    string // guest image, absolute; empty: none
	firstUID uint32
	from     *restoration // nil: it begins with nothing
}

// Start boots or restores a machine. It returns when the guest has answered and
// knows clock, entropy and identity.
func (d *Driver) Start(ctx context.Context, spec driver.Spec) (driver.Machine, error) {
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	h, err := d.probe(ctx)
	if err != nil {
		return nil, err
	}
	o := origin{host: h, guest: d.cfg.Guest}
	if spec.From != nil {
		if o.from, err = d.examine(h, spec); err != nil {
			return nil, err
		}
		o.guest = o.from.guest
	}
	if o.firstUID, err = d.users.Take(spec.ID); err != nil {
		if hearth.KindOf(err) != hearth.Internal {
			return nil, err
		}
		return nil, hearth.Wrap(hearth.Internal, err, "no users can be reserved")
	}
	m, err := d.start(ctx, spec, o)
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

func checkSpec(spec driver.Spec) error {
	if err := spec.Check(); err != nil {
		return err
	}
	switch {
	case len(spec.Layers) == 0 || len(spec.Layers) > 16:
		return hearth.Errorf(hearth.InvalidArgument, "layers: the firecracker driver takes 1 to 16, got %d", len(spec.Layers))
	case spec.Resources.VCPUs > maxVCPUs:
		return hearth.Errorf(hearth.InvalidArgument, "vcpus %d is more than the %d that Firecracker has", spec.Resources.VCPUs, maxVCPUs)
	case spec.Net.NetNS != "" && (spec.Net.Tap == "" || !spec.Net.Guest.IsValid() || len(spec.Net.MAC) != 6):
		return hearth.Errorf(hearth.InvalidArgument, "net: there is a namespace but no tap, guest address or hardware address")
	}
	return nil
}

func (d *Driver) start(ctx context.Context, spec driver.Spec, o origin) (*machine, error) {
	j := jail.Jail{Dir: spec.Dir, ID: spec.ID, Exe: filepath.Base(o.host.firecracker), UID: int(o.firstUID)}
	if err := d.furnish(ctx, spec, o, j); err != nil {
		return nil, err
	}
	con, err := newConsole()
	if err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "console cannot be made")
	}
	process, err := d.launch(ctx, spec, o, j, con)
	if err != nil {
		con.close()
		return nil, err
	}
	m, err := d.adopt(spec.ID, spec.Dir, stateOf(process, spec, o), con)
	if err != nil {
		con.close()
		return nil, err
	}
	if err := m.begin(ctx, spec, o); err != nil {
		m.abandon()
		return nil, err
	}
	return m, nil
}

// begin lets the guest run, and waits for its answer.
func (m *machine) begin(ctx context.Context, spec driver.Spec, o origin) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer m.cancelAtEnd(cancel)()
	var err error
	if o.from.boots() {
		err = m.boot(ctx, spec, o)
	} else {
		err = m.load(ctx, spec, o)
	}
	if err != nil {
		return m.startError(ctx, err)
	}
	waiting, done := context.WithTimeout(ctx, guestTime)
	defer done()
	if _, err := m.connected(waiting); err != nil {
		return m.startError(ctx, err)
	}
	return nil
}

// startError says why a machine did not start.
func (m *machine) startError(ctx context.Context, err error) error {
	if m.over(err) {
		return hearth.Wrap(hearth.Unavailable, fmt.Errorf("%w%s", err, m.con.tail()), "machine %s ended as it started: %s", m.id, m.exit.Reason)
	}
	if ctx.Err() != nil {
		return hearth.Wrap(hearth.DeadlineExceeded, errors.Join(context.Cause(ctx), err), "machine %s did not start in time", m.id)
	}
	if hearth.KindOf(err) != hearth.Internal {
		return err
	}
	return hearth.Wrap(hearth.Internal, fmt.Errorf("%w%s", err, m.con.tail()), "machine %s cannot be started", m.id)
}

// furnish puts into the jail what the machine needs.
func (d *Driver) furnish(ctx context.Context, spec driver.Spec, o origin, j jail.Jail) error {
	if err := j.Prepare(); err != nil {
		return hearth.Wrap(hearth.FailedPrecondition, err, "the machine's directory cannot hold a jail")
	}
	files := map[string]string{}
	for i, l := range spec.Layers {
		files[layerFile+strconv.Itoa(i)] = l
	}
	if o.guest != "" {
		files[guestFile] = o.guest
	}
	if o.from.boots() {
		files[kernelFile], files[initrdFile] = o.host.boot.Kernel, o.host.boot.Initrd
	} else {
		files[stateFile] = filepath.Join(spec.From.Dir, checkpointState)
	}
	for name, from := range files {
		if err := j.Put(from, name); err != nil {
			return hearth.Wrap(hearth.Internal, err, "%s cannot be put into the jail of machine %s", name, spec.ID)
		}
	}
	if o.from != nil {
		return d.furnishRestored(ctx, spec, o, j)
	}
	return microvm.MakeDisk(ctx, microvm.DiskSpec{Path: j.Path(diskFile), MiB: spec.Resources.DiskMiB, UID: j.UID, GID: j.UID})
}

// launch runs the jailer, which starts the monitor and ends, and waits for the
// monitor's socket.
func (d *Driver) launch(ctx context.Context, spec driver.Spec, o origin, j jail.Jail, con *console) (hostproc.Process, error) {
	var none hostproc.Process
	args, err := d.jailerArgs(spec, o, j)
	if err != nil {
		return none, hearth.Wrap(hearth.Internal, err, "the machine's disk cannot be found")
	}
	cmd := exec.CommandContext(ctx, o.host.jailer, args...)
	cmd.Env = []string{}
	cmd.Stdout, cmd.Stderr = con.in, con.in
	// Until it is a jailer by its arguments, no sweep could find it. The thread that the kernel
	// takes for its parent is there until Run returns: WithTimers holds on to it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	err = hostproc.WithTimers(hostproc.ExactTimers, cmd.Run)
	con.started()
	if ctx.Err() != nil {
		return none, hearth.Wrap(hearth.DeadlineExceeded, context.Cause(ctx), "machine %s did not start in time", spec.ID)
	}
	if err != nil {
		return none, hearth.Wrap(hearth.Internal, fmt.Errorf("%w%s", err, con.tail()), "jailer of machine %s failed", spec.ID)
	}
	pid, err := j.PID()
	if err != nil {
		return none, hearth.Wrap(hearth.Internal, err, "jailer of machine %s left no process ID", spec.ID)
	}
	return d.awaitAPI(ctx, o, j, pid, con)
}

func (d *Driver) jailerArgs(spec driver.Spec, o origin, j jail.Jail) ([]string, error) {
	disk, err := os.Stat(j.Path(diskFile))
	if err != nil {
		return nil, err
	}
	uid := strconv.Itoa(j.UID)
	args := []string{
		"--id", spec.ID, "--exec-file", o.host.firecracker, "--uid", uid, "--gid", uid,
		"--chroot-base-dir", spec.Dir, "--new-pid-ns", "--parent-cgroup", strings.TrimPrefix(d.cfg.CgroupParent, "/"),
		"--resource-limit", fmt.Sprintf("fsize=%d", fileLimit(spec.Resources, disk.Size())),
		"--resource-limit", fmt.Sprintf("no-file=%d", openFiles),
	}
	if spec.Net.NetNS != "" {
		args = append(args, "--netns", spec.Net.NetNS)
	}
	args = append(args, cgroupArgs(spec.Resources, hostproc.UnifiedCgroups())...)
	return append(args, "--", "--api-sock", "/"+apiSocket, "--level", "Error"), nil
}

// awaitAPI waits for the monitor's socket, and makes sure of who it is. It asks again
// and again: the socket has its name before anybody listens at it, and of the one
// there are events, of the other none.
func (d *Driver) awaitAPI(ctx context.Context, o origin, j jail.Jail, pid int, con *console) (hostproc.Process, error) {
	var none hostproc.Process
	ended := func(err error) error {
		return hearth.Wrap(hearth.Unavailable, fmt.Errorf("%w%s", err, con.tail()), "the monitor of machine %s ended as it started", j.ID)
	}
	waiting, cancel := context.WithTimeout(ctx, apiTime)
	defer cancel()
	retry := time.NewTicker(apiRetry)
	defer retry.Stop()
	api := vmm.New(j.Path(apiSocket), j.UID)
	for {
		said, err := api.Version(waiting)
		if err == nil {
			if said != o.host.version.String() {
				return none, hearth.Errorf(hearth.FailedPrecondition, "firecracker says it is version %.20q, it was %s: install it anew, and restart Hearth", said, o.host.version)
			}
			break
		}
		if _, err := hostproc.Identify(pid); err != nil {
			return none, ended(err)
		}
		select {
		case <-retry.C:
		case <-waiting.Done():
			return none, hearth.Wrap(hearth.DeadlineExceeded, fmt.Errorf("%w%s", err, con.tail()), "the monitor of machine %s does not answer", j.ID)
		}
	}
	for _, dir := range d.cgroup(j.ID).Dirs() {
		if err := hostproc.ForbidSwap(dir); err != nil {
			return none, hearth.Wrap(hearth.Internal, err, "swap cannot be forbidden to machine %s", j.ID)
		}
	}
	p, err := hostproc.Identify(pid)
	if err != nil {
		return none, ended(err)
	}
	return p, nil
}
