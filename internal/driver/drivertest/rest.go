package drivertest

import (
	"errors"
	"os"
	"testing"

	"hearth/internal/driver"
)

func rest(t *testing.T, m driver.Machine) {
	t.Helper()
	able, is := m.(driver.Rester)
	if !is {
		t.Fatalf("a %T cannot rest", m)
	}
	ok(t, "Rest", able.Rest(t.Context()))
}

// rests starts a machine that has answered, and rests.
func rests(t *testing.T, d driver.Driver, spec driver.Spec) driver.Machine {
	t.Helper()
	m := start(t, d, spec)
	Open(m).number(t, "/ticks")
	rest(t, m)
	return m
}

func restIsAFreeze(t *testing.T, env Env) {
	m := rests(t, env.Driver(t), env.Spec(t))
	wantSilence(t, m)
	rest(t, m)
	ok(t, "Freeze of the resting", m.Freeze(t.Context()))
	for range 2 {
		ok(t, "Thaw", m.Thaw(t.Context()))
		Open(m).number(t, "/ticks")
	}
	for range 3 {
		rest(t, m)
		ok(t, "Thaw", m.Thaw(t.Context()))
	}
	ok(t, "Freeze", m.Freeze(t.Context()))
	rest(t, m)
	wantSilence(t, m)
	ok(t, "Thaw", m.Thaw(t.Context()))
	Open(m).post(t, "/memory", "key", "k", "value", "kept")
}

func restingIsCheckpointed(t *testing.T, env Env) {
	d := env.Driver(t)
	m := rests(t, d, env.Spec(t))
	ok(t, "Thaw", m.Thaw(t.Context()))
	Open(m).post(t, "/memory", "key", "k", "value", "kept")
	rest(t, m)
	spec := env.Spec(t)
	spec.From = take(t, m)
	clone := start(t, d, spec)
	if got := Open(clone).get(t, "/memory", "key", "k"); got != "kept" {
		t.Errorf("memory of a clone: %q", got)
	}
	wantSilence(t, m)
	ok(t, "Thaw", m.Thaw(t.Context()))
	Open(m).number(t, "/ticks")
}

func restingIsAttached(t *testing.T, env Env) {
	m := rests(t, env.Driver(t), env.Spec(t))
	for range 2 {
		attached, err := env.Driver(t).Attach(t.Context(), m.Handle())
		ok(t, "Attach", err)
		wantSilence(t, attached)
		ok(t, "Thaw", attached.Thaw(t.Context()))
		Open(attached).number(t, "/ticks")
		rest(t, attached)
	}
}

// A machine that rests ends like any other: by its owner, by a later one's sweep, and
// by an owner that found it.
func restingEnds(t *testing.T, env Env) {
	for name, end := range map[string]func(*testing.T, driver.Driver, driver.Machine){
		"Close": func(t *testing.T, _ driver.Driver, m driver.Machine) { closeNow(t, m) },
		"Sweep": func(t *testing.T, d driver.Driver, m driver.Machine) {
			h := m.Handle()
			ok(t, "Sweep", d.Sweep(t.Context(), driver.Handle{Driver: d.Name(), ID: h.ID, Dir: h.Dir}))
		},
		"Attach and Close": func(t *testing.T, d driver.Driver, m driver.Machine) {
			attached, err := d.Attach(t.Context(), m.Handle())
			ok(t, "Attach", err)
			closeNow(t, attached)
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := rests(t, env.Driver(t), env.Spec(t))
			end(t, env.Driver(t), m)
			ends(t, m)
			if _, err := os.Stat(m.Handle().Dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the directory is still there: %v", err)
			}
		})
	}
}
