package gvisor

import (
	"bytes"
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
	if err := d.checkSpec(spec); err != nil {
		return nil, err
	}
	from, err := d.origin(spec)
	if err != nil {
		return nil, err
	}
	firstUID, err := d.uids.Take(spec.ID)
	if err != nil {
		if hearth.KindOf(err) != hearth.Internal {
			return nil, err
		}
		return nil, hearth.Wrap(hearth.Internal, err, "no range of user IDs can be reserved")
	}
	from.firstUID = firstUID
	m, err := d.start(ctx, spec, from)
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		if err := errors.Join(d.killStrays(clean, spec.ID), d.release(clean, spec.ID, spec.Dir, hostproc.KeepDir)); err != nil {
			d.cfg.Log.Error("machine that did not start left something behind", "id", spec.ID, "error", err)
		}
		return nil, err
	}
	return m, nil
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
	if err := os.MkdirAll(d.cfg.Root, 0o711); err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "gvisor root cannot be made")
	}
	oci := d.ociSpec(spec, from.guest, from.firstUID)
	filesOf(oci.Annotations, spec.From)
	if err := writeBundle(spec.Dir, oci); err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "machine's directory cannot be written")
	}
	req := launchRequest{
		Flags:  append(d.cfg.flags(), "--panic-log="+filepath.Join(spec.Dir, "panic.log")),
		ID:     spec.ID,
		Bundle: filepath.Join(spec.Dir, bundleDir),
		Limit:  memoryLimit(spec.Resources),
	}
	if spec.Net.NetNS == "" {
		req.Flags = withoutNetwork(req.Flags)
	}
	if spec.From != nil && !spec.From.FilesOnly {
		req.Image = spec.From.Dir
		req.Memory = memory{Share: d.cfg.share(), Hot: from.hot}
		for _, l := range from.layers[:len(from.layers)-1] {
			req.Memory.Layers = append(req.Memory.Layers, filepath.Join(l.Dir, pagesFile))
		}
	}
	con, err := newConsole(req.Image == "")
	if err != nil {
		return nil, hearth.Wrap(hearth.Internal, err, "console cannot be made")
	}
	pid, err := d.launch(ctx, req, con)
	if err != nil {
		con.close()
		return nil, err
	}
	state, err := newState(pid, spec, from)
	if err != nil {
		con.close()
		return nil, hearth.Wrap(hearth.Unavailable, err, "machine %s ended as it started", spec.ID)
	}
	m, err := d.adopt(spec.ID, spec.Dir, state, con)
	if err != nil {
		con.close()
		return nil, err
	}
	return m, nil
}

// launch runs the launcher and waits for its answer.
func (d *Driver) launch(ctx context.Context, req launchRequest, con *console) (int, error) {
	requestR, requestW, err := os.Pipe()
	if err != nil {
		return 0, hearth.Wrap(hearth.Internal, err, "no pipe to a launcher")
	}
	defer requestW.Close()
	replyR, replyW, err := os.Pipe()
	if err != nil {
		_ = requestR.Close()
		return 0, hearth.Wrap(hearth.Internal, err, "no pipe to a launcher")
	}
	defer replyR.Close()

	cmd := exec.CommandContext(ctx, d.cfg.Exe)
	cmd.Args = []string{launcherName, req.ID}
	cmd.Env = []string{}
	if con.stdout != nil {
		cmd.Stdout, cmd.Stderr = con.stdout, con.stderr
	}
	cmd.ExtraFiles = []*os.File{requestR, replyW}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_, _ = requestR.Close(), replyW.Close()
	if err != nil {
		return 0, hearth.Wrap(hearth.Internal, err, "launcher cannot be executed")
	}
	answer, err := converse(requestW, replyR, req)
	waitErr := cmd.Wait()
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if err = errors.Join(err, waitErr); err != nil {
		return 0, hearth.Wrap(hearth.Internal, fmt.Errorf("%w%s", err, con.tail()), "launcher of machine %s failed", req.ID)
	}
	if answer.Error != "" {
		return 0, hearth.Wrap(hearth.Internal, fmt.Errorf("%s%s", answer.Error, con.tail()), "machine %s cannot be started", req.ID)
	}
	return answer.PID, nil
}

// converse sends the request and reads the reply, to its end or the launcher's.
func converse(request io.Writer, reply io.Reader, req launchRequest) (launchReply, error) {
	var answer launchReply
	if err := json.NewEncoder(request).Encode(req); err != nil {
		return answer, err
	}
	raw, err := io.ReadAll(io.LimitReader(reply, maxReply))
	if err != nil {
		return answer, err
	}
	if err := json.NewDecoder(bytes.NewReader(raw)).Decode(&answer); err != nil {
		return answer, fmt.Errorf("no answer: %w", err)
	}
	return answer, nil
}
