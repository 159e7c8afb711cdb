package qemu_test

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"hearth/internal/driver"
	"hearth/internal/driver/drivertest"
)

const (
	balloonPatience = 5 * time.Minute // Linux reports what is free some seconds later; an emulated one is slow

	// What a guest takes, in MiB. Free blocks under 2 MiB are not reported, and that
	// leaves 27 to 43 MiB behind, however much was freed: much more is taken.
	balloonTaken = 160
)

// What a guest frees goes back to the host: its own memory shrinks, and so does
// its checkpoint; a machine that booted, one that was cloned. Template and clones
// keep what they have.
func balloons(t *testing.T, l *lab) {
	roomy := func(id string, number int, from *driver.Checkpoint) driver.Spec {
		spec := l.spec(t, id, number)
		spec.Resources.MemoryMiB, spec.From = 384, from
		return spec
	}
	booted := begin(t, l, roomy("conf-free-boot", 246, nil))
	goesBack(t, booted)
	remember(t, booted, "template")
	template := l.freeze(t, booted)

	m := begin(t, l, roomy("conf-free-1", 247, template))
	goesBack(t, m)
	remember(t, m, "first")
	own := l.freeze(t, m)
	kept, all := pagesOf(t, own), pagesOf(t, template)
	t.Logf("the template has %d KiB, the clone keeps %d", all>>10, kept>>10)
	if kept > all/2 {
		t.Errorf("the clone keeps %d KiB after it has freed all that it took, its template has %d", kept>>10, all>>10)
	}

	for i, c := range []struct {
		from *driver.Checkpoint
		want string
	}{{template, "template"}, {own, "first"}} {
		sibling := begin(t, l, roomy(fmt.Sprintf("conf-free-%d", i+2), 248+i, c.from))
		if got := recall(t, sibling); got != c.want {
			t.Errorf("a clone of %q remembers %q", c.want, got)
		}
		askWith(t, sibling, "/hog", 32) // pages that were given back are of use again
		ask(t, sibling, "/ticks")
	}
}

// freeze takes a checkpoint of a machine and lets it go on.
func (l *lab) freeze(t *testing.T, m driver.Machine) *driver.Checkpoint {
	t.Helper()
	must(t, m.Freeze(t.Context()))
	c, err := m.Checkpoint(t.Context(), t.TempDir())
	must(t, err)
	must(t, m.Thaw(t.Context()))
	return c
}

func pagesOf(t *testing.T, c *driver.Checkpoint) int64 {
	t.Helper()
	st, err := os.Stat(filepath.Join(c.Dir, "ram.pages"))
	must(t, err)
	return st.Size()
}

// goesBack lets a guest take memory and free it, and waits for the host to have it.
func goesBack(t *testing.T, m driver.Machine) {
	t.Helper()
	const taken = balloonTaken << 20
	memory := func() int64 {
		u, err := m.Usage(t.Context())
		must(t, err)
		return u.Memory
	}
	before := memory()
	askWith(t, m, "/hog", balloonTaken)
	full := memory()
	if full < before+taken/2 {
		t.Fatalf("the machine has %d KiB, and %d after it took %d", before>>10, full>>10, taken>>10)
	}
	ask(t, m, "/drop")
	deadline := time.After(balloonPatience)
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for memory() > full-taken/2 {
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("the machine had %d KiB, took %d, freed them, and has %d", before>>10, taken>>10, memory()>>10)
		}
	}
	t.Logf("%d KiB, with %d more %d, after these were freed %d", before>>10, taken>>10, full>>10, memory()>>10)
}

func askWith(t *testing.T, m driver.Machine, path string, mib int) {
	t.Helper()
	_, err := drivertest.Open(m).Ask(t.Context(), "GET", path, url.Values{"mib": {strconv.Itoa(mib)}})
	must(t, err)
}

func remember(t *testing.T, m driver.Machine, what string) {
	t.Helper()
	_, err := drivertest.Open(m).Ask(t.Context(), "POST", "/memory", url.Values{"key": {"k"}, "value": {what}})
	must(t, err)
}

func recall(t *testing.T, m driver.Machine) string {
	t.Helper()
	answer, err := drivertest.Open(m).Ask(t.Context(), "GET", "/memory", url.Values{"key": {"k"}})
	must(t, err)
	return answer
}
