package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"hearth/internal/hearth"
)

// system is the least root file system that provision accepts.
func system(extra ...entry) []entry {
	return append([]entry{
		{name: "bin/bash", body: "#!", mode: 0o755},
		{name: "etc/passwd", body: "root:x:0:0:root:/root:/bin/bash\nubuntu:x:1000:1000::/home/ubuntu:/bin/bash"},
		{name: "etc/group", body: "root:x:0:\n"},
		{name: "etc/skel/.profile", body: "# profile\n"},
		{name: "usr/bin/sudo", body: "#!", mode: 0o4755},
		{name: "usr/bin/python3", body: "#!", mode: 0o755},
		{name: "usr/lib/python3.11/EXTERNALLY-MANAGED", body: "no"},
		{name: "etc/resolv.conf", typ: tar.TypeSymlink, link: "/run/systemd/resolve/stub-resolv.conf"},
		{name: "usr/local/lib/x", body: "x"},
	}, extra...)
}

func tarball(t *testing.T, list ...entry) *Tarball {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rootfs.tar")
	if err := os.WriteFile(path, archive(t, list...), 0o600); err != nil {
		t.Fatal(err)
	}
	return NewTarball(path, DefaultLimits())
}

func TestProvision(t *testing.T) {
	needs(t)
	dir := t.TempDir()
	if _, err := unpackInto(t, dir, DefaultLimits(), false, archive(t, system()...)); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for range 2 { // also of what is provisioned already
		if err := provision(root); err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string) string {
		raw, err := root.ReadFile(name)
		if err != nil {
			t.Error(err)
		}
		return string(raw)
	}
	if got := read("etc/passwd"); strings.Count(got, "user:x:1001:1001::/home/user:/bin/bash\n") != 1 { // 1000 is taken
		t.Errorf("passwd:\n%s", got)
	}
	if got := read("etc/sudoers.d/90-hearth"); !strings.Contains(got, "NOPASSWD") {
		t.Errorf("sudoers: %s", got)
	}
	if read("etc/resolv.conf") != "" || read("home/user/.profile") != "# profile\n" {
		t.Error("resolv.conf or .profile is wrong")
	}
	if target, err := root.Readlink("usr/bin/python"); err != nil || target != "python3" {
		t.Errorf("python: %q, %v", target, err)
	}
	if exists(root, "usr/lib/python3.11/EXTERNALLY-MANAGED") {
		t.Error("pip is still forbidden")
	}
	for _, name := range []string{"home/user/.profile", "usr/local/lib/x"} {
		fi, err := root.Lstat(name)
		if err != nil || fi.Sys().(*syscall.Stat_t).Uid != 1001 {
			t.Errorf("%s: %v, %v", name, fi, err)
		}
	}
	if fi, err := root.Lstat("tmp"); err != nil || fi.Mode()&os.ModeSticky == 0 || fi.Mode().Perm() != 0o777 {
		t.Errorf("tmp: %v, %v", fi, err)
	}
}

func TestProvisionRefuses(t *testing.T) {
	for name, list := range map[string][]entry{
		"no shell":         {{name: "etc/passwd", body: "x"}},
		"passwd is a link": system(entry{name: "etc/passwd", typ: tar.TypeSymlink, link: "/etc/shadow"}),
		"passwd too big":   system(entry{name: "etc/passwd", body: strings.Repeat("x", maxEtc+1)}),
		"bad uid":          system(entry{name: "etc/passwd", body: "user:x:-5:1:::"}),
		"tmp is a file":    system(entry{name: "tmp", body: "x"}),
	} {
		t.Run(name, func(t *testing.T) {
			needs(t)
			_, err := NewMaker(NewCache(t.TempDir())).Make(t.Context(), tarball(t, list...), nil)
			if k := hearth.KindOf(err); k != hearth.InvalidArgument && k != hearth.FailedPrecondition {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestMake(t *testing.T) {
	needs(t, "mkfs.erofs", "fsck.erofs")
	src := tarball(t, system()...)
	a, err := NewMaker(NewCache(t.TempDir())).Make(t.Context(), src, nil)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("fsck.erofs", a.Path).CombinedOutput(); err != nil {
		t.Errorf("fsck.erofs: %v\n%s", err, out)
	}
	if fi, err := os.Stat(a.Path); err != nil || fi.Size() != a.Bytes {
		t.Errorf("size %v, %v; want %d", fi, err, a.Bytes)
	}
	if list, _ := filepath.Glob(filepath.Join(filepath.Dir(a.Path), ".*")); len(list) != 0 {
		t.Errorf("left: %v", list)
	}
}

func TestErofsIsReproducible(t *testing.T) {
	needs(t, "mkfs.erofs", "dump.erofs")
	dir, out := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o640); err != nil {
		t.Fatal(err)
	}
	a, err := Erofs(t.Context(), dir, filepath.Join(out, "a"), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Erofs(t.Context(), dir, filepath.Join(out, "b"), nil)
	if err != nil || a.SHA256 != b.SHA256 || a.UUID != b.UUID {
		t.Errorf("%+v and %+v differ: %v", a, b, err)
	}
	dump, err := exec.Command("dump.erofs", "-s", a.Path).CombinedOutput()
	if err != nil || !strings.Contains(string(dump), a.UUID) {
		t.Errorf("superblock: %v\n%s", err, dump)
	}
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("y"), 0o640); err != nil {
		t.Fatal(err)
	}
	c, err := Erofs(t.Context(), dir, filepath.Join(out, "c"), nil)
	if err != nil || c.UUID == a.UUID {
		t.Errorf("another content has the same UUID: %v", err)
	}
	if _, err := Erofs(t.Context(), dir, filepath.Join(out, "c"), nil); hearth.KindOf(err) != hearth.AlreadyExists {
		t.Errorf("overwrote an image: %v", err)
	}
}

func TestGuestErofs(t *testing.T) {
	needs(t, "mkfs.erofs", "dump.erofs")
	out := t.TempDir()
	a, err := GuestErofs(t.Context(), []byte("#!"), filepath.Join(out, "a"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := GuestErofs(t.Context(), []byte("#!"), filepath.Join(out, "b"))
	if err != nil || a.SHA256 != b.SHA256 {
		t.Errorf("not reproducible: %v", err)
	}
	dump, err := exec.Command("dump.erofs", "--path=/hearth-guest", a.Path).CombinedOutput()
	if err != nil || !strings.Contains(string(dump), "0755") {
		t.Errorf("%v\n%s", err, dump)
	}
	if list, _ := os.ReadDir(out); len(list) != 2 {
		t.Errorf("left: %v", list)
	}
}

// TestDiskFull packs into a file system that is too small, at every stage.
func TestDiskFull(t *testing.T) {
	needs(t, "mkfs.erofs")
	noise := make([]byte, 3<<20)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	src := tarball(t, system(entry{name: "big", body: string(noise)})...)
	for name, size := range map[string]string{"unpacking": "size=2m", "packing": "size=5m"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := syscall.Mount("none", dir, "tmpfs", 0, size); err != nil {
				t.Skipf("skipped: cannot mount a tmpfs: %v", err)
			}
			defer func() {
				if err := syscall.Unmount(dir, 0); err != nil {
					t.Error(err)
				}
			}()
			_, err := NewMaker(NewCache(dir)).Make(t.Context(), src, nil)
			if hearth.KindOf(err) != hearth.ResourceExhausted || !strings.Contains(err.Error(), "is full") {
				t.Errorf("error %v", err)
			}
			list, _ := os.ReadDir(dir)
			for _, f := range list {
				if !strings.HasSuffix(f.Name(), ".lock") {
					t.Errorf("left: %s", f.Name())
				}
			}
		})
	}
}

func TestCache(t *testing.T) {
	dir := t.TempDir()
	var fills atomic.Int32
	fill := func(_ context.Context, out string) error {
		fills.Add(1)
		return os.WriteFile(out, []byte("content"), 0o600)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { // two caches on one directory are as two processes
			if _, err := NewCache(dir).Take(t.Context(), "k", fill); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if fills.Load() != 1 {
		t.Errorf("filled %d times", fills.Load())
	}
	c := NewCache(dir)
	e, err := c.Take(t.Context(), "k", fill)
	if err != nil || e.Bytes != 7 {
		t.Fatalf("%+v, %v", e, err)
	}
	// A flipped bit is noticed, and the entry made anew.
	if err := os.WriteFile(e.Path, []byte("cOntent"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Take(t.Context(), "k", fill); err != nil || fills.Load() != 2 {
		t.Errorf("a damaged entry was taken: %v", err)
	}
	// What fails leaves nothing.
	boom := errors.New("boom")
	_, err = c.Take(t.Context(), "bad", func(_ context.Context, out string) error { return errors.Join(os.WriteFile(out, nil, 0o600), boom) })
	if !errors.Is(err, boom) {
		t.Errorf("error %v", err)
	}
	// A crash's leftovers go; those of a living maker, and fresh entries, stay.
	for _, d := range []string{".k-123", ".held-456"} {
		if err := os.MkdirAll(filepath.Join(dir, d, "root"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	unlock, err := c.lock(t.Context(), "held")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	aged := time.Now().Add(-2 * unusedFor)
	if _, err := c.Take(t.Context(), "aged", fill); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(filepath.Join(dir, "aged.lock"), aged, aged); err != nil {
		t.Fatal(err)
	}
	if err := NewCache(dir).Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	var names []string
	list, _ := os.ReadDir(dir)
	for _, f := range list {
		names = append(names, f.Name())
	}
	if want := []string{".held-456", "bad.lock", "held.lock", "k", "k.json", "k.lock"}; !slices.Equal(names, want) {
		t.Errorf("left %v, want %v", names, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Take(ctx, "held", fill); !errors.Is(err, context.Canceled) {
		t.Errorf("a wait for a lock did not end: %v", err)
	}
}

func TestToolsFail(t *testing.T) {
	err := run(t.Context(), command{name: "no-such-tool", pkg: "tools"})
	if hearth.KindOf(err) != hearth.FailedPrecondition || !strings.Contains(err.Error(), "apt-get install tools") {
		t.Errorf("error %v", err)
	}
	err = run(t.Context(), command{name: "bash", args: []string{"-c", "echo E: no route to http://me:secret@host/x; echo more; exit 3"}})
	if err == nil || !strings.HasPrefix(err.Error(), "bash failed: E: no route to http://host/x") || strings.Contains(err.Error(), "secret") {
		t.Errorf("error %v", err)
	}
	var buf bytes.Buffer
	if _, err := (&capped{w: &buf, left: 3}).Write([]byte("12345")); err != nil || buf.String() != "123" {
		t.Errorf("%q, %v", buf.String(), err)
	}
}

// TestKilledToolLeavesNoChild ends a tool that has started another.
func TestKilledToolLeavesNoChild(t *testing.T) {
	needs(t, "unshare")
	ctx, cancel := context.WithCancel(t.Context())
	child := make(chan string, 1)
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, command{name: "bash", args: []string{"-c", "sleep 1000 & echo started; wait"}, alone: offline, line: func(s string) { child <- s }})
	}()
	<-child
	cancel()
	select {
	case err := <-done: // its output ends only when the child, too, is dead
		if !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	case <-time.After(graceAfterKill - time.Second):
		t.Error("a child outlived its tool")
	}
}
