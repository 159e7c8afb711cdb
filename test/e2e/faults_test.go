package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"hearth/client"
)

// TestOneSandboxDies kills one sandbox's process on the host.
func TestOneSandboxDies(t *testing.T) {
	s := newBaseServer(t)
	neighbour := s.sandbox(t, client.CreateOptions{})
	sb := s.sandbox(t, client.CreateOptions{})
	machine := s.machineOf(t, sb.ID)
	must(t, syscall.Kill(s.machineProcess(t, sb.ID), syscall.SIGKILL))
	eventually(t, "the sandbox is gone", func() bool { return s.status(t, sb.ID) == 404 })
	eventually(t, "nothing of the machine is left", func() bool { return len(leftOf(machine)) == 0 })
	if _, err := sb.Commands.Run(t.Context(), "true", client.RunOptions{}); err == nil {
		t.Error("a command still runs")
	}
	answers(t, neighbour)
}

// TestBurst asks for more sandboxes at once than there may be.
func TestBurst(t *testing.T) {
	const asked, limit = 200, 20
	s := newBaseServer(t, "HEARTH_SANDBOX_MAX=20")
	c := s.client(t)
	var mu sync.Mutex
	var made []*client.Sandbox
	var g errgroup.Group
	for range asked {
		g.Go(func() error {
			sb, err := c.Create(t.Context(), client.CreateOptions{Timeout: 5 * time.Minute})
			if e, ok := errors.AsType[*client.Error](err); ok && (e.Status == 429 || e.Status == 503) && e.RetryAfter > 0 {
				return nil
			}
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			made = append(made, sb)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Errorf("%v, want a sandbox or 429 or 503 with Retry-After", err)
	}
	if len(made) == 0 || len(made) > limit {
		t.Errorf("%d sandboxes, the limit is %d", len(made), limit)
	}
	for _, sb := range made {
		answers(t, sb)
	}
	for _, sb := range made {
		g.Go(func() error { return sb.Kill(t.Context()) })
	}
	must(t, g.Wait())
	sb := s.sandbox(t, client.CreateOptions{}) // there is room again
	answers(t, sb)
}

// TestDown stops what a killed server left, and has nothing to do the second time.
func TestDown(t *testing.T) {
	s := newBaseServer(t)
	s.sandbox(t, client.CreateOptions{})
	machines := s.machines()
	if len(s.network(t)) == 0 || len(machines) == 0 {
		t.Fatal("the test looks for the wrong things: there is nothing to leave behind")
	}
	pid := s.pid(t)
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	eventually(t, "the server is gone", func() bool { return syscall.Kill(pid, 0) != nil })
	for range 2 {
		if out, err := s.hearth("down", "--data", s.data).CombinedOutput(); err != nil {
			t.Fatalf("down: %v\n%s", err, out)
		}
		s.checkLeaks(t)
		checkMachines(t, machines)
	}
	s.up(t) // the directory is as good as new
	answers(t, s.sandbox(t, client.CreateOptions{}))
}

// TestUpgrade goes on with another build of the binary while sandboxes run.
func TestUpgrade(t *testing.T) {
	s := newBaseServer(t)
	sb := s.sandbox(t, client.CreateOptions{})
	sh(t, sb, "echo kept > /tmp/kept")
	newer := filepath.Join(t.TempDir(), "hearth")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=newer-"+s.tag(), "-o", newer, "../../cmd/hearth")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	pid := s.pid(t)
	must(t, syscall.Kill(pid, syscall.SIGTERM))
	eventually(t, "the server has ended", func() bool { return syscall.Kill(pid, 0) != nil })
	s.bin = newer
	s.up(t)
	if out := sh(t, sb, "cat /tmp/kept"); out != "kept\n" {
		t.Errorf("after the upgrade the file says %q", out)
	}
	answers(t, s.sandbox(t, client.CreateOptions{}))
}

// TestFullDisk runs a server on a small disk of its own and fills it.
func TestFullDisk(t *testing.T) {
	s := prepare(t, "HEARTH_BUILTIN=base")
	must(t, unix.Mount("hearth-test", s.data, "tmpfs", 0, roomy))
	data := s.data
	t.Cleanup(func() { must(t, unix.Unmount(data, 0)) })
	t.Cleanup(func() { // before the mount goes, so that its leaks are seen
		if out, err := s.hearth("down", "--data", data).CombinedOutput(); err != nil {
			t.Errorf("down: %v\n%s", err, out)
		}
		if t.Failed() {
			t.Logf("server log:\n%s", tail(filepath.Join(data, "hearth.log"), 16<<10))
		}
		s.data = t.TempDir() // for prepare's own down, which has nothing left to do
		must(t, os.Mkdir(filepath.Join(s.data, "node"), 0o700))
	})
	s.up(t)
	sb := s.sandbox(t, client.CreateOptions{})
	other := s.sandbox(t, client.CreateOptions{})
	sh(t, sb, "echo kept > /tmp/kept")
	snap, err := s.client(t).Snapshot(t.Context(), sb.ID, "")
	must(t, err)
	sh(t, sb, "head -c 8M /dev/urandom > /root/more") // no checkpoint of it fits

	leave(t, data, 1<<20)
	t.Run("pause", func(t *testing.T) {
		err := sb.Pause(t.Context())
		if err == nil {
			t.Fatal("a pause without room for it succeeds")
		}
		if e, ok := errors.AsType[*client.Error](err); !ok || e.Status != 429 || !strings.Contains(e.Message, "disk is full") {
			t.Errorf("pause: %v, want a 429 that says why", err)
		}
		eventually(t, "the sandbox runs on", func() bool {
			info, err := sb.Info(t.Context())
			return err == nil && info.State == "running"
		})
		if out := sh(t, sb, "cat /tmp/kept"); out != "kept\n" {
			t.Errorf("the file says %q", out)
		}
	})
	s.fullDiskCalls(t, sb, snap.ID)
	t.Run("rollback", func(t *testing.T) { s.fullDiskRollback(t, sb, snap.ID) })
	t.Run("create", func(t *testing.T) {
		made, err := s.client(t).Create(t.Context(), client.CreateOptions{})
		if err == nil {
			answers(t, made) // it may be possible all the same
			must(t, made.Kill(t.Context()))
		} else if e, ok := errors.AsType[*client.Error](err); !ok || e.Status == 500 {
			t.Errorf("create: %v", err)
		}
	})
	answers(t, other)
	must(t, unix.Mount("hearth-test", data, "tmpfs", unix.MS_REMOUNT, roomy))
	must(t, sb.Pause(t.Context()))
	again, err := s.client(t).Connect(t.Context(), sb.ID, time.Minute)
	must(t, err)
	_, err = s.client(t).Rollback(t.Context(), sb.ID, snap.ID)
	must(t, err)
	if out := sh(t, again, "cat /tmp/kept"); out != "kept\n" {
		t.Errorf("after a pause with room the file says %q", out)
	}
	eventually(t, "no torn file is left", func() bool {
		left := []string(nil)
		for _, dir := range []string{"blobs/tmp", "archive/tmp", "node/checkpoint"} {
			found, _ := filepath.Glob(filepath.Join(data, dir, "*"))
			left = append(left, found...)
		}
		return len(left) == 0
	})
	for id, removed := range snapshotFiles(s) {
		if !removed && !s.row(t, "snapshots", id) {
			t.Errorf("files of snapshot %s are left, which nobody knows", id)
		}
	}
}

// fullDiskCalls wants every call that writes a sandbox's state to say why it cannot,
// and the sandbox to run on; and the export of a snapshot, for which the server needs
// no room, to work.
func (s *server) fullDiskCalls(t *testing.T, sb *client.Sandbox, snapshot string) {
	c := s.client(t)
	for name, call := range map[string]func() error{
		"pause of files": func() error { return c.PauseFiles(t.Context(), sb.ID) },
		"snapshot": func() error {
			_, err := c.Snapshot(t.Context(), sb.ID, "")
			return err
		},
		"fork": func() error {
			_, err := c.Fork(t.Context(), sb.ID, 2, time.Minute)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			err := call()
			if e, ok := errors.AsType[*client.Error](err); !ok || e.Status != 429 || !strings.Contains(e.Message, "disk is full") {
				t.Errorf("%v, want a 429 that says why", err)
			}
			if out := sh(t, sb, "cat /tmp/kept"); out != "kept\n" {
				t.Errorf("the file says %q", out)
			}
		})
	}
	t.Run("export", func(t *testing.T) {
		size := countBytes(0)
		if err := c.Export(t.Context(), snapshot, &size); err != nil || size < 1<<20 {
			t.Errorf("%d bytes, %v", size, err)
		}
	})
	t.Run("import", func(t *testing.T) {
		parcel, err := os.CreateTemp(t.TempDir(), "")
		must(t, err)
		defer parcel.Close()
		must(t, c.Export(t.Context(), snapshot, parcel))
		_, err = parcel.Seek(0, 0)
		must(t, err)
		_, err = c.Import(t.Context(), parcel)
		if e, ok := errors.AsType[*client.Error](err); !ok || e.Status != 429 || !strings.Contains(e.Message, "disk is full") {
			t.Errorf("%v, want a 429 that says why", err)
		}
	})
}

// fullDiskRollback takes the sandbox back, for which there may be just room enough: it
// is what it was, or what it is to be, and says which. Afterwards no checkpoint of it
// fits again.
func (s *server) fullDiskRollback(t *testing.T, sb *client.Sandbox, snapshot string) {
	want := "after\n"
	sh(t, sb, "echo after > /tmp/when")
	_, err := s.client(t).Rollback(t.Context(), sb.ID, snapshot)
	if err == nil {
		want = "none\n"
	} else if e, ok := errors.AsType[*client.Error](err); !ok || e.Status != 429 || !strings.Contains(e.Message, "disk is full") {
		t.Errorf("%v, want a 429 that says why", err)
	}
	if out := sh(t, sb, "cat /tmp/kept; cat /tmp/when 2>/dev/null || echo none"); out != "kept\n"+want {
		t.Errorf("after the rollback, which ended with %v, the files say %q", err, out)
	}
}

// countBytes counts what is written to it.
type countBytes int64

func (n *countBytes) Write(p []byte) (int, error) {
	*n += countBytes(len(p))
	return len(p), nil
}

// TestDamagedSnapshot flips a bit in each file of a paused sandbox's snapshot before
// any of it is packed, for which there is no room here, and cuts each short: no machine runs from it, the error names
// what is damaged, and the sandbox resumes when the file is whole again.
func TestDamagedSnapshot(t *testing.T) {
	packs := t.TempDir() // what is damaged is healed from there, if it is packed by then
	must(t, unix.Mount("hearth-test", packs, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { must(t, unix.Unmount(packs, 0)) })
	s := newServer(t, "HEARTH_BUILTIN=base", "HEARTH_SNAPSHOTS_DIR="+packs)
	c := s.client(t)
	sb := s.sandbox(t, client.CreateOptions{Timeout: 10 * time.Minute})
	sh(t, sb, "echo kept > /tmp/kept")
	before := snapshotFiles(s)
	must(t, sb.Pause(t.Context()))
	eventually(t, "the paused sandbox has no machine", func() bool { return s.lives(t, sb.ID) == 0 })
	var files []string
	for id := range snapshotFiles(s) {
		if _, old := before[id]; !old {
			found, err := filepath.Glob(filepath.Join(s.data, "blobs", "objects", "snapshots+"+id+"+*"))
			must(t, err)
			files = append(files, found...)
		}
	}
	if len(files) < 3 {
		t.Fatalf("files of the snapshot: %q", files)
	}
	for _, path := range files {
		whole, err := os.ReadFile(path)
		must(t, err)
		if len(whole) < 2 {
			continue // a marker
		}
		flipped := append([]byte(nil), whole...)
		flipped[len(flipped)/2] ^= 0x10
		for what, raw := range map[string][]byte{"a flipped bit": flipped, "half": whole[:len(whole)/2]} {
			must(t, os.WriteFile(path, raw, 0o400))
			_, err := c.Connect(t.Context(), sb.ID, time.Minute)
			if e, ok := errors.AsType[*client.Error](err); !ok || e.Status/100 == 2 || !strings.Contains(e.Message, "damaged") {
				t.Errorf("%s in %s: %v", what, filepath.Base(path), err)
			}
			if n := s.lives(t, sb.ID); n != 0 {
				t.Fatalf("%s in %s: a machine runs", what, filepath.Base(path))
			}
		}
		must(t, os.WriteFile(path, whole, 0o400))
	}
	again, err := c.Connect(t.Context(), sb.ID, time.Minute)
	must(t, err)
	if out := sh(t, again, "cat /tmp/kept"); out != "kept\n" {
		t.Errorf("with whole files again: %q", out)
	}
}

// TestDamagedLayer flips a bit in a template's layer, and cuts it short, while no
// server runs: the next one starts no machine on it, be it a sandbox's or one of a
// pool, and says why; and it does when the file is whole again.
func TestDamagedLayer(t *testing.T) {
	s := newBaseServer(t)
	layers, err := filepath.Glob(filepath.Join(s.data, "blobs", "objects", "layers+*"))
	must(t, err)
	if len(layers) != 1 {
		t.Fatalf("layers: %q", layers)
	}
	path := layers[0]
	raw, err := os.ReadFile(path)
	must(t, err)
	down := func() {
		t.Helper()
		if out, err := s.hearth("down", "--data", s.data).CombinedOutput(); err != nil {
			t.Fatalf("down: %v\n%s", err, out)
		}
	}
	aside := filepath.Join(t.TempDir(), "whole")
	must(t, os.WriteFile(aside, raw, 0o400))
	raw[len(raw)/2] ^= 0x10
	for what, damaged := range map[string][]byte{"a flipped bit": raw, "half": raw[:len(raw)/2]} {
		down()
		must(t, os.Remove(path)) // not written to: the cache of images, which tests share, may be a link to it
		must(t, os.WriteFile(path, damaged, 0o400))
		s.up(t)
		_, err := s.client(t).Create(t.Context(), client.CreateOptions{})
		if e, ok := errors.AsType[*client.Error](err); !ok || e.Status/100 == 2 ||
			!strings.Contains(e.Message, strings.Replace(filepath.Base(path), "+", "/", 1)+" is damaged") {
			t.Errorf("%s: %v", what, err)
		}
		if m := s.machines(); len(m) > 0 {
			t.Errorf("%s: machines %q run", what, m)
		}
	}
	whole, err := os.ReadFile(aside)
	must(t, err)
	must(t, os.Remove(path))
	must(t, os.WriteFile(path, whole, 0o400)) // beneath the server
	answers(t, s.sandbox(t, client.CreateOptions{}))
}

// roomy is more than a server asks for; a tmpfs uses no memory for what is free.
const roomy = "size=6g"

// leave makes a tmpfs so small that only some bytes are free.
func leave(t *testing.T, dir string, bytes uint64) {
	t.Helper()
	for give := time.Now().Add(stalled); ; {
		var st unix.Statfs_t
		must(t, unix.Statfs(dir, &st))
		used := (st.Blocks - st.Bfree) * uint64(st.Bsize)
		err := unix.Mount("hearth-test", dir, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("size=%d", used+bytes))
		if !errors.Is(err, unix.EINVAL) || time.Now().After(give) { // EINVAL: more than that was written meanwhile
			must(t, err)
			return
		}
	}
}

// TestFullDiskAtStart lets the disk fill up while the first template is made: the
// server says so and ends, and the next start with room is as if nothing had been.
func TestFullDiskAtStart(t *testing.T) {
	s := prepare(t, "HEARTH_BUILTIN=base")
	data := s.data
	must(t, unix.Mount("hearth-test", data, "tmpfs", 0, roomy))
	t.Cleanup(func() { must(t, unix.Unmount(data, 0)) })
	var out []byte
	var err error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		out, err = s.hearth("up", "--detach", "--data", data, "--listen", s.listen).CombinedOutput()
	}()
	eventually(t, "the server has its pid file", func() bool {
		_, err := os.Stat(filepath.Join(data, "hearth.pid"))
		return err == nil
	})
	leave(t, data, 1<<20)
	<-ended
	if err == nil || !strings.Contains(lastLine(string(out)), "disk is full") {
		t.Errorf("up: %v, %s; want a failure that says why", err, out)
	}
	must(t, unix.Mount("hearth-test", data, "tmpfs", unix.MS_REMOUNT, roomy))
	s.up(t)
	sb, err := s.client(t).Create(t.Context(), client.CreateOptions{})
	must(t, err)
	answers(t, sb)
	if out, err := s.hearth("down", "--data", data).CombinedOutput(); err != nil {
		t.Errorf("down: %v\n%s", err, out)
	}
}
