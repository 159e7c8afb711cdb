package hostproc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// By how much the kernel may let a thread's timers be late, so as to wake it less often: its
// timer slack, timerslack_ns in proc(5).
const (
	ExactTimers = 50 * time.Microsecond // what Linux gives the first process

	// CoarseTimers is for Go programs that wait for others and hardly ever for time. As long as
	// one has anything to do, its runtime (sysmon) wakes up to every 20 µs to see whether a
	// system call takes long. In a virtual machine, that took a sixth of what a sandbox's start costs.
	CoarseTimers = time.Millisecond
)

// WithTimers calls f, which starts a process, so that the process has that slack, and all
// that it starts itself: slack is inherited.
func WithTimers(slack time.Duration, f func() error) error {
	runtime.LockOSThread() // the slack is a thread's
	defer runtime.UnlockOSThread()
	if own, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); err == nil { // else all have what they have
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(slack), 0, 0, 0)
		defer func() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(own), 0, 0, 0) }()
	}
	return f()
}

// SetTimers gives that slack to all threads of a process, those included that begin meanwhile.
// Threads that it cannot be given to are in the error, the others have it all the same.
func SetTimers(pid int, slack time.Duration) error {
	var errs []error
	value := []byte(strconv.FormatInt(int64(slack), 10))
	seen := map[string]bool{}
	for before := -1; len(seen) > before; { // threads of a thread that was not yet seen have what that had
		before = len(seen)
		dir, err := os.Open(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return err
		}
		threads, err := dir.Readdirnames(-1)
		_ = dir.Close()
		if err != nil {
			return err
		}
		for _, tid := range threads {
			if seen[tid] {
				continue
			}
			seen[tid] = true
			if err := setSlack(tid, value); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("timer slack of thread %s: %w", tid, err))
			}
		}
	}
	return errors.Join(errs...)
}

// setSlack writes a thread's. The file is not in the directory of its process's threads.
func setSlack(tid string, value []byte) error {
	fd, err := unix.Open("/proc/"+tid+"/timerslack_ns", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, value)
	return err
}
