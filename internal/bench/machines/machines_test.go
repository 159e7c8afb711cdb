package machines

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"hearth/internal/bench/figure"
	"hearth/internal/config"
	"hearth/internal/driver"
	"hearth/internal/driver/fake"
	"hearth/internal/driver/microvm/cpio"
	"hearth/internal/hearth"
)

func valid() Options {
	return Options{Drivers: []string{"gvisor"}, Runs: 1, Clones: []int{1, 10}, Memory: 256, Limit: time.Minute}
}

func TestOptions(t *testing.T) {
	if err := valid().check(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Options){
		"drivers": func(o *Options) { o.Drivers = []string{"gvisor", "docker"} },
		"runs":    func(o *Options) { o.Runs = maxRuns + 1 },
		"clones":  func(o *Options) { o.Clones = []int{1, 0} },
		"memory":  func(o *Options) { o.Memory = minMemory - 1 },
		"limit":   func(o *Options) { o.Limit = 0 },
	} {
		o := valid()
		change(&o)
		c := config.Default()
		err := Run(t.Context(), &c, o, io.Discard, io.Discard)
		if hearth.KindOf(err) != hearth.InvalidArgument || !strings.Contains(err.Error(), name+":") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	o := valid()
	o.Clones = nil
	if err := o.check(); hearth.KindOf(err) != hearth.InvalidArgument {
		t.Errorf("no clones: got %v", err)
	}
}

// TestDriverThatCannotRunIsSkippedByName and the others are measured.
func TestDriverThatCannotRunIsSkippedByName(t *testing.T) {
	l := &lab{progress: io.Discard, all: []driver.Driver{unable{name: "firecracker"}, unable{name: "qemu"}}}
	list, err := l.drivers(t.Context(), Options{})
	if err != nil || len(list) != 2 {
		t.Fatalf("got %v, %v", list, err)
	}
	for i, name := range []string{"firecracker", "qemu"} {
		if f := list[i]; f.Row != name || !strings.Contains(f.Skipped, "not installed") {
			t.Errorf("%s: got %+v", name, f)
		}
	}
	if !strings.Contains(list[1].Skipped, "--emulate") {
		t.Errorf("qemu: %q names no way to measure it", list[1].Skipped)
	}
	if list, _ := l.drivers(t.Context(), Options{Drivers: []string{"qemu"}}); len(list) != 1 {
		t.Errorf("asked for one driver, got %v", list)
	}
}

type unable struct {
	*fake.Driver
	name string
}

func (u unable) Name() string { return u.name }

func (u unable) Probe(context.Context) (driver.Capabilities, error) {
	return driver.Capabilities{}, hearth.Errorf(hearth.FailedPrecondition, "%s is not installed", u.name)
}

// TestJobIsWhatTheWorkAloneTakes also where the start of the program takes longer.
func TestJobIsWhatTheWorkAloneTakes(t *testing.T) {
	j := job{name: "x", n: 30, script: "%d"}
	took, err := j.run(t.Context(), func(_ context.Context, script string) (spent, error) {
		if script == "30" {
			return spent{time.Second + 30*time.Millisecond, 70 * time.Millisecond}, nil
		}
		return spent{time.Second, 50 * time.Millisecond}, nil
	})
	if want := (spent{30 * time.Millisecond, 20 * time.Millisecond}); err != nil || took != want {
		t.Errorf("got %v, %v", took, err)
	}
	broken := errors.New("no such program")
	if _, err := jobs()[0].run(t.Context(), func(context.Context, string) (spent, error) { return spent{}, broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

// TestJobsRunHere with the tools of any Debian, or say what is missing.
func TestJobsRunHere(t *testing.T) {
	if _, err := os.Stat("/usr/bin/python3"); err != nil {
		t.Skip("there is no /usr/bin/python3")
	}
	for _, j := range jobs() {
		j.n = 1
		if _, err := j.run(t.Context(), executeHere); err != nil {
			t.Errorf("%s: %v", j.name, err)
		}
	}
	if _, err := executeHere(t.Context(), "echo too bad >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "too bad") {
		t.Errorf("got %v", err)
	}
}

// TestPlainProgram runs the plain guest's program on the host: it is Linux, too.
func TestPlainProgram(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the program is for x86-64")
	}
	path := filepath.Join(t.TempDir(), "init")
	if err := os.WriteFile(path, printAndWait(firstLine+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != firstLine+"\n" {
		t.Errorf("got %q, %v", line, err)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Errorf("it did not wait: %v", err)
	}
	_ = cmd.Wait() // killed
}

func TestPlainInitrd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "initrd")
	if err := writeInitrd(path); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	entries, err := cpio.Read(f)
	if err != nil || len(entries) != 3 || entries[2].Name != "init" || entries[2].Mode != cpio.Regular|0o755 {
		t.Errorf("got %d entries, %v", len(entries), err)
	}
}

func TestWrittenCountsBlocksNotLength(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(64 << 20); err != nil {
		t.Fatal(err)
	}
	if n, err := written(dir); err != nil || n > 1<<20 {
		t.Errorf("a file of nothing but a hole: %d bytes, %v", n, err)
	}
	if _, err := f.Write(make([]byte, 2<<20)); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if n, err := written(dir); err != nil || n < 2<<20 || n > 4<<20 {
		t.Errorf("2 MiB in it: %d bytes, %v", n, err)
	}
}

// TestSubject: what a driver cannot do is no figure, and every figure has its row.
func TestSubject(t *testing.T) {
	d := unable{name: "qemu"}
	o := valid()
	o.Runs, o.Clones = 9, []int{10, 1, 10}
	s := newSubject(&lab{progress: io.Discard}, o, d, driver.Capabilities{Isolation: hearth.EmulatedVM, MemorySnapshot: true})
	if s.runs != 4 || s.jobs != 3 || len(s.clones) != 2 || s.clones[0] != 1 {
		t.Errorf("runs %d, jobs %d, clones %v", s.runs, s.jobs, s.clones)
	}
	s.boot.Took(3 * time.Second)
	s.bootStock.Took(time.Second)
	s.memory = append(s.memory, figure.Of("memory", "MiB", []float64{1}))
	list := s.figures()
	for _, f := range list {
		if f.Row != "qemu" {
			t.Errorf("%s has row %q", f.Name, f.Row)
		}
	}
	if list[0].Ratio != 3 {
		t.Errorf("boot: ratio %v", list[0].Ratio)
	}
	s = newSubject(&lab{progress: io.Discard}, o, d, driver.Capabilities{Isolation: hearth.UserKernel})
	if list := s.figures(); len(list) != 1 {
		t.Errorf("a driver without snapshots has %d figures", len(list))
	}
}
