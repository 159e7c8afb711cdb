package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"hearth/internal/hearth"
)

// monitor stands in for QEMU: it takes orders one connection after the other, and
// lets hear decide whether each is answered. hear may end the caller's time.
func monitor(t *testing.T, path string, hear func(order string) bool) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() {
		l.Close()
		<-ended
	})
	serve := func(conn net.Conn) {
		defer conn.Close()
		conn.Write([]byte(`{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}}}` + "\n"))
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			var order struct{ Execute string }
			if json.Unmarshal(lines.Bytes(), &order) != nil {
				return
			}
			if order.Execute == "qmp_capabilities" || hear(order.Execute) {
				conn.Write([]byte(`{"return": {}}` + "\n"))
			}
		}
	}
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serve(conn)
		}
	}()
}

// silent accepts connections and says nothing.
func silent(t *testing.T, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

// An order that was given up may have been obeyed: what comes next must not
// believe that it was not. And a guest that could not be told the time in the time
// that there was stands still, as the one that is to be written must.
func TestOrdersThatAreGivenUp(t *testing.T) {
	dir := t.TempDir()
	silent(t, filepath.Join(dir, consoleSocket))
	silent(t, filepath.Join(dir, guestSocket))
	var (
		mu     sync.Mutex
		orders []string
		giveUp context.CancelFunc
	)
	monitor(t, filepath.Join(dir, qmpSocket), func(order string) bool {
		mu.Lock()
		defer mu.Unlock()
		orders = append(orders, order)
		switch len(orders) {
		case 1: // stop: obeyed, but not answered in time
			giveUp()
			return false
		case 2: // cont: answered, but the guest says nothing until there is no time left
			defer giveUp()
		}
		return true
	})
	m := &machine{d: &Driver{cfg: Config{Log: slog.New(slog.DiscardHandler)}}, id: "m-1", dir: dir, turn: make(chan struct{}, 1), done: make(chan struct{})}
	m.turn <- struct{}{}
	m.link = newLink(m)
	t.Cleanup(m.link.finish)
	try := func(what string, call func(context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		mu.Lock()
		giveUp = cancel
		mu.Unlock()
		if err := call(ctx); hearth.KindOf(err) != hearth.DeadlineExceeded || !errors.Is(err, context.Canceled) {
			t.Fatalf("%s: %v", what, err)
		}
	}
	try("freeze", m.Freeze)
	if _, err := m.Checkpoint(t.Context(), t.TempDir()); hearth.KindOf(err) != hearth.FailedPrecondition {
		t.Errorf("checkpoint of a guest that may run: %v", err)
	}
	try("thaw", m.Thaw)
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"stop", "cont", "stop"}; !slices.Equal(orders, want) {
		t.Errorf("QEMU was told %q, want %q", orders, want)
	}
	if m.motion != frozen {
		t.Error("the guest is not known to stand still")
	}
}
