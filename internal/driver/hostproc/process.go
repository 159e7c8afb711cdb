package hostproc

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Process identifies a process of the host across restarts of this one.
type Process struct {
	PID      int    `json:"pid"`
	Start    uint64 `json:"start"` // clock ticks since boot, tells a reused pid
	ExeDev   uint64 `json:"exe_dev"`
	ExeInode uint64 `json:"exe_inode"`
}

// Identify describes the process that has pid now.
func Identify(pid int) (Process, error) {
	p := Process{PID: pid}
	s, err := readStat(pid)
	if err != nil {
		return p, err
	}
	p.Start = s.start
	p.ExeDev, p.ExeInode, err = executable(pid)
	return p, err
}

// stat is what /proc/PID/stat says.
type stat struct {
	zombie bool
	start  uint64
	filled bool // its memory has all that execve puts there; where the environment ends (env_end) is noted last
	status int  // wait status of a zombie
}

func readStat(pid int) (stat, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	text := string(raw)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:]) // from the third on
	if len(fields) < 50 {
		return stat{}, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields)+2)
	}
	var numbers [2]uint64
	for i, at := range []int{19, 48} {
		if numbers[i], err = strconv.ParseUint(fields[at], 10, 64); err != nil {
			return stat{}, err
		}
	}
	status, err := strconv.Atoi(fields[49])
	return stat{zombie: fields[0] == "Z" || fields[0] == "X", start: numbers[0], filled: numbers[1] != 0, status: status}, err
}

// executable identifies the file a process runs, also after it was replaced.
func executable(pid int) (dev, inode uint64, err error) {
	var st syscall.Stat_t
	if err := syscall.Stat(fmt.Sprintf("/proc/%d/exe", pid), &st); err != nil {
		return 0, 0, err
	}
	return uint64(st.Dev), st.Ino, nil
}

// Open returns a descriptor of the process that p describes, or an error
// that wraps fs.ErrNotExist when it is gone or another has its number.
func (p Process) Open() (*os.File, error) {
	fd, err := unix.PidfdOpen(p.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	if err := p.same(); err != nil { // after the descriptor is held, so the number cannot change hands
		_ = f.Close()
		if errors.Is(err, unix.ESRCH) { // it was reaped as its files in /proc were read
			return nil, fs.ErrNotExist
		}
		return nil, err
	}
	return f, nil
}

func (p Process) same() error {
	now, err := readStat(p.PID)
	if err != nil {
		return err
	}
	dev, inode, err := executable(p.PID)
	if err != nil {
		return err
	}
	if now.zombie || now.start != p.Start || dev != p.ExeDev || inode != p.ExeInode {
		return fmt.Errorf("pid %d is another process: %w", p.PID, fs.ErrNotExist)
	}
	return nil
}

// Linux's PIDFD_GET_INFO, since 6.13; the exit status since 6.15.
const (
	pidfdGetInfo  = 0xC040FF0B
	pidfdInfoExit = 1 << 3
)

type pidfdInfo struct {
	mask     uint64
	cgroup   uint64
	ids      [11]uint32
	exitCode int32
}

// ExitStatus finds out how a process ended that is nobody's child here. The
// status is a zombie's until its parent has reaped it; newer kernels keep it
// for holders of a descriptor. It reports false when neither has it.
func ExitStatus(pidfd *os.File, p Process) (unix.WaitStatus, bool) {
	if s, err := readStat(p.PID); err == nil && s.zombie && s.start == p.Start {
		return unix.WaitStatus(s.status), true
	}
	conn, err := pidfd.SyscallConn()
	if err != nil {
		return 0, false
	}
	info, known := pidfdInfo{mask: pidfdInfoExit}, false
	_ = conn.Control(func(fd uintptr) {
		// Reaping hangs the descriptor up.
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd)}}, 100)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
		known = errno == 0 && info.mask&pidfdInfoExit != 0
	})
	return unix.WaitStatus(info.exitCode), known
}

// Await returns when the process of a descriptor that Open returned has ended.
func Await(pidfd *os.File) error {
	conn, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
	})
}

// Kill kills the process of such a descriptor, if it has not ended.
func Kill(pidfd *os.File) {
	if conn, err := pidfd.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	}
}

// CloseInherited closes the descriptors from first on that the starter of our
// starter left open for everyone: a process that may wait for long would keep whoever reads
// the other end of one waiting. Those of our own are all closed on execution, and
// thereby known.
func CloseInherited(first int) error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd < first {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			_ = unix.Close(fd)
		}
	}
	return nil
}

// CloseOnExec marks the descriptors from first on, which may be anybody's, so that no program
// that this process executes inherits them.
func CloseOnExec(first int) error {
	err := unix.CloseRange(uint(first), math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
	if !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) {
		return err
	}
	entries, err := os.ReadDir("/proc/self/fd") // before Linux 5.11
	if err != nil {
		return err
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= first {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}
