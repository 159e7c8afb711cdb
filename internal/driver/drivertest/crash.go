package drivertest

import (
	"errors"
	"os"
	"testing"

	"hearth/internal/driver"
	"hearth/internal/hearth"
)

func attachAfterCrash(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	Open(m).post(t, "/memory", "key", "k", "value", "kept")
	attached, err := env.Driver(t).Attach(t.Context(), m.Handle())
	ok(t, "Attach", err)
	if got := Open(attached).get(t, "/memory", "key", "k"); got != "kept" {
		t.Errorf("memory after Attach: %q", got)
	}
	ok(t, "Freeze", attached.Freeze(t.Context()))
	ok(t, "Thaw", attached.Thaw(t.Context()))
	closeNow(t, attached)
	ends(t, m)
}

func attachFrozen(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	Open(m).number(t, "/ticks")
	ok(t, "Freeze", m.Freeze(t.Context()))
	attached, err := env.Driver(t).Attach(t.Context(), m.Handle())
	ok(t, "Attach", err)
	wantSilence(t, attached)
	ok(t, "Thaw", attached.Thaw(t.Context()))
	Open(attached).number(t, "/ticks")
}

func attachUnknown(t *testing.T, env Env) {
	d := env.Driver(t)
	_, err := d.Attach(t.Context(), driver.Handle{Driver: d.Name(), ID: "nope", Dir: t.TempDir()})
	wantKind(t, "Attach to nothing", err, hearth.NotFound)

	m := start(t, d, env.Spec(t))
	h := m.Handle()
	h.State = []byte(`{}`)
	_, err = d.Attach(t.Context(), h)
	wantKind(t, "Attach with another state", err, hearth.NotFound)
	h = m.Handle()
	h.Driver = "other"
	_, err = d.Attach(t.Context(), h)
	wantKind(t, "Attach with another driver's handle", err, hearth.NotFound)
}

func sweepIdempotent(t *testing.T, env Env) {
	d, spec := env.Driver(t), env.Spec(t)
	h := driver.Handle{Driver: d.Name(), ID: spec.ID, Dir: spec.Dir}
	for range 3 { // before any start
		ok(t, "Sweep", d.Sweep(t.Context(), h))
	}
	if _, err := os.Stat(spec.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
	wantKind(t, "Sweep of a bad ID", d.Sweep(t.Context(), driver.Handle{Driver: d.Name(), ID: "../x", Dir: spec.Dir}), hearth.InvalidArgument)
	wantKind(t, "Sweep of a relative directory", d.Sweep(t.Context(), driver.Handle{Driver: d.Name(), ID: spec.ID, Dir: "x"}), hearth.InvalidArgument)
}

// sweepKills sweeps with the little that is known after a crash during a start.
func sweepKills(t *testing.T, env Env) {
	spec := env.Spec(t)
	m := start(t, env.Driver(t), spec)
	Open(m).number(t, "/ticks")
	d := env.Driver(t)
	for range 2 {
		ok(t, "Sweep", d.Sweep(t.Context(), driver.Handle{Driver: d.Name(), ID: spec.ID, Dir: spec.Dir}))
	}
	ends(t, m)
	if _, err := os.Stat(spec.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
}
