package hostproc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// executeTime is how long a sweep waits for a process that executes a program, which takes less than
// a millisecond. One that takes longer waits for its file, and ours are on disks of this host.
const executeTime = time.Second

// KillStrays kills the processes of this host whose arguments are a machine's,
// and waits until they are gone, so that none can make anything after a sweep:
// no cgroup lists one that is caught between two steps of a start. args has one
// element at least.
//
// A child has the arguments of whoever started it until it executes its program. One that is a
// machine's by the program's arguments alone must not outlive its starter before that.
func KillStrays(ctx context.Context, theirs func(args []string) bool) error {
	began := time.Now()
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		pids, all, err := processes(theirs)
		if err != nil || len(pids) == 0 && (all || time.Since(began) > executeTime) {
			return err
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
			began = time.Now()
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

// processes finds processes by their arguments. Those may not be all, while one executes a program.
func processes(wanted func(args []string) bool) (pids []int, all bool, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, false, err
	}
	all = true
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		args := arguments(pid)
		if args == "" {
			all = all && !executing(pid)
			continue
		}
		if wanted(strings.Split(args, "\x00")) {
			pids = append(pids, pid)
		}
	}
	return pids, all, nil
}

// arguments are a process's, with a zero between each two; empty when none can be read. What has
// ended has none, nor has what gave up the memory they were in, as processes of gVisor do that guests
// run in. A process whose first thread has ended, as it does first when it is killed, and when another
// thread executes a program, has those of the threads that still work.
func arguments(pid int) string {
	if args := readArguments(fmt.Sprintf("/proc/%d", pid)); args != "" {
		return args
	}
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	for _, thread := range threads {
		if args := readArguments(thread); args != "" {
			return args
		}
	}
	return ""
}

func readArguments(dir string) string {
	raw, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return ""
	}
	return strings.TrimRight(string(raw), "\x00")
}

// executing says whether a process that showed no arguments may have been within execve(2), where
// the kernel has given it the memory of its new program and not yet all that belongs there. It is
// asked twice, as one may go on to the next program. What has ended, and threads of the kernel,
// have no program.
func executing(pid int) bool {
	dir := fmt.Sprintf("/proc/%d", pid)
	if _, err := os.Readlink(filepath.Join(dir, "exe")); err != nil {
		return false
	}
	for range 2 {
		s, err := readStat(pid)
		if err != nil || s.zombie {
			return false
		}
		if !s.filled || readArguments(dir) != "" {
			return true
		}
	}
	return false
}

// Empty removes what is in a directory, which need not be there.
func Empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return errors.Join(errs...)
}

// DirPolicy is what becomes of a machine's directory when the machine is
// released: a start that failed leaves it as it was given, empty.
type DirPolicy int

// The policies.
const (
	KeepDir DirPolicy = iota
	RemoveDir
)

// Apply empties the directory, which need not be there, and removes it where the
// policy says so.
func (p DirPolicy) Apply(dir string) error {
	err := Empty(dir)
	if err != nil || p == KeepDir {
		return err
	}
	if err = os.Remove(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
