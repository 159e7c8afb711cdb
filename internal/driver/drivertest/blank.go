package drivertest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// prepare makes a blank that the test closes.
func prepare(t *testing.T, d driver.Driver, spec driver.Spec) driver.Blank {
	t.Helper()
	b, err := d.(driver.Preparer).Prepare(t.Context(), spec)
	ok(t, "Prepare", err)
	t.Cleanup(func() { closeBlank(t, b) })
	return b
}

func closeBlank(t *testing.T, b driver.Blank) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ok(t, "Close of a blank", b.Close(ctx))
}

// warm is a checkpoint of a machine that knows a word.
func warm(t *testing.T, env Env) *driver.Checkpoint {
	t.Helper()
	m := start(t, env.Driver(t), env.Spec(t))
	Open(m).post(t, "/memory", "key", "k", "value", "warm")
	ok(t, "Freeze", m.Freeze(t.Context()))
	c := take(t, m)
	closeNow(t, m)
	return c
}

func wantGone(t *testing.T, dir string) {
	t.Helper()
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 || err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v holds %v", dir, err, entries)
	}
}

// blankIsRestored: what comes of a blank is a machine like any other.
func blankIsRestored(t *testing.T, env Env) {
	c, d := warm(t, env), env.Driver(t)
	spec := env.Spec(t)
	b := prepare(t, d, spec)
	if b.Memory() <= 0 {
		t.Errorf("a blank holds %d bytes", b.Memory())
	}
	m, err := b.Restore(t.Context(), c)
	ok(t, "Restore", err)
	t.Cleanup(func() { closeNow(t, m) })
	closeBlank(t, b) // nothing to it any more
	if h := m.Handle(); h.ID != spec.ID || h.Dir != spec.Dir || h.Driver != d.Name() {
		t.Errorf("handle %+v is not of spec %+v", h, spec)
	}
	if got := Open(m).get(t, "/memory", "key", "k"); got != "warm" {
		t.Errorf("memory %q", got)
	}
	Open(m).post(t, "/memory", "key", "k", "value", "changed")
	ok(t, "Freeze", m.Freeze(t.Context()))
	next := take(t, m)
	attached, err := env.Driver(t).Attach(t.Context(), m.Handle())
	ok(t, "Attach", err)
	ok(t, "Thaw", attached.Thaw(t.Context()))
	again, err := prepare(t, d, env.Spec(t)).Restore(t.Context(), next)
	ok(t, "Restore of its own checkpoint", err)
	for _, m := range []driver.Machine{attached, again} {
		if got := Open(m).get(t, "/memory", "key", "k"); got != "changed" {
			t.Errorf("memory %q", got)
		}
	}
	closeNow(t, again)
	closeNow(t, m)
	if _, err := os.Stat(spec.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the spec's directory is still there: %v", err)
	}
}

// blankIsUsedOnce: of all who want one blank, one gets a machine.
func blankIsUsedOnce(t *testing.T, env Env) {
	c := warm(t, env)
	b := prepare(t, env.Driver(t), env.Spec(t))
	machines, errs := make([]driver.Machine, 4), make([]error, 4)
	var all sync.WaitGroup
	for i := range machines {
		all.Go(func() { machines[i], errs[i] = b.Restore(t.Context(), c) })
	}
	all.Wait()
	won := 0
	for i, m := range machines {
		if errs[i] != nil {
			wantKind(t, "another Restore", errs[i], hearth.FailedPrecondition)
			continue
		}
		won++
		if got := Open(m).get(t, "/memory", "key", "k"); got != "warm" {
			t.Errorf("memory %q", got)
		}
		closeNow(t, m)
	}
	if won != 1 {
		t.Errorf("%d machines of one blank", won)
	}
}

// blankIsClosed: closing is idempotent, and ends it.
func blankIsClosed(t *testing.T, env Env) {
	c, d := warm(t, env), env.Driver(t)
	spec := env.Spec(t)
	withState := spec
	withState.From = c
	_, err := d.(driver.Preparer).Prepare(t.Context(), withState)
	wantKind(t, "Prepare with a state", err, hearth.InvalidArgument)
	b := prepare(t, d, spec)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() { closeBlank(t, b) })
	}
	all.Wait()
	wantGone(t, spec.Dir)
	_, err = b.Restore(t.Context(), c)
	wantKind(t, "Restore of the closed", err, hearth.FailedPrecondition)
	wantOver(t, b)
}

func wantOver(t *testing.T, b driver.Blank) {
	t.Helper()
	select {
	case <-b.Done():
	case <-time.After(patience):
		t.Error("the blank is not done")
	}
}

// blankIsSwept: with the little that is known of it after a crash.
func blankIsSwept(t *testing.T, env Env) {
	c := warm(t, env)
	spec := env.Spec(t)
	b := prepare(t, env.Driver(t), spec)
	d := env.Driver(t)
	for range 2 {
		ok(t, "Sweep", d.Sweep(t.Context(), driver.Handle{Driver: d.Name(), ID: spec.ID, Dir: spec.Dir}))
	}
	wantOver(t, b)
	if m, err := b.Restore(t.Context(), c); err == nil {
		closeNow(t, m)
		t.Error("a blank that was swept was restored")
	}
	wantGone(t, spec.Dir)
}

// blankMeetsBadCheckpoints: what cannot be restored leaves nothing of the blank.
func blankMeetsBadCheckpoints(t *testing.T, env Env) {
	d, c := env.Driver(t), warm(t, env)
	other := *c
	other.Key = "another"
	files := *c
	files.FilesOnly = true
	bad := *c
	bad.Dir = t.TempDir()
	for _, name := range c.Files {
		raw, err := os.ReadFile(filepath.Join(c.Dir, name))
		ok(t, "copy", err)
		ok(t, "copy", os.WriteFile(filepath.Join(bad.Dir, name), raw[:len(raw)/2], 0o600))
	}
	for name, from := range map[string]*driver.Checkpoint{"nothing": nil, "another key": &other, "files": &files, "damage": &bad} {
		spec := env.Spec(t)
		b := prepare(t, d, spec)
		m, err := b.Restore(t.Context(), from)
		if err == nil {
			closeNow(t, m)
			t.Errorf("%s was restored", name)
		}
		if want := []hearth.Kind{hearth.FailedPrecondition, hearth.Internal}; !slices.Contains(want, hearth.KindOf(err)) {
			t.Errorf("%s: %v", name, err)
		}
		closeBlank(t, b)
		wantGone(t, spec.Dir)
	}
}

// cancelledBlanks ends the context at ever later points of both halves.
func cancelledBlanks(t *testing.T, env Env) {
	c, d := warm(t, env), env.Driver(t)
	for after := time.Duration(0); after <= 160*time.Millisecond; after = after*2 + 5*time.Millisecond {
		spec := env.Spec(t)
		ctx, cancel := context.WithTimeout(t.Context(), after)
		b, err := d.(driver.Preparer).Prepare(ctx, spec)
		cancel()
		if err == nil {
			closeBlank(t, b)
		}
		wantGone(t, spec.Dir)

		spec = env.Spec(t)
		b = prepare(t, d, spec)
		ctx, cancel = context.WithTimeout(t.Context(), after)
		m, err := b.Restore(ctx, c)
		cancel()
		if err == nil {
			Open(m).get(t, "/memory", "key", "k")
			closeNow(t, m)
		}
		wantGone(t, spec.Dir)
	}
}
