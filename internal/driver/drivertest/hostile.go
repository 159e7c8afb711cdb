package drivertest

import (
	"fmt"
	"strconv"
	"testing"
	"time"
)

func outOfMemory(t *testing.T, env Env) {
	m := start(t, env.Driver(t), env.Spec(t))
	Open(m).number(t, "/ticks")
	_, _ = Open(m).try(t, "/hog", "mib", "2048")
	if exit := ends(t, m, patience); !exit.OOM {
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
	neighbour := start(t, env.Driver(t), env.Spec(t))
	m := start(t, env.Driver(t), env.Spec(t))
	answer, err := Open(m).try(t, "/fork", "max", "5000", "uid", "1000")
	if err != nil { // the sandbox may die of it: contained all the same
		t.Logf("the machine ended: %+v", ends(t, m, patience))
	} else if n, _ := strconv.Atoi(answer); n >= 5000 {
		t.Errorf("the guest could start %s processes", answer)
	}
	Open(neighbour).number(t, "/ticks")
}

func rootForkBomb(t *testing.T, env Env) {
	neighbour := start(t, env.Driver(t), env.Spec(t))
	m := start(t, env.Driver(t), env.Spec(t))
	answer, err := Open(m).try(t, "/fork", "max", "5000", "uid", "0")
	if err != nil {
		t.Logf("the machine ended: %+v", ends(t, m, patience))
	} else if n, _ := strconv.Atoi(answer); n >= 5000 {
		t.Errorf("the guest's root could start %s processes", answer)
	}
	Open(neighbour).number(t, "/ticks")
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
