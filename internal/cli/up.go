package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/app"
	"hearth/internal/config"
	"hearth/internal/hearth"
	"hearth/internal/telemetry"
)

type upCmd struct {
	dataFlag
	Listen string `placeholder:"ADDR" help:"Address of the API and of sandbox traffic; default: 127.0.0.1:3000, or $$HEARTH_LISTEN."`
	Detach bool   `help:"Return once the server is ready; it runs on."`

	// A detached server reports to the command that started it here.
	ProgressFD int `hidden:""`
}

// Run serves until it is told to stop. Sandboxes outlive it: the next `hearth
// up` finds them again, and `hearth down` stops them.
func (u *upCmd) Run(in *invocation) error {
	c, err := in.load(func(c *config.Config) {
		u.apply(c)
		if u.Listen != "" {
			c.Listen = u.Listen
		}
	})
	if err != nil {
		return err
	}
	if u.Detach {
		return u.detach(in, c)
	}
	progress := in.err
	if u.ProgressFD > 2 {
		unix.CloseOnExec(u.ProgressFD)
		parent := os.NewFile(uintptr(u.ProgressFD), "progress")
		defer parent.Close()
		progress = parent
	}
	log := telemetry.Logger(os.Stderr, c.Log.Level, c.Log.Format)
	err = app.Serve(in.ctx, c, app.Options{Log: log, Progress: progress, Version: in.version, Ready: func() {
		fmt.Fprintf(progress, "ready: %s\n", app.URL(c.Listen))
		if parent, ok := progress.(*os.File); ok && u.ProgressFD > 2 {
			parent.Close() // the parent returns; later progress goes to the log alone
		}
	}})
	if err != nil && progress != in.err {
		fmt.Fprintf(progress, "error: %s\n", strings.ReplaceAll(err.Error(), "\n", "; ")) // the parent reads one line
	}
	return err
}

// detach starts the same command in a session of its own and passes its
// progress on until it is ready or has failed.
func (u *upCmd) detach(in *invocation, c *config.Config) (err error) {
	unmake := unmaker(c)
	defer func() {
		if _, refused := errors.AsType[*failure](err); refused {
			unmake()
		}
	}()
	if err := os.MkdirAll(c.Data, 0o700); err != nil {
		return hearth.Wrap(hearth.PermissionDenied, err, "data directory %s cannot be made; choose another with --data", c.Data)
	}
	logFile, err := os.OpenFile(statePath(c, app.LogFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return hearth.Wrap(hearth.PermissionDenied, err, "log file %s cannot be opened", statePath(c, app.LogFile))
	}
	defer logFile.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	args := []string{"up", "--data", c.Data, "--listen", c.Listen, "--progress-fd", "3"}
	if in.file != "" {
		args = append([]string{"--config", in.file}, args...)
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = "hearth"
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.ExtraFiles = []*os.File{w} // descriptor 3
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		w.Close()
		return hearth.Wrap(hearth.Internal, err, "the server cannot be started")
	}
	w.Close()
	return relay(in, r, cmd, statePath(c, app.LogFile))
}

// relay prints the server's progress; its last line says ready or error.
func relay(in *invocation, r io.Reader, cmd *exec.Cmd, logPath string) error {
	last := ""
	for s := bufio.NewScanner(r); s.Scan(); {
		last = s.Text()
		if !strings.HasPrefix(last, "error: ") {
			fmt.Fprintln(in.err, last)
		}
	}
	if strings.HasPrefix(last, "ready: ") {
		return cmd.Process.Release()
	}
	err := cmd.Wait()
	if msg, ok := strings.CutPrefix(last, "error: "); ok {
		return &failure{msg, cmd.ProcessState.ExitCode()}
	}
	return hearth.Wrap(hearth.Internal, err, "the server ended before it was ready; see %s", logPath)
}

// unmaker returns what takes back the log and the data directory that a server
// which refused to start has no use for: those that are not there now, unless
// the server has used the directory.
func unmaker(c *config.Config) func() {
	absent := func(path string) bool {
		_, err := os.Lstat(path)
		return errors.Is(err, fs.ErrNotExist)
	}
	noLog, noDir := absent(statePath(c, app.LogFile)), absent(c.Data)
	return func() {
		if !noLog || !absent(statePath(c, app.LockFile)) {
			return
		}
		_ = os.Remove(statePath(c, app.LogFile)) // it says what the caller gets to see
		if noDir {
			_ = os.Remove(c.Data)
		}
	}
}

type downCmd struct {
	dataFlag
	Grace time.Duration `default:"30s" help:"How long the server may take to end before it is killed."`
}

// Run stops the server, then every sandbox it left, and removes what they held.
func (d *downCmd) Run(in *invocation) error {
	c, err := d.load(in)
	if err != nil {
		return err
	}
	if pid := app.Pid(c.Data); pid != 0 {
		if err := stop(pid, d.Grace); err != nil {
			return err
		}
	}
	n, err := app.StopAll(in.ctx, c, app.Options{Log: telemetry.Logger(in.err, "error", c.Log.Format), Progress: in.err, Version: in.version})
	if err != nil {
		return err
	}
	fmt.Fprintf(in.err, "stopped: server and %d sandboxes\n", n)
	return nil
}

// stop ends a process of ours and waits for its end.
func stop(pid int, grace time.Duration) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return hearth.Wrap(hearth.PermissionDenied, err, "the server (pid %d) cannot be stopped; run as the user who started it", pid)
	}
	defer unix.Close(fd)
	for _, step := range []struct {
		sig  unix.Signal
		wait time.Duration
	}{{unix.SIGTERM, grace}, {unix.SIGKILL, 5 * time.Second}} {
		if err := unix.PidfdSendSignal(fd, step.sig, nil, 0); errors.Is(err, unix.ESRCH) {
			return nil
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(step.wait.Milliseconds()))
		if err == nil && n == 1 {
			return nil
		}
	}
	return hearth.Errorf(hearth.DeadlineExceeded, "the server (pid %d) does not end", pid)
}
