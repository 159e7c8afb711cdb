package firecracker

import (
	"errors"
	"fmt"
	"os"
	"time"

	"hearth/internal/driver/microvm"
)

const (
	tailBytes = 2 << 10
	lastWords = time.Second // for what a process wrote before it died to be read
)

// console takes what monitor and guest write, and keeps the end of it. When this
// process ends, what they write is lost.
type console struct {
	in   *os.File // for the jailer and its heir; closed once they have it
	out  *os.File
	ring microvm.Console
	over chan struct{}
}

func newConsole() (*console, error) {
	out, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c := &console{in: in, out: out, over: make(chan struct{})}
	go c.read()
	return c, nil
}

func (c *console) read() {
	defer close(c.over)
	if err := c.ring.Follow(c.out); err != nil && !errors.Is(err, os.ErrClosed) {
		_, _ = fmt.Fprintf(&c.ring, "\n(console lost: %v)\n", err)
	}
}

// started closes this process's end for writing, once others have it.
func (c *console) started() { _ = c.in.Close() }

// tail returns the end of what was written, quoted, for a log line about a failure.
func (c *console) tail() string {
	if c == nil {
		return ""
	}
	select {
	case <-c.over:
	case <-time.After(lastWords):
	}
	text := c.ring.Tail(tailBytes)
	if text == "" {
		return ""
	}
	return fmt.Sprintf("; its console: %q", text)
}

func (c *console) close() {
	if c == nil {
		return
	}
	_, _ = c.in.Close(), c.out.Close()
	<-c.over
}
