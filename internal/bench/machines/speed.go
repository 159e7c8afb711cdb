package machines

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"hearth/internal/bench/figure"
	"hearth/internal/driver"
	"hearth/internal/guest/agentclient"
	"hearth/internal/hearth"
)

// job is a fixed amount of work, the same in a guest and on the host. Its script
// does it n times.
type job struct {
	name   string
	n      int
	script string // for sh; %d is n
}

// jobs are what is compared: arithmetic of an interpreter, a compiled loop, and
// what a kernel has to do.
func jobs() []job {
	return []job{
		{"three million turns of a Python loop", 3_000_000, `exec /usr/bin/python3 -c 'x = 0
for i in range(%d): x += i * i'`},
		{"SHA-256 of 192 MiB, OpenSSL's", 192, `exec /usr/bin/python3 -c 'import hashlib
h, b = hashlib.sha256(), bytes(1 << 20)
for i in range(%d): h.update(b)'`},
		{"300 processes one after the other", 300, `i=0; while [ $i -lt %d ]; do /bin/true; i=$((i+1)); done`},
	}
}

// native measures how long jobs take in a clone and on the host, in turn.
func (s *subject) native(ctx context.Context, from *driver.Checkpoint) (err error) {
	m, _, err := s.start(ctx, from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close(ctx)) }()
	if err := m.unseal(ctx); err != nil {
		return err
	}
	for _, j := range jobs() {
		inside := figure.Milliseconds("guest: " + j.name)
		outside := figure.Milliseconds("the same on the host")
		err := s.times(ctx, j.name, s.jobs, func(ctx context.Context, counts bool) error {
			took, err := j.run(ctx, m.execute)
			if err != nil {
				return err
			}
			native, err := j.run(ctx, executeHere)
			if err != nil {
				outside.Skip(err.Error())
			}
			if counts {
				inside.Took(took)
				outside.Took(native)
			}
			return nil
		})
		f := inside.Figure().Against(s.driver.Name(), figure.Target{}, outside.Figure())
		f.Note = "by the host's clock, less what the same program takes for nothing"
		s.speed = append(s.speed, f)
		if err != nil {
			return err
		}
	}
	return nil
}

// run returns how long the work alone takes: starting the program, and asking for
// it, are measured first and taken off. The guest's clock is not asked.
func (j job) run(ctx context.Context, execute func(ctx context.Context, script string) error) (time.Duration, error) {
	var took [2]time.Duration
	for i, n := range []int{0, j.n} {
		began := time.Now()
		if err := execute(ctx, fmt.Sprintf(j.script, n)); err != nil {
			return 0, err
		}
		took[i] = time.Since(began)
	}
	return max(0, took[1]-took[0]), nil
}

// execute runs a script in the guest.
func (m *machine) execute(ctx context.Context, script string) error {
	last := ""
	exit, err := m.agent.Run(ctx, agentclient.RunRequest{User: "user", Cmd: script}, func(_, line string) { last = line })
	if err == nil && exit != 0 {
		err = hearth.Errorf(hearth.Internal, "the job ended with %d in the guest: %.200q", exit, last)
	}
	return err
}

// executeHere runs a script on the host.
func executeHere(ctx context.Context, script string) error {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", script)
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	if out, err := cmd.CombinedOutput(); err != nil {
		return hearth.Wrap(hearth.FailedPrecondition, err, "the job failed on the host: %.200q", strings.TrimSpace(string(out)))
	}
	return nil
}
