package drivertest

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"hearth/internal/driver"
)

func outOfMemory(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	Open(m).number(t, "/ticks")
	_, _ = Open(m).try(t, "/hog", "mib", "2048")
	if exit := ends(t, m); !exit.OOM {
		t.Errorf("exit %+v, want OOM", exit)
	}
}

func diskQuota(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	total := 0
	for _, path := range []string{"/root/big", "/tmp/big"} {
		answer := Open(m).get(t, "/fill", "path", path, "mib", "1024")
		var mib int
		var full bool
		if _, err := fmt.Sscanf(answer, "%d %t", &mib, &full); err != nil || !full {
			t.Errorf("%s took %s MiB, want ENOSPC", path, answer)
		}
		total += mib
	}
	if total < 60 || total > 64 {
		t.Errorf("the guest wrote %d MiB, its disk is 64", total)
	}
	Open(m).number(t, "/ticks") // alive, with a full disk
}

// forkBomb forks as an ordinary user until it is refused. The machine lives.
func forkBomb(t *testing.T, env Env) {
	answer, m := fork(t, env, "1000")
	if n, err := strconv.Atoi(answer); err != nil || n < 32 {
		t.Errorf("the guest could start %q processes, want a few dozen", answer)
	}
	Open(m).number(t, "/ticks")
}

// rootForkBomb forks as root, whom only the host's limit stops. The machine may
// die of it.
func rootForkBomb(t *testing.T, env Env) {
	if answer, m := fork(t, env, "0"); answer == "" {
		t.Logf("the machine ended: %+v", ends(t, m))
	}
}

// fork lets a machine fork without end, beside another one that must not suffer.
func fork(t *testing.T, env Env, user string) (string, driver.Machine) {
	t.Helper()
	const many = 5000
	spec := env.Spec(t)
	spec.From = nil // of another size
	spec.Resources.MemoryMiB, spec.Resources.DiskMiB = 256, 1024
	neighbour, m := start(t, env.Driver(t), env.Spec(t)), start(t, env.Driver(t), spec)
	answer, _ := Open(m).try(t, "/fork", "max", strconv.Itoa(many), "uid", user)
	if answer == strconv.Itoa(many) {
		t.Errorf("the guest could start %d processes", many)
	}
	t.Logf("processes: %s", answer)
	Open(neighbour).number(t, "/ticks")
	return answer, m
}

func consoleFlood(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	before, err := m.Usage(t.Context())
	ok(t, "Usage", err)
	began := time.Now()
	Open(m).get(t, "/console", "mib", "64")
	after, err := m.Usage(t.Context())
	ok(t, "Usage", err)
	t.Logf("64 MiB twice in %s, memory %d -> %d", time.Since(began), before.Memory, after.Memory)
	if after.Memory-before.Memory > 32<<20 {
		t.Errorf("the console grew with what was written: memory %d -> %d", before.Memory, after.Memory)
	}
}

func rootMayMount(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	Open(m).get(t, "/mount")
}
