package image

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"hearth/internal/hearth"
)

// command is one tool of the host.
type command struct {
	name   string
	tool   string // what errors call it; empty: name
	args   []string
	pkg    string // Debian package that has it
	env    []string
	stdin  io.Reader
	line   func(string) // every line of its output, if set
	stdout io.Writer    // instead of line, for stdout alone
	alone  isolation
}

// isolation says in which namespaces a command runs.
type isolation int

const (
	hostNamespaces isolation = iota
	ownNamespaces            // mounts and processes of its own: both vanish with it
	offline                  // and a network with nothing in it
)

// graceAfterKill is how long Wait lets the output of killed children drain.
const graceAfterKill = 10 * time.Second

// run runs a tool to its end. When ctx ends the tool is killed with all its
// children. The error carries the last line the tool wrote.
func run(ctx context.Context, c command) error {
	name, args := c.name, c.args
	if _, err := exec.LookPath(name); err != nil {
		return hearth.Wrap(hearth.FailedPrecondition, err, "%s is missing; install it with: apt-get install %s", name, c.pkg)
	}
	if c.alone != hostNamespaces {
		pre := []string{"--mount", "--pid", "--ipc", "--fork", "--kill-child=SIGKILL", "--mount-proc"}
		if c.alone == offline {
			pre = append(pre, "--net")
		}
		args = append(append(pre, "--", name), args...)
		name = "unshare"
	}
	// The kernel takes the end of the thread that started the tool for the death
	// of its parent, and threads end: those that made a network namespace do.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = graceAfterKill
	cmd.Env = c.env
	cmd.Stdin = c.stdin
	out := &lines{each: c.line}
	cmd.Stdout, cmd.Stderr = out, out
	if c.stdout != nil {
		cmd.Stdout = c.stdout
	}
	err := cmd.Run()
	out.flush()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return hearth.Wrap(hearth.Internal, err, "cannot run %s", c.name)
	}
	tool := c.name
	if c.tool != "" {
		tool = c.tool
	}
	return hearth.Wrap(hearth.Internal, errors.Join(err, errors.New(out.all())), "%s failed: %s", tool, out.reason())
}

// lines cuts a tool's output into lines and keeps the last of them.
type lines struct {
	mu   sync.Mutex
	each func(string)
	part bytes.Buffer
	last []string
}

const (
	maxLine   = 4096
	keepLines = 20
)

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range p {
		if b == '\n' || b == '\r' || l.part.Len() >= maxLine {
			l.cut()
		}
		if b != '\n' && b != '\r' {
			l.part.WriteByte(b)
		}
	}
	return len(p), nil
}

func (l *lines) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut()
}

func (l *lines) cut() {
	s := strings.TrimSpace(strings.ToValidUTF8(l.part.String(), "?"))
	l.part.Reset()
	if s == "" {
		return
	}
	s = scrub(s)
	if len(l.last) == keepLines {
		l.last = l.last[1:]
	}
	l.last = append(l.last, s)
	if l.each != nil {
		l.each(s)
	}
}

func (l *lines) all() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.last, "\n")
}

// reason is the line that most likely says why: the last that looks like an
// error, else the last.
func (l *lines) reason() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := len(l.last) - 1; i >= 0; i-- {
		s := strings.ToLower(l.last[i])
		if strings.HasPrefix(s, "e:") || strings.Contains(s, "error") || strings.Contains(s, "no space left") {
			return l.last[i]
		}
	}
	if len(l.last) == 0 {
		return "it said nothing"
	}
	return l.last[len(l.last)-1]
}

var credentials = regexp.MustCompile(`://[^/@\s]+@`)

// scrub takes user names and passwords out of URLs.
func scrub(s string) string { return credentials.ReplaceAllString(s, "://") }

// output runs a tool and returns what it wrote to stdout, up to 4 MiB.
func output(ctx context.Context, name, pkg string, args ...string) (string, error) {
	var buf bytes.Buffer
	w := &capped{w: &buf, left: 4 << 20}
	err := run(ctx, command{name: name, pkg: pkg, args: args, stdout: w, env: append(os.Environ(), "LC_ALL=C")})
	return buf.String(), err
}

// capped drops what goes beyond its size.
type capped struct {
	w    io.Writer
	left int
}

func (c *capped) Write(p []byte) (int, error) {
	n := min(len(p), c.left)
	c.left -= n
	if _, err := c.w.Write(p[:n]); err != nil {
		return 0, err
	}
	return len(p), nil
}

// fields splits text into non-empty lines.
func eachLine(text string, do func(string)) {
	for sc := bufio.NewScanner(strings.NewReader(text)); sc.Scan(); {
		if s := strings.TrimSpace(sc.Text()); s != "" {
			do(s)
		}
	}
}
