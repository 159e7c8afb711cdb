// Package copier is a process that copies bytes: what row 14 holds the edge against.
package copier

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync"

	"hearth/internal/hearth"
)

// Serve copies bytes between its clients and an address until ctx ends, and does
// nothing else: what it adds to a request is what any further program between
// client and sandbox adds on this host. It writes the address that it listens on
// to out.
func Serve(ctx context.Context, to string, out io.Writer) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return hearth.Wrap(hearth.Internal, err, "no address to listen on")
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	fmt.Fprintln(out, l.Addr())
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return hearth.Wrap(hearth.Internal, err, "a connection cannot be taken")
		}
		go join(ctx, c, to)
	}
}

// join copies both ways until one end is reached.
func join(ctx context.Context, c net.Conn, to string) {
	defer c.Close()
	s, err := (&net.Dialer{}).DialContext(ctx, "tcp", to)
	if err != nil {
		return // the client sees it
	}
	defer s.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{c, s}, {s, c}} {
		both.Go(func() {
			// Without splicing, which takes four system calls for what two can do.
			_, _ = io.Copy(struct{ io.Writer }{way[0]}, struct{ io.Reader }{way[1]}) // either end may go first
			c.Close()
			s.Close()
		})
	}
	both.Wait()
}

// Start runs Serve in a process of its own and returns its address. Call stop to end it.
func Start(ctx context.Context, to string) (address string, stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "bench", "relay", to)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return "", nil, hearth.Wrap(hearth.Internal, err, "a relay cannot be started")
	}
	stop = func() {
		cancel()
		_ = cmd.Wait() // killed, as it should be
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		stop()
		return "", nil, errors.Join(err, errors.New("the relay does not say where it listens"))
	}
	return strings.TrimSpace(line), stop, nil
}
