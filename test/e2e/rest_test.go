package e2e

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/client"
)

// TestDiskHasNoSnapshotInPlain: with a key, nothing of a sandbox's memory and
// files is on the disk, not even where files were deleted: the data directory is
// a file system in a file, which is searched byte by byte. What is in memory is
// searched, too: there it must be, or the search finds nothing anywhere.
func TestDiskHasNoSnapshotInPlain(t *testing.T) {
	var room unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &room); err != nil || room.Type != unix.TMPFS_MAGIC || int64(room.Bavail)*room.Bsize < 1<<30 {
		t.Skipf("/dev/shm is no tmpfs with 1 GiB to spare: %v", err)
	}
	plain, err := os.MkdirTemp("/dev/shm", "hearth-test-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(plain)) })
	key := filepath.Join(t.TempDir(), "key")
	must(t, os.WriteFile(key, []byte(strings.Repeat("5a", 32)), 0o600))
	s := prepare(t, "HEARTH_BUILTIN=base", "HEARTH_SNAPSHOTS_KEY_FILE="+key, "HEARTH_SNAPSHOTS_PLAIN_DIR="+plain)
	disk := onDiskOfItsOwn(t, s)
	s.up(t)
	sb := s.sandbox(t, client.CreateOptions{})
	// The halves meet in the sandbox alone, so that neither log nor journal has the whole.
	left, right := "left-"+rand.Text(), "right-"+rand.Text()
	secret := []byte(left + right)
	out := sh(t, sb, fmt.Sprintf("a=%s b=%s; for i in $(seq 500); do echo $a$b; done > /root/kept; cp /root/kept /dev/shm/; wc -l < /root/kept", left, right))
	if strings.TrimSpace(out) != "500" {
		t.Fatal(out)
	}
	snap, err := s.client(t).Snapshot(t.Context(), sb.ID, "")
	must(t, err)
	for range 2 { // the second pause refers to the first
		must(t, sb.Pause(t.Context()))
		if !found(t, secret, plain) {
			t.Error("it is not even in the files in memory: the test looks for the wrong thing")
		}
		_, err = s.client(t).Connect(t.Context(), sb.ID, time.Minute)
		must(t, err)
		sh(t, sb, "cat /root/kept > /root/again")
	}
	_, err = s.client(t).Rollback(t.Context(), sb.ID, snap.ID)
	must(t, err)
	must(t, sb.Pause(t.Context()))

	// As after a reboot, nothing is left but what is encrypted.
	if out, err := s.hearth("down", "--data", s.data).CombinedOutput(); err != nil {
		t.Fatalf("down: %v\n%s", err, out)
	}
	if left, err := os.ReadDir(plain); err != nil || len(left) > 0 {
		t.Errorf("memory still has %v: %v", left, err)
	}
	s.up(t)
	_, err = s.client(t).Connect(t.Context(), sb.ID, time.Minute)
	must(t, err)
	if out := sh(t, sb, fmt.Sprintf("sort -u /root/kept /dev/shm/kept | grep -c '^%s%s$'; wc -l < /root/kept", left, right)); out != "1\n500\n" {
		t.Errorf("after that: %q", out)
	}
	must(t, sb.Kill(t.Context()))
	unix.Sync()
	if found(t, secret, disk) {
		t.Error("the disk has what was in the sandbox")
	}
}

// onDiskOfItsOwn mounts a new file system in a file as the server's data directory
// and returns the file.
func onDiskOfItsOwn(t *testing.T, s *server) string {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(disk, nil, 0o600))
	must(t, os.Truncate(disk, 5<<30))
	for _, line := range [][]string{{"mkfs.ext4", "-q", "-F", disk}, {"mount", "-o", "loop", disk, s.data}} {
		if out, err := exec.Command(line[0], line[1:]...).CombinedOutput(); err != nil {
			t.Skipf("%s: %v: %s", strings.Join(line, " "), err, out)
		}
	}
	data := s.data
	t.Cleanup(func() { must(t, unix.Unmount(data, 0)) })
	t.Cleanup(func() { // before the mount goes
		if out, err := s.hearth("down", "--data", data).CombinedOutput(); err != nil {
			t.Errorf("down: %v\n%s", err, out)
		}
		if t.Failed() {
			t.Logf("server log:\n%s", tail(filepath.Join(data, "hearth.log"), 16<<10))
		}
		s.data = t.TempDir() // for prepare's own down, which has nothing left to do
		must(t, os.Mkdir(filepath.Join(s.data, "node"), 0o700))
	})
	return disk
}

// found reports whether a file, or one below a directory, has some bytes.
func found(t *testing.T, what []byte, root string) (yes bool) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // the server is at work
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer f.Close()
		in := bufio.NewReaderSize(f, 4<<20)
		for {
			chunk, err := in.Peek(4 << 20)
			if bytes.Contains(chunk, what) {
				yes = true
				return fs.SkipAll
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if _, err := in.Discard(len(chunk) - len(what)); err != nil {
				return err
			}
		}
	})
	must(t, err)
	return yes
}
