// Package console holds what a sandbox's first process writes before anybody
// can be asked for it.
package console

import (
	"fmt"
	"os"
	"strings"

	"hearth/internal/driver/hostproc"
)

const (
	size      = 64 << 10 // bytes, of each of the two
	tailBytes = 2 << 10
)

// Console is where the guest's first process writes: two pieces of memory that
// cannot grow. What a guest writes beyond them fails with EPERM, so that no guest
// can fill the host with its console, whoever reads it or not. The zero value and
// nil are the null device, which is what a restored guest writes to.
type Console struct {
	stdout, stderr *os.File
}

// New returns the console of a guest that boots.
func New() (*Console, error) {
	stdout, err := hostproc.FixedMemory("stdout", size)
	if err != nil {
		return nil, err
	}
	stderr, err := hostproc.FixedMemory("stderr", size)
	if err != nil {
		_ = stdout.Close()
		return nil, err
	}
	return &Console{stdout: stdout, stderr: stderr}, nil
}

// Output returns the files of the two outputs, nil for the null device.
func (c *Console) Output() (stdout, stderr *os.File) {
	if c == nil {
		return nil, nil
	}
	return c.stdout, c.stderr
}

// Tail returns the end of what was written to stderr, quoted, for a log line.
func (c *Console) Tail() string {
	if c == nil || c.stderr == nil {
		return ""
	}
	buf := make([]byte, size)
	n, _ := c.stderr.ReadAt(buf, 0)
	text := strings.TrimRight(string(buf[:n]), "\x00\n ")
	if text == "" {
		return ""
	}
	return fmt.Sprintf("; its console: %q", text[max(0, len(text)-tailBytes):])
}

// Close gives the memory back; the guest may still hold it.
func (c *Console) Close() {
	if c == nil {
		return
	}
	for _, f := range []*os.File{c.stdout, c.stderr} {
		if f != nil {
			_ = f.Close()
		}
	}
}
