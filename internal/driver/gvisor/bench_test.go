package gvisor_test

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"hearth/internal/driver"
	"hearth/internal/driver/drivertest"
	"hearth/internal/driver/gvisor"
)

// The benchmarks measure what a user waits for: from the call to the first
// answer of an HTTP server in the guest.

type bench struct {
	*lab
	d       driver.Driver
	machine int
}

func newBench(b *testing.B) *bench {
	l := newLab(b)
	return &bench{lab: l, d: l.driver(b)}
}

// next returns a spec, made while the clock stands.
func (e *bench) next(b *testing.B, from *driver.Checkpoint) driver.Spec {
	b.StopTimer()
	defer b.StartTimer()
	e.machine++
	spec := e.spec(b, fmt.Sprintf("bench-%d", e.machine), e.machine%250)
	spec.From = from
	return spec
}

func (e *bench) start(b *testing.B, spec driver.Spec) driver.Machine {
	m, err := e.d.Start(b.Context(), spec)
	must(b, err)
	answer(b, m)
	return m
}

func answer(b *testing.B, m driver.Machine) {
	_, err := drivertest.Open(m).Ask(b.Context(), "GET", "/ticks", nil)
	must(b, err)
}

func (e *bench) close(b *testing.B, m driver.Machine) {
	b.StopTimer()
	defer b.StartTimer()
	must(b, m.Close(context.Background()))
}

func (e *bench) checkpoint(b *testing.B) *driver.Checkpoint {
	m := e.start(b, e.next(b, nil))
	must(b, m.Freeze(b.Context()))
	c, err := m.Checkpoint(b.Context(), b.TempDir())
	must(b, err)
	e.close(b, m)
	return c
}

func BenchmarkColdBootToHTTP(b *testing.B) {
	e := newBench(b)
	for b.Loop() {
		m := e.start(b, e.next(b, nil))
		e.close(b, m)
	}
}

// work is the processor time that machines took, and the launchers that made them.
type work struct{ machines, launchers time.Duration }

func (w *work) of(b *testing.B, m driver.Machine, launchers time.Duration) {
	u, err := m.Usage(b.Context())
	must(b, err)
	w.machines, w.launchers = w.machines+u.CPU, w.launchers+children(b)-launchers
}

func (w *work) report(b *testing.B) {
	each := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 / float64(b.N) }
	b.ReportMetric(each(w.machines), "machine-cpu-ms/op")
	b.ReportMetric(each(w.launchers), "launcher-cpu-ms/op")
}

// children is the processor time of the processes that this one started and that have ended.
func children(b *testing.B) time.Duration {
	var u syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_CHILDREN, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkRestoreToHTTP(b *testing.B) {
	e := newBench(b)
	c := e.checkpoint(b)
	var w work
	for b.Loop() {
		spec, before := e.next(b, c), children(b)
		m := e.start(b, spec)
		w.of(b, m, before)
		e.close(b, m)
	}
	w.report(b)
}

// BenchmarkBlankToHTTP restores into a sandbox that was made before.
func BenchmarkBlankToHTTP(b *testing.B) {
	e := newBench(b)
	c := e.checkpoint(b)
	var holds float64
	var w work
	for b.Loop() {
		spec := e.next(b, nil)
		b.StopTimer()
		before := children(b)
		blank, err := e.d.(driver.Preparer).Prepare(b.Context(), spec)
		must(b, err)
		holds += float64(blank.Memory()) / (1 << 20)
		b.StartTimer()
		m, err := blank.Restore(b.Context(), c)
		must(b, err)
		answer(b, m)
		w.of(b, m, before)
		e.close(b, m)
	}
	w.report(b)
	b.ReportMetric(holds/float64(b.N), "MiB/blank")
}

func BenchmarkThawToHTTP(b *testing.B) {
	e := newBench(b)
	m := e.start(b, e.next(b, e.checkpoint(b)))
	for b.Loop() {
		b.StopTimer()
		must(b, m.Freeze(b.Context()))
		b.StartTimer()
		must(b, m.Thaw(b.Context()))
		answer(b, m)
	}
	u, err := m.Usage(b.Context())
	must(b, err)
	b.ReportMetric(float64(u.Memory)/(1<<20), "MiB/machine")
	e.close(b, m)
}

func BenchmarkFreeze(b *testing.B) {
	e := newBench(b)
	m := e.start(b, e.next(b, nil))
	for b.Loop() {
		must(b, m.Freeze(b.Context()))
		b.StopTimer()
		must(b, m.Thaw(b.Context()))
		b.StartTimer()
	}
	e.close(b, m)
}

func BenchmarkCheckpoint(b *testing.B) {
	e := newBench(b)
	m := e.start(b, e.next(b, nil))
	must(b, m.Freeze(b.Context()))
	for b.Loop() {
		b.StopTimer()
		dir := b.TempDir()
		b.StartTimer()
		_, err := m.Checkpoint(b.Context(), dir)
		must(b, err)
	}
	e.close(b, m)
}

func BenchmarkClose(b *testing.B) {
	e := newBench(b)
	for b.Loop() {
		m := e.start(b, e.next(b, nil))
		began := time.Now()
		must(b, m.Close(b.Context()))
		b.ReportMetric(float64(time.Since(began).Microseconds())/1000, "last-close-ms")
	}
}

// ways are a driver that shares memory and one that does as plain gVisor does,
// in one program: the second is the reference of the first.
func (e *bench) ways(b *testing.B) map[string]driver.Driver {
	cfg := e.config(b)
	cfg.Unshared = true
	plain, err := gvisor.New(cfg)
	must(b, err)
	return map[string]driver.Driver{"shared": e.d, "unshared": plain}
}

// loaded is a checkpoint of a machine with 100 MiB of memory in use.
func (e *bench) loaded(b *testing.B) *driver.Checkpoint {
	spec := e.next(b, nil)
	spec.Resources.MemoryMiB = 256
	m := e.start(b, spec)
	_, err := drivertest.Open(m).Ask(b.Context(), "POST", "/hog", url.Values{"mib": {"100"}})
	must(b, err)
	must(b, m.Freeze(b.Context()))
	c, err := m.Checkpoint(b.Context(), b.TempDir())
	must(b, err)
	e.close(b, m)
	return c
}

// BenchmarkLoaded restores a machine with 100 MiB of memory in use, and writes
// its next checkpoint.
func BenchmarkLoaded(b *testing.B) {
	e := newBench(b)
	c := e.loaded(b)
	for how, d := range e.ways(b) {
		b.Run("restore/"+how, func(b *testing.B) {
			var used, cpu float64
			for b.Loop() {
				spec := e.next(b, c)
				spec.Resources.MemoryMiB = 256
				m, err := d.Start(b.Context(), spec)
				must(b, err)
				answer(b, m)
				u, err := m.Usage(b.Context())
				must(b, err)
				used, cpu = used+float64(u.Memory)/(1<<20), cpu+float64(u.CPU.Microseconds())/1000
				e.close(b, m)
			}
			b.ReportMetric(used/float64(b.N), "MiB/machine")
			b.ReportMetric(cpu/float64(b.N), "cpu-ms/op")
		})
		b.Run("checkpoint/"+how, func(b *testing.B) {
			spec := e.next(b, c)
			spec.Resources.MemoryMiB = 256
			m, err := d.Start(b.Context(), spec)
			must(b, err)
			answer(b, m)
			must(b, m.Freeze(b.Context()))
			var bytes float64
			for b.Loop() {
				b.StopTimer()
				dir := b.TempDir()
				b.StartTimer()
				_, err := m.Checkpoint(b.Context(), dir)
				must(b, err)
				info, err := os.Stat(filepath.Join(dir, "pages.img"))
				must(b, err)
				bytes = float64(info.Size())
			}
			b.ReportMetric(bytes/(1<<20), "MiB-written")
			e.close(b, m)
		})
	}
}
