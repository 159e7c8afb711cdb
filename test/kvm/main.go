// Command kvm tests Hearth's virtual machines with KVM, on hosts with and
// without: it builds a small machine around the tests, boots it in QEMU with an
// emulated processor that has virtualization of its own, runs the tests inside,
// and fails with them. Inside, /dev/kvm is real: the kernel's own kvm-amd.
//
//	go run ./test/kvm [-timeout 15m] [-cpus 1] [-run NAME [-cases REGEXP]] [-full] [-keep]
//
// A Firecracker to test is taken from $FIRECRACKER_BIN or PATH, with the jailer
// from $JAILER_BIN or beside it. Without one, the tests of it are skipped, and
// the end of the output says so.
//
// The machine is an initramfs, which has command init and four modules, and an
// EROFS disk with everything else: static test binaries, the kernel's modules,
// QEMU with its libraries and firmware, and the images that tests start guests
// from. It has no network and no writable disk.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"hearth/internal/driver/microvm"
	"hearth/internal/driver/microvm/microvmtest"
)

// suite is a test binary that is run inside.
type suite struct {
	name    string
	pkg     string        // of the tests
	run     string        // regular expression of their names
	builds  []string      // packages of the programs that its tests build
	timeout time.Duration // for all of its tests
}

// suites are what is run, in order.
func suites() []suite {
	return []suite{
		{name: "kvmprobe", pkg: "./internal/driver/microvm/kvmprobe", run: ".", timeout: time.Minute},
		{name: "qemu", pkg: "./internal/driver/qemu", run: "TestConformance", timeout: 14 * time.Minute,
			builds: []string{"hearth/internal/driver/qemu/launchertest", "hearth/cmd/hearth-init"}},
		// What needs no KVM is tested outside, where it is quicker.
		{name: "firecracker", pkg: "./internal/driver/firecracker", run: "OfFirecracker|TestKeyPartsAreNamed", timeout: 5 * time.Minute,
			builds: []string{"hearth/internal/driver/firecracker/vmmtest", "hearth/cmd/hearth-init"}},
	}
}

type options struct {
	timeout time.Duration
	cpus    int
	memory  int      // MiB
	only    []string // suites; none: all
	cases   string   // regular expression; empty: a suite's own
	full    bool
	keep    bool
}

func main() {
	var o options
	flag.DurationVar(&o.timeout, "timeout", 22*time.Minute, "for everything that runs inside")
	// A host with two has been seen to stand still while it ran machines.
	flag.IntVar(&o.cpus, "cpus", 1, "processors of the emulated host")
	flag.IntVar(&o.memory, "memory", 4096, "its memory in MiB")
	only := flag.String("run", "", "the one suite to run")
	flag.StringVar(&o.cases, "cases", "", "the tests of it to run, as for go test")
	flag.BoolVar(&o.full, "full", false, "run all of a suite, for as long as it takes: an hour unless -timeout says otherwise")
	flag.BoolVar(&o.keep, "keep", false, "keep the machine's files, and say where they are")
	flag.Parse()
	if *only != "" {
		o.only = []string{*only}
	}
	if given := false; o.full {
		flag.Visit(func(f *flag.Flag) { given = given || f.Name == "timeout" })
		if !given {
			o.timeout = time.Hour
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := test(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "test-kvm:", err)
		os.Exit(1)
	}
}

// choose returns the suites to run.
func (o options) choose() []suite {
	var chosen []suite
	for _, s := range suites() {
		if len(o.only) > 0 && !slices.Contains(o.only, s.name) {
			continue
		}
		if s.run = cmp.Or(o.cases, s.run); o.full {
			s.timeout = o.timeout
		}
		chosen = append(chosen, s)
	}
	return chosen
}

// test runs the suites. Of a short run, those that failed are run once more, in a new
// emulated host: the emulated processor is not to be relied on. Seen were a kernel that
// panicked on its way from user code into itself, with the same GS base in both
// registers, and a checkpoint of which no clone ever answered; the same cases pass in
// nearly all runs, and outside, without KVM. What fails twice has failed.
func test(ctx context.Context, o options) error {
	if len(o.choose()) == 0 {
		return fmt.Errorf("there is no suite %q", o.only)
	}
	failed, err := attempt(ctx, o)
	if err == nil || o.full || ctx.Err() != nil || len(failed) == 0 {
		return err
	}
	fmt.Printf("==> %v\n==> once more: %s\n", err, strings.Join(failed, ", "))
	o.only = failed
	_, err = attempt(ctx, o)
	return err
}

// attempt builds the emulated host, boots it and judges what it says. It returns the suites
// that did not end well.
func attempt(ctx context.Context, o options) (failed []string, err error) {
	chosen := o.choose()
	dir, err := os.MkdirTemp("", "hearth-kvm-")
	if err != nil {
		return nil, err
	}
	if o.keep {
		fmt.Println("files of the emulated host:", dir)
	} else {
		defer os.RemoveAll(dir)
	}
	began := time.Now()
	kernel, err := build(ctx, dir, o)
	if err != nil {
		return nil, err
	}
	fmt.Printf("==> emulated host: built in %.1f s; booting kernel %s\n", time.Since(began).Seconds(), kernel.Release)
	began = time.Now()
	var names []string
	for _, s := range chosen {
		names = append(names, s.name)
	}
	j := newJudge(names)
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("it was not done within %s", o.timeout))
	defer cancel()
	err = boot(ctx, machine{
		kernel: kernel.Kernel, initrd: filepath.Join(dir, initrdFile), disk: filepath.Join(dir, diskFile),
		cpus: o.cpus, memory: o.memory,
	}, func(line string) {
		if text, show := j.hear(line); show {
			fmt.Printf("%4.0f s  %s\n", time.Since(began).Seconds(), text)
		}
	})
	if context.Cause(ctx) != nil {
		err = context.Cause(ctx)
	}
	fmt.Printf("==> emulated host: off after %.1f s\n", time.Since(began).Seconds())
	for _, name := range j.skipped {
		fmt.Println("skipped:", name)
	}
	return j.failed(), errors.Join(j.verdict(), err)
}

// build makes the files of the emulated host in dir and returns its kernel.
func build(ctx context.Context, dir string, o options) (*microvm.Boot, error) {
	cache, err := microvmtest.KernelCache()
	if err != nil {
		return nil, err
	}
	kernel, err := microvm.Prepare(ctx, microvm.Options{Cache: cache})
	if err != nil {
		return nil, fmt.Errorf("the kernel: %w", err)
	}
	// A clone that never answers takes minutes to be given up, and there may be more of them.
	t := &tree{dir: filepath.Join(dir, "tree"), host: microvmtest.ShortHost, flags: []string{"-test.failfast"}}
	if o.full {
		t.host, t.flags = "all", nil
	}
	if err := t.fill(ctx, kernel, filepath.Join(cache, "debian-kernel", "modules"), o.choose()); err != nil {
		return nil, err
	}
	if err := t.pack(ctx, dir, kernel.Release); err != nil {
		return nil, err
	}
	return kernel, nil
}
