package code

import (
	"context"
	"io"
	"strings"
	"sync"
	"syscall"
)

// Launcher starts processes; the daemon implements it, because it is the only
// parent and reaper in the sandbox.
type Launcher interface {
	// Launch starts a command as the sandbox's default user, in a new process
	// group, with PATH, HOME, USER, LOGNAME and cmd.Env on top: nothing that an
	// Init has set, for that comes by Reset and must not outlive the next one. The
	// process outlives ctx, which bounds the start only.
	Launch(ctx context.Context, cmd Command) (Process, error)
}

// Command is what to start.
type Command struct {
	Argv   []string          // Argv[0] is looked up in the user's PATH
	Env    map[string]string // wins over the user's environment
	Dir    string            // working directory
	Output io.Writer         // gets standard output and error; may be written concurrently
}

// Process is a started command.
type Process interface {
	// Signal reaches the whole process group. It is not called after Wait has returned.
	Signal(sig syscall.Signal) error
	// Wait returns when the process has ended; nil means exit status 0. It is
	// called once.
	Wait() error
}

// tail keeps the last bytes written, for the message when a start fails.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailSize = 4 << 10 // bytes

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p[max(0, len(p)-tailSize):]...)
	if extra := len(t.buf) - tailSize; extra > 0 {
		t.buf = append(t.buf[:0], t.buf[extra:]...)
	}
	return len(p), nil
}

// last is the last line written that is not blank, shortened.
func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(string(t.buf)), "\n")
	return clip(lines[len(lines)-1])
}
