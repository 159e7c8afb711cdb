package drivertest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"hearth/internal/driver"
	"hearth/internal/hearth"
)

const silence = 300 * time.Millisecond

// wantSilence fails when a frozen guest answers.
func wantSilence(t *testing.T, m driver.Machine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), silence)
	defer cancel()
	if answer, err := Open(m).Ask(ctx, "GET", "/ticks", nil); err == nil {
		t.Errorf("a frozen guest answered %q", answer)
	}
}

func freezeThaw(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	g := Open(m)
	began := time.Now() // before it counts: what it lives through until it is heard is life, too
	before := g.number(t, "/ticks")
	ok(t, "Freeze", m.Freeze(t.Context()))
	awake := time.Since(began)
	wantSilence(t, m)
	thawed := time.Now()
	ok(t, "Thaw", m.Thaw(t.Context()))
	after := g.number(t, "/ticks")
	awake += time.Since(thawed)
	if lived := time.Duration(after-before) * 10 * time.Millisecond; lived > awake+silence/2 {
		t.Errorf("the guest counted %s of life in %s, while it was frozen for %s", lived, awake, silence)
	}
	if env.Kernel && g.number(t, "/ticks") < after {
		t.Error("the guest's count went back")
	}
}

func freezeIdempotent(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	Open(m).number(t, "/ticks")
	ok(t, "Thaw of the running", m.Thaw(t.Context()))
	for range 3 {
		ok(t, "Freeze", m.Freeze(t.Context()))
	}
	ok(t, "Thaw", m.Thaw(t.Context()))
	Open(m).number(t, "/ticks")
	ok(t, "second Thaw", m.Thaw(t.Context()))
	Open(m).number(t, "/ticks")
}

func checkpointNeedsFrozen(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	Open(m).number(t, "/ticks")
	_, err := m.Checkpoint(t.Context(), t.TempDir())
	wantKind(t, "Checkpoint of a running machine", err, hearth.FailedPrecondition)
	Open(m).number(t, "/ticks")
}

// take freezes and checkpoints a machine.
func take(t *testing.T, m driver.Machine) *driver.Checkpoint {
	t.Helper()
	ok(t, "Freeze", m.Freeze(t.Context()))
	dir := t.TempDir()
	c, err := m.Checkpoint(t.Context(), dir)
	ok(t, "Checkpoint", err)
	if c.Dir != dir || c.Key == "" || c.Driver == "" || len(c.Files) == 0 {
		t.Fatalf("checkpoint %+v is not complete", c)
	}
	for _, name := range c.Files {
		if filepath.Base(name) != name {
			t.Errorf("file %q is no plain name", name)
		}
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != len(c.Files) {
		t.Errorf("directory holds %v, the checkpoint names %v", entries, c.Files)
	}
	return c
}

func checkpointKeepsFrozen(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	Open(m).post(t, "/memory", "key", "k", "value", "kept")
	take(t, m)
	wantSilence(t, m)
	take(t, m) // and once more
	ok(t, "Thaw", m.Thaw(t.Context()))
	if got := Open(m).get(t, "/memory", "key", "k"); got != "kept" {
		t.Errorf("memory after the thaw: %q", got)
	}
}

func failedCheckpoint(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	Open(m).number(t, "/ticks")
	ok(t, "Freeze", m.Freeze(t.Context()))
	if _, err := m.Checkpoint(t.Context(), filepath.Join(t.TempDir(), "gone")); err == nil {
		t.Fatal("Checkpoint into a missing directory succeeded")
	}
	ok(t, "Thaw", m.Thaw(t.Context()))
	Open(m).number(t, "/ticks")
}

// restore starts a machine from a checkpoint.
func restore(t *testing.T, env Env, c *driver.Checkpoint) driver.Machine {
	t.Helper()
	spec := env.Spec(t)
	spec.From = c
	return start(t, env.Driver(t), spec)
}

func restoreKeeps(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	g := Open(m)
	g.post(t, "/memory", "key", "k", "value", "in memory")
	g.post(t, "/file", "path", "/root/f", "value", "on disk")
	g.post(t, "/file", "path", "/tmp/f", "value", "in tmp")
	c := take(t, m)
	closeNow(t, m)
	clone := Open(restore(t, env, c))
	for path, want := range map[string]string{"/root/f": "on disk", "/tmp/f": "in tmp"} {
		if got := clone.get(t, "/file", "path", path); got != want {
			t.Errorf("%s after the restore: %q, want %q", path, got, want)
		}
	}
	if got := clone.get(t, "/memory", "key", "k"); got != "in memory" {
		t.Errorf("memory after the restore: %q", got)
	}
}

func twoRestores(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	Open(m).post(t, "/file", "path", "/root/f", "value", "parent")
	c := take(t, m)
	a, b := Open(restore(t, env, c)), Open(restore(t, env, c))
	ok(t, "Thaw", m.Thaw(t.Context()))
	a.post(t, "/file", "path", "/root/f", "value", "a")
	b.post(t, "/memory", "key", "k", "value", "b")
	for name, got := range map[string][2]string{
		"a's file":       {a.get(t, "/file", "path", "/root/f"), "a"},
		"b's file":       {b.get(t, "/file", "path", "/root/f"), "parent"},
		"parent's file":  {Open(m).get(t, "/file", "path", "/root/f"), "parent"},
		"a's memory":     {a.get(t, "/memory", "key", "k"), ""},
		"b's memory":     {b.get(t, "/memory", "key", "k"), "b"},
		"parents memory": {Open(m).get(t, "/memory", "key", "k"), ""},
	} {
		if got[0] != got[1] {
			t.Errorf("%s is %q, want %q", name, got[0], got[1])
		}
	}
}

func clockAfterRestore(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	monotonic := Open(m).number(t, "/monotonic")
	c := take(t, m)
	closeNow(t, m)
	<-time.After(1500 * time.Millisecond) // so that a clock that stood still shows
	oneInThree(t, func() error {
		clone := Open(restore(t, env, c))
		asked := time.Now()
		guest := time.Unix(0, clone.number(t, "/clock"))
		if behind, ahead := asked.Sub(guest), time.Until(guest); behind > time.Second || ahead > time.Second {
			return fmt.Errorf("the guest's clock is behind by at least %s, or ahead by %s", behind, ahead)
		}
		if now := clone.number(t, "/monotonic"); now < monotonic {
			t.Errorf("the guest's monotonic clock went back from %d to %d", monotonic, now)
		}
		return nil
	})
}

// twoStarts: of many who start one machine from a checkpoint at once, one gets
// it, and the others are told that it is there. What they did leaves nothing.
func twoStarts(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	Open(m).post(t, "/memory", "key", "k", "value", "kept")
	c := take(t, m)
	closeNow(t, m)
	spec := env.Spec(t)
	spec.From = c
	dirs := []string{spec.Dir, env.Spec(t).Dir, env.Spec(t).Dir}
	got := make(chan driver.Machine, len(dirs))
	var all sync.WaitGroup
	for _, dir := range dirs {
		all.Go(func() {
			one := spec
			one.Dir = dir
			m, err := env.Driver(t).Start(t.Context(), one)
			switch {
			case err == nil:
				got <- m
			case hearth.KindOf(err) != hearth.AlreadyExists:
				t.Errorf("a start beside another: %v, want %s", err, hearth.AlreadyExists)
			default:
				wantEmpty(t, dir)
			}
		})
	}
	all.Wait()
	close(got)
	if len(got) != 1 {
		t.Errorf("%d machines were started", len(got))
	}
	for m := range got {
		if word := Open(m).get(t, "/memory", "key", "k"); word != "kept" {
			t.Errorf("the machine remembers %q", word)
		}
		closeNow(t, m)
	}
}

// wrongKey: a checkpoint of another driver, version, processor or kernel, which
// its key names, is refused before anything runs, however little differs.
func wrongKey(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	Open(m).number(t, "/ticks")
	good := take(t, m)
	spoilt := map[string]driver.Checkpoint{}
	for _, key := range []string{"another host", "", good.Key + "x", good.Key[1:], good.Key[:len(good.Key)-1], strings.ToUpper(good.Key) + "."} {
		c := *good
		c.Key = key
		spoilt["key "+key] = c
	}
	other := *good
	other.Driver = "another driver"
	spoilt["driver"] = other
	for name, c := range spoilt {
		spec := env.Spec(t)
		spec.From = &c
		_, err := env.Driver(t).Start(t.Context(), spec)
		wantKind(t, "Start from a checkpoint with another "+name, err, hearth.FailedPrecondition)
		if !strings.Contains(err.Error(), "checkpoint") {
			t.Errorf("%s: the reason does not speak of the checkpoint: %v", name, err)
		}
		wantEmpty(t, spec.Dir)
	}
}

// damaged: a checkpoint of which a file is missing or cut short never becomes a
// machine that answers, and leaves nothing. Bits that flipped are found before,
// by whoever keeps the files.
func damaged(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	Open(m).number(t, "/ticks")
	good := take(t, m)
	closeNow(t, m)
	for _, name := range good.Files {
		for what, spoil := range map[string]func(string) error{
			"without": os.Remove,
			"half of": func(path string) error {
				info, err := os.Stat(path)
				if err != nil {
					return err
				}
				return os.Truncate(path, info.Size()/2)
			},
		} {
			c := *good
			c.Dir = t.TempDir()
			ok(t, "CopyFS", os.CopyFS(c.Dir, os.DirFS(good.Dir)))
			ok(t, what+" "+name, spoil(filepath.Join(c.Dir, name)))
			spec := env.Spec(t)
			spec.From = &c
			began, err := env.Driver(t).Start(t.Context(), spec)
			if err == nil {
				t.Errorf("a machine starts from a checkpoint %s %s", what, name)
				closeNow(t, began)
				continue
			}
			if errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Start from a checkpoint %s %s: %v", what, name, err)
			}
			wantEmpty(t, spec.Dir)
		}
	}
}
