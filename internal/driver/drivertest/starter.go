package drivertest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"hearth/internal/driver"
)

// starterEnv makes a driver's test program a process that starts one machine,
// prints its handle, and waits to be killed.
const starterEnv = "HEARTH_TEST_STARTER"

// starterTime is how long such a process lives that nobody kills.
const starterTime = time.Minute

// starterJob is what it is told.
type starterJob[C any] struct {
	Config C
	Spec   driver.Spec
	Chain  []driver.Checkpoint // Spec.From, what it lies over, and so on
	Dirs   []string            // theirs, which are no part of a checkpoint's JSON
}

// BeStarter is called first in TestMain. In a process that RunStarter made it
// starts a machine and does not return.
func BeStarter[C any](start func(context.Context, C, driver.Spec) (driver.Machine, error)) {
	raw := os.Getenv(starterEnv)
	if raw == "" {
		return
	}
	if err := startAndWait(raw, start); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func startAndWait[C any](raw string, start func(context.Context, C, driver.Spec) (driver.Machine, error)) error {
	var job starterJob[C]
	if err := json.Unmarshal([]byte(raw), &job); err != nil {
		return err
	}
	for i := len(job.Chain) - 1; i >= 0; i-- {
		c := job.Chain[i]
		c.Dir, c.Base = job.Dirs[i], job.Spec.From
		job.Spec.From = &c
	}
	m, err := start(context.Background(), job.Config, job.Spec)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(m.Handle()); err != nil {
		return err
	}
	select {
	case <-m.Done():
	case <-time.After(starterTime):
	}
	return nil
}

// A Starter is a process that starts one machine.
type Starter struct {
	cmd     *exec.Cmd
	spec    driver.Spec
	started chan []byte // the handle, or nothing when it ended before
}

// RunStarter runs this test program as a starter, which makes its driver from cfg.
func RunStarter[C any](t *testing.T, cfg C, spec driver.Spec) *Starter {
	t.Helper()
	job := starterJob[C]{Config: cfg, Spec: spec}
	job.Spec.From = nil
	for c := spec.From; c != nil; c = c.Base {
		job.Chain, job.Dirs = append(job.Chain, *c), append(job.Dirs, c.Dir)
	}
	raw, err := json.Marshal(job)
	ok(t, "a starter's job", err)
	s := &Starter{cmd: exec.Command("/proc/self/exe"), spec: spec, started: make(chan []byte, 1)}
	s.cmd.Env = append(os.Environ(), starterEnv+"="+string(raw))
	s.cmd.Stderr = os.Stderr
	out, err := s.cmd.StdoutPipe()
	ok(t, "a starter's output", err)
	ok(t, "a starter", s.cmd.Start())
	go func() {
		line, _ := bufio.NewReader(out).ReadBytes('\n')
		s.started <- line
	}()
	return s
}

// KillStarted kills the starter when its machine runs, and returns the handle.
func (s *Starter) KillStarted(t *testing.T) driver.Handle {
	t.Helper()
	line := <-s.started
	ok(t, "kill", s.cmd.Process.Kill())
	_ = s.cmd.Wait()
	var h driver.Handle
	ok(t, "a starter's handle", json.Unmarshal(line, &h))
	return h
}

// KillAndSweep kills the starter after the time given, or when its machine runs,
// and wants what it left to be swept.
func (s *Starter) KillAndSweep(t *testing.T, d driver.Driver, after time.Duration) {
	t.Helper()
	select {
	case line := <-s.started:
		s.started <- line
	case <-time.After(after):
	}
	ok(t, "kill", s.cmd.Process.Kill())
	<-s.started
	_ = s.cmd.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ok(t, "Sweep", d.Sweep(ctx, driver.Handle{Driver: d.Name(), ID: s.spec.ID, Dir: s.spec.Dir}))
	if _, err := os.Stat(s.spec.Dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", s.spec.Dir, err)
	}
}
