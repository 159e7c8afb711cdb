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

// spent is what work takes: by the clock, and of processors, those of the whole
// machine where it is a guest's. Beside other work the second is the better
// measure: how much of a processor the work gets says nothing of the guest.
type spent struct{ time, cpu time.Duration }

// execute runs a script somewhere and says what that took.
type execute func(ctx context.Context, script string) (spent, error)

// native measures what jobs take in a clone and on the host, in turn.
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
		inside, insideCPU := figure.Milliseconds("guest: "+j.name), figure.Milliseconds("guest, processor time: "+j.name)
		outside, outsideCPU := figure.Milliseconds("the same on the host"), figure.Milliseconds("the same on the host")
		err := s.times(ctx, j.name, s.jobs, func(ctx context.Context, counts bool) error {
			guest, err := j.run(ctx, m.execute)
			if err != nil {
				return err
			}
			host, err := j.run(ctx, executeHere)
			if err != nil {
				outside.Skip(err.Error())
				outsideCPU.Skip(err.Error())
			}
			if counts {
				inside.Took(guest.time)
				insideCPU.Took(guest.cpu)
				outside.Took(host.time)
				outsideCPU.Took(host.cpu)
			}
			return nil
		})
		s.speed = append(s.speed,
			inside.Figure().Against(s.driver.Name(), figure.Target{}, outside.Figure()),
			insideCPU.Figure().Against(s.driver.Name(), figure.Target{}, outsideCPU.Figure()))
		if err != nil {
			return err
		}
	}
	return nil
}

// run returns what the work alone takes: starting the program, and asking for it,
// are measured first and taken off. The guest's clock is not asked.
func (j job) run(ctx context.Context, execute execute) (spent, error) {
	nothing, err := execute(ctx, fmt.Sprintf(j.script, 0))
	if err != nil {
		return spent{}, err
	}
	all, err := execute(ctx, fmt.Sprintf(j.script, j.n))
	return spent{max(0, all.time-nothing.time), max(0, all.cpu-nothing.cpu)}, err
}

// execute runs a script in the guest.
func (m *machine) execute(ctx context.Context, script string) (spent, error) {
	before, err := m.Usage(ctx)
	if err != nil {
		return spent{}, err
	}
	last, began := "", time.Now()
	exit, err := m.agent.Run(ctx, agentclient.RunRequest{User: "user", Cmd: script}, func(_, line string) { last = line })
	took := time.Since(began)
	if err == nil && exit != 0 {
		err = hearth.Errorf(hearth.Internal, "the job ended with %d in the guest: %.200q", exit, last)
	}
	if err != nil {
		return spent{}, err
	}
	after, err := m.Usage(ctx)
	return spent{took, after.CPU - before.CPU}, err
}

// executeHere runs a script on the host.
func executeHere(ctx context.Context, script string) (spent, error) {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", script)
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	began := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(began)
	if err != nil {
		return spent{}, hearth.Wrap(hearth.FailedPrecondition, err, "the job failed on the host: %.200q", strings.TrimSpace(string(out)))
	}
	return spent{took, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}, nil
}
