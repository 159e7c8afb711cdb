//go:build hearthcow

package gvisor_test

import (
	"context"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/boot"
	"gvisor.dev/gvisor/runsc/sandbox"
)

// What an owner asked for before its death, and the sandbox hears only after another
// has asked, changes nothing; nor does asking twice.
func TestLateRequestIsRefused(t *testing.T) {
	l := newLab(t)
	m, err := l.driver(t).Start(t.Context(), l.spec(t, "conf-late", 231))
	must(t, err)
	t.Cleanup(func() { must(t, m.Close(context.Background())) })
	if !answers(t, m, true) {
		t.Fatal("it does not answer")
	}
	box := sandbox.Sandbox{ID: m.Handle().ID, ControlSocketPath: filepath.Join(l.config(t).Root, "runsc-"+m.Handle().ID+".sock")}
	var now unix.Timespec
	must(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
	ask := func(at int64, to boot.SwitchTo, want bool) {
		t.Helper()
		paused, err := box.Switch(boot.SwitchOpts{At: at, To: to})
		must(t, err)
		if paused != want || answers(t, m, !want) == want {
			t.Errorf("paused %t, want %t", paused, want)
		}
	}
	at := now.Nano()
	ask(at, boot.AsTheyAre, false)
	for _, late := range []int64{at, at - 1, 0} {
		if _, err := box.Switch(boot.SwitchOpts{At: late, To: boot.Paused}); err == nil {
			t.Errorf("a request of %d is obeyed after one of %d", late, at)
		}
	}
	ask(at+1, boot.Paused, true)
	ask(at+2, boot.Paused, true)
	ask(at+3, boot.AsTheyAre, true)
	ask(at+4, boot.Running, false)
	ask(at+5, boot.Running, false)
}
