package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// holdings counts what sandboxes cost the host.
type holdings struct {
	machines, processes int // in the journal; that run sandboxes
	snapshots           int // that have plain files
	packed              int // files in the archive beyond those of these snapshots
	run, checkpoints    int // directories
}

func (s *server) holds(t *testing.T) holdings {
	t.Helper()
	count := func(pattern ...string) int {
		found, err := filepath.Glob(filepath.Join(append([]string{s.data}, pattern...)...))
		must(t, err)
		return len(found)
	}
	h := holdings{
		machines: len(s.machines()), snapshots: len(snapshotFiles(s)),
		run: count("node", "run", "*"), checkpoints: count("node", "checkpoint", "*"),
	}
	plain := count("blobs", "objects", "snapshots+*+*") - count("blobs", "objects", "snapshots+*+manifest.json") - count("blobs", "objects", "snapshots+*+packed")
	h.packed = max(0, count("archive", "objects", "files+*")-plain)
	for pid, line := range processes() {
		group, _ := syscall.Getpgid(pid) // a blank's sandbox has a copy of itself wait to unmount its /proc
		if strings.HasPrefix(line, "runsc-sandbox") && strings.Contains(line, s.data) && group == pid {
			h.processes++
		}
	}
	return h
}

// sample is what the server's process had at one moment.
type sample struct{ mib, descriptors, ops int }

// watch looks at the server's process once a second.
func (k *soak) watch() {
	for time.Now().Before(k.until) {
		<-time.After(time.Second)
		epoch := k.epoch.Load()
		if epoch%2 == 1 {
			continue
		}
		proc := fmt.Sprintf("/proc/%d/", k.s.pid(k.t))
		fds, err := os.ReadDir(proc + "fd")
		raw, serr := os.ReadFile(proc + "statm")
		var size, pages int
		if _, perr := fmt.Sscan(string(raw), &size, &pages); errors.Join(err, serr, perr) != nil || k.epoch.Load() != epoch {
			continue // it dies
		}
		now := sample{mib: pages * os.Getpagesize() >> 20, descriptors: len(fds)}
		k.mu.Lock()
		for _, n := range k.did {
			now.ops += n
		}
		k.calm = append(k.calm, now)
		k.mu.Unlock()
	}
}

// judge compares the first quarter of the time since the last crash with the last:
// a server that does the same all the time must not grow.
func (k *soak) judge(t *testing.T) {
	n := len(k.calm) / 4
	if n == 0 {
		t.Logf("the server was back for too short a time to tell whether it grows: looked at %d times", len(k.calm))
		return
	}
	mean := func(list []sample) (m sample) {
		for _, s := range list {
			m.mib, m.descriptors = m.mib+s.mib, m.descriptors+s.descriptors
		}
		return sample{mib: m.mib / len(list), descriptors: m.descriptors / len(list)}
	}
	first, last := mean(k.calm[:n]), mean(k.calm[len(k.calm)-n:])
	t.Logf("the server in the %d s since the last crash, in which %d things were done: first quarter %d MiB and %d descriptors, last quarter %d and %d",
		len(k.calm), k.calm[len(k.calm)-1].ops-k.calm[0].ops, first.mib, first.descriptors, last.mib, last.descriptors)
	if last.mib > first.mib+soakGrowth || last.descriptors > first.descriptors+soakGrowth {
		t.Errorf("the server grows: from %+v to %+v", first, last)
	}
}
