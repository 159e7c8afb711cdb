// Package jail starts QEMU processes that can do nothing but be a machine: each
// in namespaces of its own, on a root that holds the program, its libraries and
// its firmware, as a user without capabilities, with limits. What a QEMU needs
// beyond that it is born with, as open descriptors.
//
// A process is made in two steps, since none of that can be done to a server with
// other work: this program is executed once more, as the launcher, which builds
// the jail around itself and becomes QEMU.
package jail

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"hearth/internal/driver/hostproc"
	"hearth/internal/driver/qemu/tenure"
	"hearth/internal/hearth"
)

const (
	outputBytes = 64 << 10
	maxReport   = 4 << 10
	tailBytes   = 1000
)

// Baggage is the descriptors that a QEMU is born with.
type Baggage struct{ files []*os.File }

// Add returns the number that QEMU knows the file by. The file is closed with
// the baggage.
func (b *Baggage) Add(f *os.File) int {
	b.files = append(b.files, f)
	return firstFD + len(b.files) - 1
}

// Open opens a file for QEMU.
func (b *Baggage) Open(path string, flags int) (int, error) {
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return 0, err
	}
	return b.Add(f), nil
}

// Listen makes a socket in dir on which QEMU will accept connections.
func (b *Baggage) Listen(dir, name string) (int, error) {
	d, path, err := tenure.At(dir, name)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		return 0, err
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err = errors.Join(err, l.Close()); err != nil {
		return 0, err
	}
	return b.Add(f), nil
}

// Close closes what this process has of it.
func (b *Baggage) Close() {
	for _, f := range b.files {
		_ = f.Close()
	}
}

// Child is a QEMU that this process has started.
type Child struct {
	PID    int
	output *os.File      // what it says, bounded
	reaped chan struct{} // closed when it has ended; state is set
	state  *os.ProcessState
}

// Said returns the end of what QEMU has said, quoted, for an error.
func (c *Child) Said() string {
	if c == nil {
		return ""
	}
	raw := make([]byte, outputBytes)
	n, _ := c.output.ReadAt(raw, 0)
	text := string(bytes.TrimSpace(bytes.Trim(raw[:n], "\x00")))
	text = text[max(0, len(text)-tailBytes):]
	if text == "" {
		return ""
	}
	return fmt.Sprintf("; QEMU says %q", text)
}

// Ended is closed when the process has ended and is no more.
func (c *Child) Ended() <-chan struct{} { return c.reaped }

// Status is how it ended, once it has.
func (c *Child) Status() (unix.WaitStatus, bool) {
	<-c.reaped
	status, ok := c.state.Sys().(syscall.WaitStatus)
	return unix.WaitStatus(status), ok
}

// Close lets go of what the process has said, after its end.
func (c *Child) Close() { _ = c.output.Close() }

// Start is what a QEMU is started with.
type Start struct {
	Exe     string // the program whose main calls Main
	ID      string // of the machine
	Request Request
	Baggage *Baggage
	Group   hostproc.Cgroup // has been made
}

// Run makes a process that becomes QEMU, and returns when it has.
func (s Start) Run(ctx context.Context) (*Child, error) {
	s.Request.Baggage = len(s.Baggage.files)
	output, err := hostproc.FixedMemory("output", outputBytes)
	if err != nil {
		return nil, err
	}
	c := &Child{output: output, reaped: make(chan struct{})}
	if err := s.run(ctx, c); err != nil {
		_ = output.Close()
		return nil, err
	}
	return c, nil
}

func (s Start) run(ctx context.Context, c *Child) error {
	requestR, requestW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer requestW.Close()
	reportR, reportW, err := os.Pipe()
	if err != nil {
		_ = requestR.Close()
		return err
	}
	defer reportR.Close()
	cmd := exec.Command(s.Exe)
	cmd.Args, cmd.Env, cmd.Dir = []string{LauncherName, s.ID}, []string{}, "/"
	cmd.Stdout, cmd.Stderr = c.output, c.output
	cmd.ExtraFiles = append([]*os.File{requestR, reportW}, s.Baggage.files...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS | syscall.CLONE_NEWNET,
	}
	err = hostproc.WithTimers(hostproc.ExactTimers, cmd.Start)
	_, _ = requestR.Close(), reportW.Close()
	if err != nil {
		return hearth.Wrap(hearth.Internal, err, "a process for machine %s cannot be made", s.ID)
	}
	c.PID = cmd.Process.Pid
	go func() {
		_ = cmd.Wait() // its status is in state
		c.state = cmd.ProcessState
		close(c.reaped)
	}()
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	report, err := s.instruct(c.PID, requestW, reportR)
	if err == nil && report == "" && ctx.Err() == nil {
		return nil
	}
	_ = cmd.Process.Kill()
	<-c.reaped
	if ctx.Err() != nil {
		return hearth.Wrap(hearth.DeadlineExceeded, context.Cause(ctx), "machine %s was not started in time", s.ID)
	}
	return hearth.Wrap(hearth.Internal, errors.Join(err, reported(report)), "machine %s cannot be started", s.ID)
}

func reported(text string) error {
	if text == "" {
		return nil
	}
	return fmt.Errorf("launcher: %q", text)
}

// instruct puts the launcher into its group, tells it what to do, and returns
// what it says against it.
func (s Start) instruct(pid int, request io.WriteCloser, report io.Reader) (string, error) {
	if err := s.Group.Add(pid); err != nil {
		return "", err
	}
	if err := json.NewEncoder(request).Encode(s.Request); err != nil {
		return "", err
	}
	if err := request.Close(); err != nil {
		return "", err
	}
	raw, err := io.ReadAll(io.LimitReader(report, maxReport))
	return strings.TrimSpace(string(raw)), err
}
