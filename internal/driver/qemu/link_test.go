package qemu

import (
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"hearth/internal/hearth"
)

// A machine whose console cannot be reached is nobody's: the next attempt begins
// anew, and so does another process's.
func TestConnectionsAreHadWholeOrNotAtAll(t *testing.T) {
	dir := t.TempDir()
	machineIn := func() *machine {
		m := &machine{d: &Driver{cfg: Config{Log: slog.New(slog.DiscardHandler)}}, id: "m-1", dir: dir, done: make(chan struct{})}
		m.link = newLink(m)
		t.Cleanup(m.link.finish)
		return m
	}
	m := machineIn()
	for range 2 {
		if err := m.link.own(t.Context()); hearth.KindOf(err) != hearth.Unavailable {
			t.Fatalf("there is no console: %v", err)
		}
		if m.link.held != nil {
			t.Fatal("half of the connections are kept")
		}
	}
	l, err := net.Listen("unix", filepath.Join(dir, consoleSocket))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Write([]byte("hello\n"))
		}
	}()
	for _, m := range []*machine{m, machineIn()} { // the second takes over from the first
		if err := m.link.own(t.Context()); err != nil {
			t.Fatal(err)
		}
		deadline := time.After(time.Minute)
		for m.link.console.Tail(100) != "hello\n" {
			select {
			case <-deadline:
				t.Fatalf("the console says %q", m.link.console.Tail(100))
			case <-time.After(time.Millisecond):
			}
		}
	}
}
