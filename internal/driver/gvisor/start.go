package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"hearth/internal/driver"
	"hearth/internal/driver/gvisor/console"
	"hearth/internal/driver/hostproc"
	"hearth/internal/hearth"
)

const (
	cleanupTime = 10 * time.Second
	maxReply    = 64 << 10 // bytes of a launcher's answer
)

// Name is "gvisor".
func (d *Driver) Name() string { return Name }

// Start boots or restores a machine.
func (d *Driver) Start(ctx context.Context, spec driver.Spec) (driver.Machine, error) {
	m, err := begin(ctx, d, spec, d.start)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// begin checks the spec, reserves users and makes something of it. When it fails
// nothing is left.
func begin[M any](ctx context.Context, d *Driver, spec driver.Spec, make func(context.Context, driver.Spec, origin) (M, error)) (made M, err error) {
	if err := d.checkSpec(spec); err != nil {
		return made, err
	}
	from, err := d.origin(spec)
	if err != nil {
		return made, err
	}
	firstUID, err := d.uids.Take(spec.ID)
	if err != nil {
		if hearth.KindOf(err) != hearth.Internal {
			return made, err
		}
		return made, hearth.Wrap(hearth.Internal, err, "no range of user IDs can be reserved")
	}
	from.firstUID = firstUID
	if made, err = make(ctx, spec, from); err != nil {
		d.undo(ctx, spec)
	}
	return made, err
}

// undo removes what a start that failed left.
func (d *Driver) undo(ctx context.Context, spec driver.Spec) {
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	if err := errors.Join(d.killStrays(clean, spec.ID), d.release(clean, spec.ID, spec.Dir, hostproc.KeepDir)); err != nil {
		d.cfg.Log.Error("machine that did not start left something behind", "id", spec.ID, "error", err)
	}
}

// origin is what a machine was made of, beyond its spec.
type origin struct {
	key      string // of the checkpoints it will write
	guest    string // guest image, absolute
	firstUID uint32
	layers   []heldLayer // of the checkpoint, oldest first, its own last
	hot      []uint64
}

func (d *Driver) checkSpec(spec driver.Spec) error {
	if err := spec.Check(); err != nil {
		return err
	}
	if len(spec.Layers) != 1 {
		return hearth.Errorf(hearth.InvalidArgument, "layers: the gvisor driver takes exactly one, got %d", len(spec.Layers))
	}
	if spec.Net.NetNS != "" && !spec.Net.Guest.IsValid() {
		return hearth.Errorf(hearth.InvalidArgument, "net: there is a namespace but no guest address")
	}
	return nil
}

func (d *Driver) start(ctx context.Context, spec driver.Spec, from origin) (*machine, error) {
	req, err := d.describe(spec, from)
	if err != nil {
		return nil, err
	}
	if spec.From != nil && !spec.From.FilesOnly {
		req.Image, req.Memory = spec.From.Dir, d.memoryOf(from)
	}
	con := &console.Console{}
	if req.Image == "" {
		if con, err = console.New(); err != nil {
			return nil, hearth.Wrap(hearth.Internal, err, "console cannot be made")
		}
	}
	l, err := d.launcher(spec.ID, con)
	if err != nil {
		con.Close()
		return nil, err
	}
	pid, err := l.last(ctx, req)
	if err != nil {
		con.Close()
		return nil, err
	}
	return d.started(pid, spec, from, con)
}

// describe writes the machine's bundle and says how to make the sandbox.
func (d *Driver) describe(spec driver.Spec, from origin) (launchRequest, error) {
	req := launchRequest{
		Flags:  append(d.cfg.flags(), "--panic-log="+filepath.Join(spec.Dir, "panic.log")),
		ID:     spec.ID,
		Bundle: filepath.Join(spec.Dir, bundleDir),
		Limit:  memoryLimit(spec.Resources),
	}
	if spec.Net.NetNS == "" {
		req.Flags = withoutNetwork(req.Flags)
	}
	if err := os.MkdirAll(d.cfg.Root, 0o711); err != nil {
		return req, hearth.Wrap(hearth.Internal, err, "gvisor root cannot be made")
	}
	oci := d.ociSpec(spec, from.guest, from.firstUID)
	filesOf(oci.Annotations, spec.From)
	if err := writeBundle(spec.Dir, oci); err != nil {
		return req, hearth.Wrap(hearth.Internal, err, "machine's directory cannot be written")
	}
	return req, nil
}

// memoryOf says where the pages of a checkpoint are.
func (d *Driver) memoryOf(from origin) memory {
	m := memory{Share: d.cfg.share(), Hot: from.hot}
	for _, l := range from.layers[:len(from.layers)-1] {
		m.Layers = append(m.Layers, filepath.Join(l.Dir, pagesFile))
	}
	return m
}

// started makes a machine of a sandbox in which a guest runs. The console is its own, also
// when it fails.
func (d *Driver) started(pid int, spec driver.Spec, from origin, con *console.Console) (*machine, error) {
	state, err := newState(pid, spec, from)
	if err != nil {
		con.Close()
		return nil, hearth.Wrap(hearth.Unavailable, err, "machine %s ended as it started", spec.ID)
	}
	m, err := d.adopt(spec.ID, spec.Dir, state, con)
	if err != nil {
		con.Close()
		return nil, err
	}
	return m, nil
}

// launcher is a running launcher process, see launch.go.
type launcher struct {
	id      string
	con     *console.Console
	cmd     *exec.Cmd
	request *os.File
	reply   *os.File
	replies *json.Decoder
	limited *io.LimitedReader // of reply
	ended   chan struct{}     // closed when the process is gone
	err     error             // how it ended, then
}

// launcher starts one.
func (d *Driver) launcher(id string, con *console.Console) (*launcher, error) {
	requestR, requestW, err := os.Pipe()
	if err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "no pipe to a launcher")
	}
	replyR, replyW, err := os.Pipe()
	if err != nil {
		_, _ = requestR.Close(), requestW.Close()
		return nil, hearth.Wrap(hearth.Internal, err, "no pipe to a launcher")
	}
	cmd := exec.Command(d.cfg.Exe)
	cmd.Args = []string{launcherName, id}
	cmd.Env = []string{}
	if stdout, stderr := con.Output(); stdout != nil {
		cmd.Stdout, cmd.Stderr = stdout, stderr
	}
	cmd.ExtraFiles = []*os.File{requestR, replyW}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_, _ = requestR.Close(), replyW.Close()
	if err != nil {
		_, _ = requestW.Close(), replyR.Close()
		return nil, hearth.Wrap(hearth.Internal, err, "launcher cannot be executed")
	}
	l := &launcher{id: id, con: con, cmd: cmd, request: requestW, reply: replyR, ended: make(chan struct{})}
	l.limited = &io.LimitedReader{R: replyR}
	l.replies = json.NewDecoder(l.limited)
	go func() {
		l.err = cmd.Wait()
		close(l.ended)
	}()
	return l, nil
}

// ask sends a request and waits for the answer, the process number of the
// sandbox. When ctx ends first, or the launcher fails, the launcher is gone.
func (l *launcher) ask(ctx context.Context, req launchRequest) (int, error) {
	defer context.AfterFunc(ctx, func() { _ = l.cmd.Process.Kill() })()
	l.limited.N = maxReply
	var answer launchReply
	err := json.NewEncoder(l.request).Encode(req)
	if err == nil {
		err = l.replies.Decode(&answer)
	}
	if err != nil {
		l.close()
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		return 0, hearth.Wrap(hearth.Internal, fmt.Errorf("no answer: %w%s", errors.Join(err, l.err), l.con.Tail()), "launcher of machine %s failed", l.id)
	}
	if answer.Error != "" {
		l.close()
		return 0, hearth.Wrap(hearth.Internal, fmt.Errorf("%s%s", answer.Error, l.con.Tail()), "machine %s cannot be started", l.id)
	}
	return answer.PID, nil
}

// last is ask of a launcher that ends when it has answered.
func (l *launcher) last(ctx context.Context, req launchRequest) (int, error) {
	stop := context.AfterFunc(ctx, func() { _ = l.cmd.Process.Kill() })
	pid, err := l.ask(ctx, req)
	if err != nil {
		stop()
		return 0, err
	}
	<-l.ended
	stop()
	_, _ = l.request.Close(), l.reply.Close()
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if l.err != nil {
		return 0, hearth.Wrap(hearth.Internal, fmt.Errorf("%w%s", l.err, l.con.Tail()), "launcher of machine %s failed", l.id)
	}
	return pid, nil
}

// close kills it and waits for its end.
func (l *launcher) close() {
	_ = l.cmd.Process.Kill() // that it is gone is as good
	<-l.ended
	_, _ = l.request.Close(), l.reply.Close()
}
