package hostproc

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// KillStrays kills the processes of this host whose arguments are a machine's,
// and waits until they are gone, so that none can make anything after a sweep:
// no cgroup lists one that is caught between two steps of a start. args has one
// element at least.
func KillStrays(ctx context.Context, theirs func(args []string) bool) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		pids, err := processes(theirs)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

// processes finds processes by their arguments.
func processes(wanted func(args []string) bool) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		raw, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(raw) == 0 {
			continue // it has ended
		}
		if wanted(strings.Split(strings.TrimRight(string(raw), "\x00"), "\x00")) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
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
