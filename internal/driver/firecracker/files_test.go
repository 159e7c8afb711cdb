package firecracker_test

import (
	"context"
	"os"
	"testing"
	"time"

	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// The guest writes out its disk between the freeze and the copy, and is not
// restored but boots; what it then has is no layer over anything.
func TestCheckpointOfFilesAlone(t *testing.T) {
	l := newLab(t)
	spec := l.spec(t)
	m := l.start(t, spec)
	ask(t, m, "POST", "/file", "path", "/root/a", "value", "kept")
	if _, err := m.(driver.FileKeeper).CheckpointFiles(t.Context(), t.TempDir()); hearth.KindOf(err) != hearth.FailedPrecondition {
		t.Errorf("of a machine that runs: %v", err)
	}
	must(t, m.Freeze(t.Context()))
	before := len(calls(t, spec))
	c, err := m.(driver.FileKeeper).CheckpointFiles(t.Context(), t.TempDir())
	must(t, err)
	wantCalls(t, "checkpoint", calls(t, spec)[before:], "PATCH /vm", "guest: configure", "guest: settle", "PATCH /vm")
	for _, name := range c.Files {
		if _, err := os.Stat(c.Dir + "/" + name); err != nil {
			t.Error(err)
		}
	}

	again := l.spec(t)
	again.From = c
	m = l.start(t, again)
	if got := names(calls(t, again)); got[0] != "PUT /machine-config" {
		t.Errorf("it did not boot: %q", got)
	}
	if got := ask(t, m, "GET", "/file", "path", "/root/a"); got != "kept" {
		t.Errorf("its file is %q", got)
	}
	must(t, m.Freeze(t.Context()))
	if whole := l.snapshot(t, m); whole.Base != nil || whole.FilesOnly {
		t.Errorf("its next checkpoint is %+v", whole)
	}
}

// A guest that does not write out its disk, or never says so, makes the checkpoint
// fail in time. It stays frozen, and can go on.
func TestGuestsThatDoNotSettle(t *testing.T) {
	l := newLab(t)
	for how, want := range map[string]hearth.Kind{"refuse": hearth.Unavailable, "hang": hearth.DeadlineExceeded} {
		t.Run(how, func(t *testing.T) {
			l.script(t, map[string]string{"restless guest": how})
			spec := l.spec(t)
			m := l.start(t, spec)
			l.script(t, nil)
			must(t, m.Freeze(t.Context()))
			ctx := t.Context()
			if how == "hang" {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, time.Second)
				defer cancel()
			}
			dir := t.TempDir()
			if _, err := m.(driver.FileKeeper).CheckpointFiles(ctx, dir); hearth.KindOf(err) != want {
				t.Errorf("%v of kind %s, want %s", err, hearth.KindOf(err), want)
			}
			if list := names(calls(t, spec)); list[len(list)-1] != "PATCH /vm" {
				t.Errorf("it was not stopped again: %q", list)
			}
			must(t, m.Thaw(t.Context()))
			ask(t, m, "GET", "/ticks")
		})
	}
}
