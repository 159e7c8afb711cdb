package gvisor

import (
	"fmt"
	"os"
	"strings"

	"hearth/internal/driver/hostproc"
)

const (
	consoleBytes = 64 << 10
	tailBytes    = 2 << 10
)

// console is where the guest's first process writes. For a boot it is two pieces
// of memory that cannot grow: what a guest writes beyond them fails with EPERM,
// so that no guest can fill the host with its console, whoever reads it or not.
// A restored guest writes to the null device.
type console struct {
	stdout, stderr *os.File // nil: the null device
}

// newConsole returns the console of a guest that boots or is restored.
func newConsole(boots bool) (*console, error) {
	if !boots {
		return &console{}, nil
	}
	stdout, err := hostproc.FixedMemory("stdout", consoleBytes)
	if err != nil {
		return nil, err
	}
	stderr, err := hostproc.FixedMemory("stderr", consoleBytes)
	if err != nil {
		_ = stdout.Close()
		return nil, err
	}
	return &console{stdout: stdout, stderr: stderr}, nil
}

// tail returns the end of what was written to stderr, quoted, for a log line.
func (c *console) tail() string {
	if c == nil || c.stderr == nil {
		return ""
	}
	buf := make([]byte, consoleBytes)
	n, _ := c.stderr.ReadAt(buf, 0)
	text := strings.TrimRight(string(buf[:n]), "\x00\n ")
	if text == "" {
		return ""
	}
	return fmt.Sprintf("; its console: %q", text[max(0, len(text)-tailBytes):])
}

func (c *console) close() {
	if c == nil {
		return
	}
	for _, f := range []*os.File{c.stdout, c.stderr} {
		if f != nil {
			_ = f.Close()
		}
	}
}
