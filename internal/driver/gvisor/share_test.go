package gvisor_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/driver"
	"hearth/internal/driver/gvisor"
	"hearth/internal/hearth"
)

func evict(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	must(t, f.Sync()) // pages that are not written yet stay
	must(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
}

// sharingLab is a lab of a build whose machines share memory.
func sharingLab(t *testing.T) *world {
	t.Helper()
	l := newLab(t)
	if !caps(t, l.driver(t)).SharedMemory {
		t.Skip("gvisor: built without our patches, machines share no memory")
	}
	return &world{l: l.python(t)}
}

// A checkpoint stands alone when its base is gone, when sharing is off, and when
// there would be too many layers; it is then as good as any.
func TestCheckpointThatStandsAlone(t *testing.T) {
	w := sharingLab(t)
	base := w.seed(t)

	t.Run("base gone", func(t *testing.T) {
		m := w.start(t, w.l.driver(t), base, 0)
		copyOf := *base
		copyOf.Dir = filepath.Join(w.l.dir, "copy") // the base, once the original is removed
		must(t, os.MkdirAll(copyOf.Dir, 0o700))
		for _, name := range base.Files {
			install(t, filepath.Join(base.Dir, name), filepath.Join(copyOf.Dir, name))
		}
		must(t, os.RemoveAll(base.Dir))
		base = &copyOf
		c := m.take(t)
		if c.Base != nil {
			t.Fatalf("checkpoint refers to %s, which was removed", c.Base.Dir)
		}
		must(t, m.Close(t.Context()))
		clone := w.start(t, w.l.driver(t), c, 0)
		clone.play(t)
		// and from its own pages the next one grows layers again
		next := clone.take(t)
		if next.Base == nil {
			t.Fatal("the next checkpoint stands alone too")
		}
		w.start(t, w.l.driver(t), next, 1).play(t)
	})

	t.Run("sharing off", func(t *testing.T) {
		cfg := w.l.config(t)
		cfg.Unshared = true
		d, err := gvisor.New(cfg)
		must(t, err)
		m := w.start(t, d, base, 0)
		m.play(t)
		c := m.take(t)
		if c.Base != nil {
			t.Fatalf("checkpoint refers to %s without sharing", c.Base.Dir)
		}
		w.start(t, w.l.driver(t), c, 1).play(t)
	})

	t.Run("depth", func(t *testing.T) {
		c, depth := base, 1
		for ; ; depth++ {
			m := w.start(t, w.l.driver(t), c, 0)
			next := m.take(t)
			must(t, m.Close(t.Context()))
			if next.Base == nil {
				c = next
				break
			}
			next.Base, c = c, next
			if depth > driver.MaxLayers {
				t.Fatalf("a checkpoint of %d layers", depth)
			}
		}
		if depth != driver.MaxLayers {
			t.Errorf("written whole after %d layers, not %d", depth, driver.MaxLayers)
		}
		w.start(t, w.l.driver(t), c, 0).play(t)
	})
}

// A base that is not what it was is noticed before anything is built on it.
func TestBaseThatWasChanged(t *testing.T) {
	w := sharingLab(t)
	base := w.seed(t)
	file := filepath.Join(base.Dir, "pages.img")
	if info, err := os.Stat(file); err != nil || info.Mode().Perm()&0o222 != 0 {
		t.Errorf("%s may be written to: %v, %v", file, info.Mode(), err)
	}
	m := w.start(t, w.l.driver(t), base, 0)
	c := m.take(t)
	c.Base = base

	t.Run("another base", func(t *testing.T) {
		other := w.seed(t)
		wrong := *c
		wrong.Base = other
		refused(t, w, &wrong, hearth.FailedPrecondition)
		wrong.Base = nil
		refused(t, w, &wrong, hearth.FailedPrecondition)
	})
	t.Run("changed under a machine", func(t *testing.T) {
		must(t, os.Chmod(file, 0o600))
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteAt([]byte("changed"), 0)
		must(t, err)
		must(t, f.Close())
		if _, err := m.Checkpoint(t.Context(), t.TempDir()); hearth.KindOf(err) != hearth.FailedPrecondition {
			t.Errorf("checkpoint over a changed base: %v", err)
		}
		must(t, m.Thaw(t.Context())) // it can be thawed all the same
		if _, err := m.ask(t, "GET", "/ticks", nil); err != nil {
			t.Error(err)
		}
	})
	t.Run("cut short under a machine", func(t *testing.T) {
		must(t, os.Truncate(file, 4096))
		// Memory that is missing ends the guest's processes with SIGBUS, the
		// first one of which ends the machine.
		err := m.Freeze(t.Context())
		if err == nil {
			_, err = m.Checkpoint(t.Context(), t.TempDir())
		}
		if k := hearth.KindOf(err); k != hearth.FailedPrecondition && k != hearth.NotFound {
			t.Errorf("checkpoint over a base that was cut short: %v", err)
		}
		must(t, m.Close(t.Context()))
	})
	t.Run("cut short before a start", func(t *testing.T) {
		refused(t, w, c, hearth.FailedPrecondition)
		refused(t, w, base, hearth.FailedPrecondition)
	})
}

func refused(t *testing.T, w *world, from *driver.Checkpoint, kind hearth.Kind) {
	t.Helper()
	w.number++
	spec := w.l.spec(t, "conf-refused-"+strconv.Itoa(w.number), 150+w.number)
	spec.Resources.MemoryMiB = 256
	spec.From = from
	m, err := w.l.driver(t).Start(t.Context(), spec)
	if err == nil {
		_ = m.Close(t.Context())
	}
	if hearth.KindOf(err) != kind {
		t.Errorf("started from it: %v", err)
	}
}

// At its memory limit a machine gives base pages back that its processes have
// mapped, rather than being killed, and reads them again.
func TestBasePagesAreReclaimed(t *testing.T) {
	w := sharingLab(t)
	base := w.seed(t)
	dropCaches(t, base)
	m := w.start(t, w.l.driver(t), base, 0)
	m.play(t)
	dir, used, limit := "/sys/fs/cgroup"+cgroups+"/"+m.Handle().ID, "memory.current", "memory.max"
	if _, err := os.Stat(dir); err != nil {
		dir, used, limit = "/sys/fs/cgroup/memory"+cgroups+"/"+m.Handle().ID, "memory.usage_in_bytes", "memory.limit_in_bytes"
	}
	read := func(name string) int64 {
		raw, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
		must(t, err)
		return n
	}
	set := func(n int64) {
		t.Helper()
		again := time.NewTicker(50 * time.Millisecond)
		defer again.Stop()
		for deadline := time.Now().Add(time.Minute); ; <-again.C {
			err := os.WriteFile(filepath.Join(dir, limit), []byte(strconv.FormatInt(n, 10)), 0)
			if errors.Is(err, unix.EBUSY) && time.Now().Before(deadline) {
				continue // pages that were just read are spared at the first look
			}
			must(t, err)
			return
		}
	}
	before, full := read(limit), read(used)
	less := full - pages(t, base)/4
	set(less) // with version 1 it is an error, EBUSY, if there is nothing to give back
	if now := read(used); now > less {
		t.Errorf("%d bytes are used at a limit of %d", now, less)
	}
	set(before)
	m.play(t) // all of its memory is looked at
	select {
	case <-m.Done():
		t.Errorf("the machine ended: %+v", m.Exit())
	default:
	}
}

// What a machine uses says what is its own: a fraction of what one does that
// shares nothing.
func TestUsageLeavesSharedPagesOut(t *testing.T) {
	w := sharingLab(t)
	base := w.seed(t)
	cfg := w.l.config(t)
	cfg.Unshared = true
	plain, err := gvisor.New(cfg)
	must(t, err)
	used := func(d driver.Driver) int64 {
		m := w.start(t, d, base, 0)
		if _, err := m.ask(t, "GET", "/ticks", nil); err != nil {
			t.Fatal(err)
		}
		u, err := m.Usage(t.Context())
		must(t, err)
		return u.Memory
	}
	alone, shared := used(plain), used(w.l.driver(t))
	t.Logf("%d bytes with sharing, %d without, of %d bytes of pages", shared, alone, pages(t, base))
	if saved := alone - shared; saved < pages(t, base)/2 {
		t.Errorf("%d bytes with sharing, %d without, of %d bytes of pages", shared, alone, pages(t, base))
	}
}

// What one machine did spares the next most of its copies, and is as right.
func TestLessonSparesCopies(t *testing.T) {
	w := sharingLab(t)
	base := w.seed(t)
	known := func() (n int64) {
		files, err := filepath.Glob(filepath.Join(w.l.dir, "run", "hot", "*"))
		must(t, err)
		if len(files) != 1 {
			t.Fatalf("lessons: %v", files)
		}
		raw, err := os.ReadFile(files[0])
		must(t, err)
		var lesson struct{ Hot []int64 }
		must(t, json.Unmarshal(raw, &lesson))
		for hot := lesson.Hot; len(hot) > 0; hot = hot[2:] {
			n += hot[1] - hot[0]
		}
		return n
	}
	used := func() int64 {
		m := w.start(t, w.l.driver(t), base, 0)
		if _, err := m.ask(t, "GET", "/ticks", nil); err != nil {
			t.Fatal(err)
		}
		u, err := m.Usage(t.Context())
		must(t, err)
		m.play(t)
		must(t, m.Close(t.Context()))
		return u.Memory
	}
	before := used()
	n := known()
	after := used()
	t.Logf("%d bytes are known to be written; a machine starts with %d bytes, and with %d before that was known", n, after, before)
	if n < 1<<20 || after < before+n/2 {
		t.Errorf("%d bytes are known to be written; a machine starts with %d bytes, and with %d before that was known", n, after, before)
	}
}

// A checkpoint of a restored machine for which there is no room leaves the
// machine as it was: it goes on, and the next one is layered and whole.
func TestFailedLayeredCheckpoint(t *testing.T) {
	w := sharingLab(t)
	base := w.seed(t)
	m := w.start(t, w.l.driver(t), base, 0)
	full := filepath.Join(w.l.dir, "full")
	must(t, os.Mkdir(full, 0o700))
	must(t, unix.Mount("tmpfs", full, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { must(t, unix.Unmount(full, unix.MNT_DETACH)) })
	for dir, kind := range map[string]hearth.Kind{full: hearth.ResourceExhausted, filepath.Join(w.l.dir, "missing"): hearth.Internal} {
		must(t, m.Freeze(t.Context()))
		if _, err := m.Checkpoint(t.Context(), dir); hearth.KindOf(err) != kind {
			t.Errorf("checkpoint into %s: %v", filepath.Base(dir), err)
		}
		must(t, m.Thaw(t.Context()))
		m.play(t)
	}
	c := m.take(t)
	if c.Base == nil {
		t.Error("after a failure the checkpoint stands alone")
	}
	must(t, m.Close(t.Context()))
	w.start(t, w.l.driver(t), c, m.generation).play(t)
}

// A sandbox that is killed while its layered checkpoint is written leaves
// nothing, and its base as it was.
func TestKillWhileACheckpointIsWritten(t *testing.T) {
	w := sharingLab(t)
	base := w.seed(t)
	content, before := sums(t, base), w.l.count(t)
	t.Run("kills", func(t *testing.T) {
		for _, after := range []time.Duration{0, 3, 10, 30, 60} {
			m := w.start(t, w.l.driver(t), base, 0)
			if _, err := m.ask(t, "GET", "/ticks", nil); err != nil {
				t.Fatal(err)
			}
			must(t, m.Freeze(t.Context()))
			result := make(chan error, 1)
			go func() {
				_, err := m.Checkpoint(context.WithoutCancel(t.Context()), t.TempDir())
				result <- err
			}()
			<-time.After(after * time.Millisecond)
			must(t, unix.Kill(pidOf(t, m), unix.SIGKILL))
			if err := <-result; err != nil && hearth.KindOf(err) != hearth.NotFound && hearth.KindOf(err) != hearth.Internal {
				t.Errorf("killed after %d ms: %v", after, err)
			}
			<-m.Done()
			must(t, m.Close(t.Context()))
		}
	})
	w.l.settles(t, before)
	if sums(t, base) != content {
		t.Error("the base was changed")
	}
}
