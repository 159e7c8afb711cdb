package microvm

import (
	"errors"
	"io"
	"sync"
	"time"
)

const (
	consoleBytes = 64 << 10
	consoleLine  = 512 // longer lines are cut
)

// Console keeps the end of what a machine's console says. It is an io.Writer
// that never fails, never blocks, and never grows. The zero value is ready.
type Console struct {
	mu   sync.Mutex
	ring [consoleBytes]byte
	next int // where the next byte goes
	full bool
	line int // length of the unfinished line
}

// Write implements io.Writer.
func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range p {
		switch {
		case b == '\n':
			c.line = 0
		case b == '\r' || c.line >= consoleLine:
			continue
		case b < ' ' && b != '\t' || b == 0x7f:
			b = '?' // nothing that a terminal would act upon
			fallthrough
		default:
			c.line++
		}
		c.ring[c.next] = b
		c.next++
		if c.next == len(c.ring) {
			c.next, c.full = 0, true
		}
	}
	return len(p), nil
}

// Tail returns at most the last n bytes.
func (c *Console) Tail(n int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []byte
	if c.full {
		all = append(all, c.ring[c.next:]...)
	}
	all = append(all, c.ring[:c.next]...)
	return string(all[max(0, len(all)-n):])
}

// A guest that floods its console is read at most consolePiece bytes per
// consolePause: beyond that it waits, and costs this process nothing.
const (
	consolePiece = 64 << 10
	consolePause = 5 * time.Millisecond
)

// Follow keeps what r says, until r ends: with nil at its end, or with its error.
func (c *Console) Follow(r io.Reader) error {
	buf := make([]byte, consolePiece)
	pause := time.NewTicker(consolePause)
	defer pause.Stop()
	for {
		n, err := r.Read(buf)
		_, _ = c.Write(buf[:n])
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		<-pause.C
	}
}
