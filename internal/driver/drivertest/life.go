package drivertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// start starts a machine that is closed with the test.
func start(t *testing.T, d driver.Driver, spec driver.Spec) driver.Machine {
	t.Helper()
	m, err := d.Start(t.Context(), spec)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	t.Cleanup(func() { closeNow(t, m) })
	return m
}

func closeNow(t *testing.T, m driver.Machine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := m.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func ok(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func wantKind(t *testing.T, what string, err error, kind hearth.Kind) {
	t.Helper()
	if err == nil || hearth.KindOf(err) != kind {
		t.Fatalf("%s: got %v, want an error of kind %s", what, err, kind)
	}
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("the spec's directory holds %v (%v), want nothing", entries, err)
	}
}

// ends waits for a machine's end.
func ends(t *testing.T, m driver.Machine) driver.Exit {
	t.Helper()
	select {
	case <-m.Done():
	case <-time.After(patience):
		t.Fatalf("the machine is not done %s later", patience)
	}
	if m.Exit().At.IsZero() || m.Exit().Reason == "" {
		t.Errorf("Exit is %+v, want a time and a reason", m.Exit())
	}
	return m.Exit()
}

func bootAndDial(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	Open(m).number(t, "/ticks")
	select {
	case <-m.Done():
		t.Fatalf("done while it runs: %+v", m.Exit())
	default:
	}
}

func refusedPort(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	Open(m).number(t, "/ticks")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := m.Dial(ctx, 81)
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("Dial of a closed port: got %v, want ECONNREFUSED", err)
	}
	if ctx.Err() != nil {
		t.Fatal("the refusal came with the deadline only")
	}
}

func badSpec(t *testing.T, env Env) {
	d := env.Driver(t)
	for name, spoil := range map[string]func(*driver.Spec){
		"id":             func(s *driver.Spec) { s.ID = "../up" },
		"empty id":       func(s *driver.Spec) { s.ID = "" },
		"long id":        func(s *driver.Spec) { s.ID = strings.Repeat("a", 41) },
		"relative dir":   func(s *driver.Spec) { s.Dir = "here" },
		"no dir":         func(s *driver.Spec) { s.Dir = filepath.Join(s.Dir, "gone") },
		"missing layer":  func(s *driver.Spec) { s.Layers = []string{"/nowhere.erofs"} },
		"relative layer": func(s *driver.Spec) { s.Layers = []string{"root.erofs"} },
		"no memory":      func(s *driver.Spec) { s.Resources.MemoryMiB = 0 },
		"negative disk":  func(s *driver.Spec) { s.Resources.DiskMiB = -1 },
		"no vcpus":       func(s *driver.Spec) { s.Resources.VCPUs = 0 },
		"long hostname":  func(s *driver.Spec) { s.Hostname = strings.Repeat("h", 65) },
	} {
		spec := env.Spec(t)
		dir := spec.Dir
		spoil(&spec)
		_, err := d.Start(t.Context(), spec)
		wantKind(t, name, err, hearth.InvalidArgument)
		wantEmpty(t, dir)
	}
}

func handleIsPlainData(t *testing.T, env Env) {
	spec := env.Spec(t)
	m := start(t, env.Driver(t), spec)
	raw, err := json.Marshal(m.Handle())
	ok(t, "Marshal", err)
	var h driver.Handle
	ok(t, "Unmarshal", json.Unmarshal(raw, &h))
	if h.ID != spec.ID || h.Dir != spec.Dir || h.Driver == "" {
		t.Fatalf("handle %+v is not of spec %+v", h, spec)
	}
	again, err := env.Driver(t).Attach(t.Context(), h)
	ok(t, "Attach", err)
	Open(again).number(t, "/ticks")
}

func usage(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	Open(m).number(t, "/ticks")
	u, err := m.Usage(t.Context())
	ok(t, "Usage", err)
	if u.Memory <= 0 || u.MemoryMax < u.Memory {
		t.Errorf("memory %d of %d", u.Memory, u.MemoryMax)
	}
	if env.Kernel && (u.CPU <= 0 || u.RxBytes <= 0 || u.TxBytes <= 0) {
		t.Errorf("a machine that answered has used %+v", u)
	}
}

func killSeen(t *testing.T, env Env) {
	oneInThree(t, func() error {
		m := start(t, env.Driver(t), env.Spec(t))
		attached, err := env.Driver(t).Attach(t.Context(), m.Handle())
		ok(t, "Attach", err)
		Open(m).number(t, "/ticks")
		env.Kill(t, m)
		killed := time.Now()
		ends(t, m)
		ends(t, attached)
		seen := time.Since(killed)
		wantDead(t, env, m)
		if seen > time.Second {
			return fmt.Errorf("its end was seen %s after it was killed", seen)
		}
		return nil
	})
}

// oneInThree tries what is to happen within a time, up to three times: a busy host
// may spoil one, but not all.
func oneInThree(t *testing.T, try func() error) {
	t.Helper()
	var err error
	for range 3 {
		if err = try(); err == nil {
			return
		}
		t.Log(err)
	}
	t.Error(err)
}

// wantDead fails unless a machine that has ended is said to be gone.
func wantDead(t *testing.T, env Env, m driver.Machine) {
	t.Helper()
	_, err := m.Usage(t.Context())
	wantKind(t, "Usage of the dead", err, hearth.NotFound)
	wantKind(t, "Freeze of the dead", m.Freeze(t.Context()), hearth.NotFound)
	_, err = env.Driver(t).Attach(t.Context(), m.Handle())
	wantKind(t, "Attach to the dead", err, hearth.NotFound)
}

func guestExit(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	Open(m).number(t, "/ticks")
	_, _ = Open(m).try(t, "/exit", "code", "7")
	exit := ends(t, m)
	if exit.OOM || exit.Code != 7 && exit.Code != -1 { // -1: an old kernel, and a parent that was faster
		t.Errorf("exit %+v, want code 7", exit)
	}
}

func closeConcurrent(t *testing.T, env Env) {
	spec := env.Spec(t)
	m := start(t, env.Driver(t), spec)
	Open(m).number(t, "/ticks")
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() { closeNow(t, m) })
	}
	all.Wait()
	closeNow(t, m)
	ends(t, m)
	if _, err := os.Stat(spec.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the spec's directory is still there: %v", err)
	}
}

func doomedStart(t *testing.T, env Env) {
	d, spec := env.Doomed(t)
	if m, err := d.Start(t.Context(), spec); err == nil {
		closeNow(t, m)
		t.Fatal("Start succeeded")
	}
	wantEmpty(t, spec.Dir)
}

// cancelledStart ends the context at ever later points of a start.
func cancelledStart(t *testing.T, env Env) {
	d := env.Driver(t)
	for after := time.Duration(0); after <= 320*time.Millisecond; after = after*2 + 5*time.Millisecond {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		spec := env.Spec(t)
		m, err := d.Start(ctx, spec)
		cancel()
		if err == nil {
			Open(m).number(t, "/ticks")
			closeNow(t, m)
			continue
		}
		wantEmpty(t, spec.Dir)
	}
}

func sameIDTwice(t *testing.T, env Env) {
	d, spec := env.Driver(t), env.Spec(t)
	m := start(t, d, spec)
	spec.Dir = env.Spec(t).Dir
	_, err := d.Start(t.Context(), spec)
	wantKind(t, "second Start of one ID", err, hearth.AlreadyExists)
	wantEmpty(t, spec.Dir)
	Open(m).number(t, "/ticks")
}
