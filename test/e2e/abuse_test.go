package e2e

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"hearth/client"
)

// TestAbuse lets sandboxes take more than their share. Each time a neighbour must
// not notice, the sandbox must be stoppable, and the host be as before.
func TestAbuse(t *testing.T) {
	s := newBaseServer(t)
	neighbour := s.sandbox(t, client.CreateOptions{})
	for name, attack := range map[string]func(*testing.T, *client.Sandbox){
		"fork bomb":         func(t *testing.T, n *client.Sandbox) { s.forkBomb(t, n, "") },
		"fork bomb of root": func(t *testing.T, n *client.Sandbox) { s.forkBomb(t, n, "root") },
		"memory hog":        s.memoryHog,
		"disk fill":         s.diskFill,
		"endless output":    s.endlessOutput,
		"connections":       s.connections,
	} {
		t.Run(name, func(t *testing.T) {
			attack(t, neighbour)
			answers(t, neighbour)
		})
	}
}

// forkBomb wants the neighbour to answer all the while and the host to have its
// processes back afterwards.
func (s *server) forkBomb(t *testing.T, neighbour *client.Sandbox, user string) {
	before := len(processes())
	sb := s.sandbox(t, client.CreateOptions{})
	machine := s.machineOf(t, sb.ID)
	bomb, err := sb.Commands.Start(t.Context(), `bomb() { bomb | bomb & }; bomb; sleep 600`, client.RunOptions{User: user})
	must(t, err)
	bomb.Detach()
	slowest := time.Duration(0)
	for range 20 {
		start := time.Now()
		answers(t, neighbour)
		slowest = max(slowest, time.Since(start))
	}
	if slowest > stalled {
		t.Errorf("the neighbour took %s to answer", slowest)
	}
	if user == "" { // a user's bomb leaves root, and so the daemon, room
		_, err := sb.Files.Write(t.Context(), "/tmp/after", strings.NewReader("alive"))
		must(t, err)
	}
	start := time.Now()
	if err := sb.Kill(t.Context()); err != nil && !client.NotFound(err) { // root's may have ended it
		t.Fatalf("kill: %v", err)
	}
	if took := time.Since(start); took > stalled {
		t.Errorf("killing it took %s", took)
	}
	eventually(t, "nothing of the machine is left", func() bool { return len(leftOf(machine)) == 0 })
	// Others' tests have processes on this host, too.
	eventually(t, "the host has its processes back", func() bool { return len(processes()) <= before+100 })
}

// memoryHog wants the sandbox to end, and its row to say why.
func (s *server) memoryHog(t *testing.T, _ *client.Sandbox) {
	sb := s.sandbox(t, client.CreateOptions{})
	machine := s.machineOf(t, sb.ID)
	ctx, cancel := context.WithTimeout(t.Context(), stalled)
	defer cancel()
	res, err := sb.Commands.Run(ctx, `python3 -c "
x = []
while True: x.append(b'x' * (16 << 20))"`, client.RunOptions{})
	if err == nil && res.ExitCode != 0 {
		answers(t, sb) // the process alone was refused or killed: as good
		return
	}
	if err == nil || ctx.Err() != nil {
		t.Fatalf("got %+v, %v; want the sandbox or the process to end", res, err)
	}
	eventually(t, "it is gone", func() bool { return s.status(t, sb.ID) == 404 })
	eventually(t, "the log says that it was out of memory", func() bool { return s.logged(sb.ID, "out of memory") })
	eventually(t, "nothing of the machine is left", func() bool { return len(leftOf(machine)) == 0 })
}

// diskFill wants an error inside and no byte on the host's disk.
func (s *server) diskFill(t *testing.T, _ *client.Sandbox) {
	sb := s.sandbox(t, client.CreateOptions{})
	before := diskUse(s.data)
	for _, dir := range []string{"/root", "/tmp", "/dev/shm"} {
		out := sh(t, sb, "head -c 20G /dev/zero > "+dir+"/fill")
		if !strings.Contains(out, "No space left") {
			t.Errorf("filling %s: %q", dir, out)
		}
	}
	if _, err := sb.Files.Write(t.Context(), "/root/upload", strings.NewReader(strings.Repeat("x", 1<<20))); err == nil {
		t.Error("an upload to a full disk succeeds")
	} else if e, ok := errors.AsType[*client.Error](err); !ok || e.Status != 507 {
		t.Errorf("an upload to a full disk: %v, want a 507", err)
	}
	if grown := diskUse(s.data) - before; grown > 16<<20 {
		t.Errorf("the data directory grew by %d MiB", grown>>20)
	}
	sh(t, sb, "rm -f /root/fill /tmp/fill /dev/shm/fill")
	answers(t, sb)
}

// diskUse adds up the sizes of the files below a data directory, but for the archive's:
// the template's snapshot is packed at some time.
func diskUse(dir string) (total int64) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if path == filepath.Join(dir, "archive") {
			return fs.SkipDir
		}
		if err != nil || !d.Type().IsRegular() {
			return nil // gone meanwhile
		}
		if info, err := d.Info(); err == nil {
			total += info.Size()
		}
		return nil
	})
	return total
}

// endlessOutput wants the server's memory bounded while nobody reads, and a
// reader elsewhere not to be held up.
func (s *server) endlessOutput(t *testing.T, _ *client.Sandbox) {
	sb := s.sandbox(t, client.CreateOptions{})
	before := resident(t, s.pid(t))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 8 {
		pr, pw := io.Pipe() // nobody reads
		defer pr.Close()
		p, err := sb.Commands.Start(ctx, "yes", client.RunOptions{Stdout: pw})
		must(t, err)
		go p.Wait()
	}
	res, err := sb.Commands.Run(t.Context(), "head -c 100M /dev/zero", client.RunOptions{Stdout: io.Discard})
	if err != nil || res.ExitCode != 0 {
		t.Fatalf("a reader elsewhere: %v %+v", err, res)
	}
	if after := resident(t, s.pid(t)); after > before+96 {
		t.Errorf("the server uses %d MiB, %d before", after, before)
	}
	answers(t, sb)
}

// connections opens many at once, to a port where somebody listens but never
// answers and to one where nobody does.
func (s *server) connections(t *testing.T, neighbour *client.Sandbox) {
	sb := s.sandbox(t, client.CreateOptions{})
	p, err := sb.Commands.Start(t.Context(), `python3 -c "
import socket
l = socket.create_server(('', 8000), backlog=512); kept = []
while True: kept.append(l.accept())"`, client.RunOptions{})
	must(t, err)
	p.Detach()
	ctx, cancel := context.WithCancel(t.Context())
	var hanging sync.WaitGroup
	for range 500 {
		hanging.Go(func() {
			if resp, err := sb.Request(ctx, "GET", 8000, "/", nil); err == nil {
				discard(resp.Body)
			}
		})
	}
	var g errgroup.Group
	g.SetLimit(100)
	for range 500 {
		g.Go(func() error {
			resp, err := sb.Request(t.Context(), "GET", 8001, "/", nil)
			if err != nil {
				return err
			}
			discard(resp.Body)
			if resp.StatusCode != 502 {
				return errors.New(resp.Status)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Errorf("a closed port: %v, want 502", err)
	}
	answers(t, neighbour)
	answers(t, sb)
	cancel()
	hanging.Wait()
	if fds, _ := os.ReadDir("/proc/self/fd"); len(fds) > 5000 {
		t.Errorf("%d descriptors are open", len(fds))
	}
}
