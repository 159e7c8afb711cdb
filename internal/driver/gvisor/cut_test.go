package gvisor_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"hearth/internal/driver"
	"hearth/internal/driver/drivertest"
	"hearth/internal/hearth"
)

// An owner that dies in the middle of a freeze or a thaw leaves a mark that says only
// that: whoever finds the machine finds out what it is, and has it whole.
func TestFreezeOrThawIsCutShort(t *testing.T) {
	l := newLab(t)
	for name, cut := range map[string]struct{ frozen, marked bool }{
		"freeze, before the guest stands still": {false, false},
		"freeze, after that":                    {true, false},
		"thaw, before the guest goes on":        {true, true},
		"thaw, after that":                      {false, true},
	} {
		t.Run(name, func(t *testing.T) {
			d := l.driver(t)
			m, err := d.Start(t.Context(), l.spec(t, "conf-cut", 231))
			must(t, err)
			t.Cleanup(func() { must(t, m.Close(context.Background())) })
			_, err = drivertest.Open(m).Ask(t.Context(), "GET", "/ticks", nil)
			must(t, err)
			if cut.frozen {
				must(t, m.Freeze(t.Context()))
			}
			frozen := filepath.Join(m.Handle().Dir, "frozen")
			must(t, os.WriteFile(filepath.Join(m.Handle().Dir, "unsure"), nil, 0o600))
			if cut.marked {
				must(t, os.WriteFile(frozen, nil, 0o600))
			} else if err := os.Remove(frozen); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			if !caps(t, d).SharedMemory {
				wantGone(t, d, m.Handle())
				return
			}
			for range 2 { // the second finds nothing that is unsure
				found, err := l.driver(t).Attach(t.Context(), m.Handle())
				must(t, err)
				if cut.frozen == answers(t, found, !cut.frozen) {
					t.Fatalf("it answers: %t, and was frozen: %t", !cut.frozen, cut.frozen)
				}
				if _, err := os.Stat(frozen); cut.frozen != (err == nil) {
					t.Errorf("it was frozen: %t, and its mark: %v", cut.frozen, err)
				}
			}
			found, err := l.driver(t).Attach(t.Context(), m.Handle())
			must(t, err)
			isWhole(t, found)
		})
	}
}

func wantGone(t *testing.T, d driver.Driver, h driver.Handle) {
	t.Helper()
	if _, err := d.Attach(t.Context(), h); hearth.KindOf(err) != hearth.NotFound {
		t.Errorf("Attach: %v", err)
	}
}

// answers says whether the guest does. One that should not is given little time for it.
func answers(t *testing.T, m driver.Machine, should bool) bool {
	t.Helper()
	patience := 200 * time.Millisecond
	if should {
		patience = time.Minute
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := drivertest.Open(m).Ask(ctx, "GET", "/ticks", nil)
	return err == nil
}

// isWhole wants a machine, frozen or not, to go on, to freeze and to go on again.
func isWhole(t *testing.T, m driver.Machine) {
	t.Helper()
	for range 2 {
		must(t, m.Thaw(t.Context()))
		_, err := drivertest.Open(m).Ask(t.Context(), "GET", "/ticks", nil)
		must(t, err)
		must(t, m.Freeze(t.Context()))
		if answers(t, m, false) {
			t.Error("it answers though it is frozen")
		}
	}
	must(t, m.Thaw(t.Context()))
	_, err := drivertest.Open(m).Ask(t.Context(), "GET", "/ticks", nil)
	must(t, err)
}

// A server finds a machine whose sandbox is of a build before one could be asked: it is
// frozen and goes on as with published gVisor, and is given up only in the middle.
func TestSandboxOfABuildBefore(t *testing.T) {
	l := newLab(t)
	d := l.driver(t)
	m, err := d.Start(t.Context(), l.spec(t, "conf-before", 231))
	must(t, err)
	t.Cleanup(func() { must(t, m.Close(context.Background())) })
	_, err = drivertest.Open(m).Ask(t.Context(), "GET", "/ticks", nil)
	must(t, err)
	var state map[string]any
	h := m.Handle()
	must(t, json.Unmarshal(h.State, &state))
	delete(state, "switches")
	h.State, err = json.Marshal(state)
	must(t, err)
	for range 2 {
		found, err := d.Attach(t.Context(), h)
		must(t, err)
		isWhole(t, found)
		if able, is := found.(driver.Rester); is {
			must(t, able.Rest(t.Context()))
			if answers(t, found, false) {
				t.Error("it answers though it rests")
			}
			must(t, found.Thaw(t.Context()))
		}
	}
	must(t, os.WriteFile(filepath.Join(h.Dir, "unsure"), nil, 0o600))
	wantGone(t, d, h)
}

// A process that freezes its machine and lets it go on, again and again, is killed at
// ever other moments.
func TestKilledWhileItFreezes(t *testing.T) {
	l := newLab(t)
	if !caps(t, l.driver(t)).SharedMemory {
		t.Skip("gvisor: built without our patches, such a machine is lost")
	}
	before := l.count(t)
	t.Run("kills", func(t *testing.T) {
		unsure := 0
		for i := range 16 {
			cfg := starterConfig{Config: l.quiet(t), Switching: true}
			s := drivertest.RunStarter(t, cfg, l.spec(t, fmt.Sprintf("conf-switching-%d", i), 200+i))
			h := s.KillStarted(t)
			if _, err := os.Stat(filepath.Join(h.Dir, "unsure")); err == nil {
				unsure++
			}
			m, err := l.driver(t).Attach(t.Context(), h)
			must(t, err)
			isWhole(t, m)
			must(t, m.Close(t.Context()))
		}
		if t.Logf("%d of 16 died in the middle", unsure); unsure == 0 {
			t.Error("none died in the middle of a freeze or a thaw")
		}
	})
	l.settles(t, before)
}

// switchForever freezes a machine and lets it go on until the process is killed.
func switchForever(m driver.Machine) {
	ctx := context.Background()
	for m.Freeze(ctx) == nil && m.Thaw(ctx) == nil && m.(driver.Rester).Rest(ctx) == nil && m.Thaw(ctx) == nil {
		continue
	}
}
