package channel

import (
	"bufio"
	"context"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"hearth/internal/hearth"
)

// TestDialVsock: the monitor closes connections until the guest listens, then
// says OK, and what follows belongs to the session.
func TestDialVsock(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "v.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var monitor sync.WaitGroup
	monitor.Go(func() {
		for i := 0; ; i++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			line, _ := bufio.NewReader(c).ReadString('\n')
			if i < 3 {
				_ = c.Close()
				continue
			}
			monitor.Go(func() {
				defer c.Close()
				if line != "CONNECT 1024\n" {
					t.Errorf("got %q", line)
				}
				_, _ = c.Write([]byte("OK 1073741824\n"))
				_ = Serve(c, newTestGuest())
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		monitor.Wait()
	})
	conn, err := DialVsock(t.Context(), socket, 1024)
	if err != nil {
		t.Fatal(err)
	}
	c := open(t, conn)
	if err := c.Configure(t.Context(), settings()); err != nil {
		t.Error(err)
	}
	_ = c.Close()
}

// TestDialVsockGivesUp: on a monitor that refuses, lies or says nothing.
func TestDialVsockGivesUp(t *testing.T) {
	for name, says := range map[string]string{"nothing": "", "refusal": "NO\n", "a long line": strings.Repeat("O", 100)} {
		socket := filepath.Join(t.TempDir(), "v.sock")
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		var monitor sync.WaitGroup
		monitor.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = c.Write([]byte(says))
				t.Cleanup(func() { _ = c.Close() })
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, err := DialVsock(ctx, socket, 1024); hearth.KindOf(err) != hearth.DeadlineExceeded {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
		_ = l.Close()
		monitor.Wait()
	}
}
