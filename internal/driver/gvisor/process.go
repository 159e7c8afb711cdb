package gvisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// machineState is Handle.State, as JSON: what Attach needs and must check.
type machineState struct {
	PID       int               `json:"pid"`
	Start     uint64            `json:"start"` // clock ticks since boot, tells a reused pid
	ExeDev    uint64            `json:"exe_dev"`
	ExeInode  uint64            `json:"exe_inode"`
	Key       string            `json:"key"`
	Guest     string            `json:"guest"`
	Layer     string            `json:"layer"`
	Resources hearth.Resources  `json:"resources"`
	Net       driver.Attachment `json:"net"`
}

func newState(pid int, spec driver.Spec, from origin) (machineState, error) {
	s := machineState{
		PID: pid, Key: from.key, Guest: from.guest, Layer: spec.Layers[0],
		Resources: spec.Resources, Net: spec.Net,
	}
	p, err := readProcess(pid)
	if err != nil {
		return s, err
	}
	s.Start = p.start
	s.ExeDev, s.ExeInode, err = executable(pid)
	return s, err
}

func decodeState(raw []byte) (machineState, error) {
	var s machineState
	if err := json.Unmarshal(raw, &s); err != nil {
		return s, err
	}
	if s.PID < 2 {
		return s, fmt.Errorf("pid %d", s.PID)
	}
	return s, nil
}

// process is what /proc/PID/stat says.
type process struct {
	zombie bool
	start  uint64
	status int // wait status of a zombie
}

func readProcess(pid int) (process, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	text := string(raw)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:]) // from the third on
	if len(fields) < 50 {
		return process{}, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields)+2)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return process{}, err
	}
	status, err := strconv.Atoi(fields[49])
	return process{zombie: fields[0] == "Z" || fields[0] == "X", start: start, status: status}, err
}

// executable identifies the file a process runs, also after it was replaced.
func executable(pid int) (dev, inode uint64, err error) {
	var st syscall.Stat_t
	if err := syscall.Stat(fmt.Sprintf("/proc/%d/exe", pid), &st); err != nil {
		return 0, 0, err
	}
	return uint64(st.Dev), st.Ino, nil
}

// openProcess returns a descriptor of the process that s describes, or an error
// that wraps fs.ErrNotExist when it is gone or another has its number.
func (s machineState) openProcess() (*os.File, error) {
	fd, err := unix.PidfdOpen(s.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	if err := s.same(); err != nil { // after the descriptor is held, so the number cannot change hands
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func (s machineState) same() error {
	p, err := readProcess(s.PID)
	if err != nil {
		return err
	}
	dev, inode, err := executable(s.PID)
	if err != nil {
		return err
	}
	if p.zombie || p.start != s.Start || dev != s.ExeDev || inode != s.ExeInode {
		return fmt.Errorf("pid %d is another process: %w", s.PID, fs.ErrNotExist)
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

// exitStatus finds out how a process ended that is nobody's child here. The
// status is a zombie's until its parent has reaped it; newer kernels keep it
// for holders of a descriptor. It reports false when neither has it.
func exitStatus(pidfd int, s machineState) (unix.WaitStatus, bool) {
	if p, err := readProcess(s.PID); err == nil && p.zombie && p.start == s.Start {
		return unix.WaitStatus(p.status), true
	}
	// Reaping hangs the descriptor up.
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(pidfd)}}, 100)
	info := pidfdInfo{mask: pidfdInfoExit}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	if errno != 0 || info.mask&pidfdInfoExit == 0 {
		return 0, false
	}
	return unix.WaitStatus(info.exitCode), true
}

// prefetch asks the kernel to read a file into memory.
func prefetch(f *os.File) { _ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_WILLNEED) }

// processesOf finds the processes of a machine that no cgroup lists: a launcher
// or a sandbox caught between two steps of its creation.
func processesOf(id string) ([]int, error) {
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
			continue
		}
		args := strings.Split(strings.TrimSuffix(string(raw), "\x00"), "\x00")
		if ours(args[0]) && args[len(args)-1] == id {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func ours(argv0 string) bool {
	return argv0 == launcherName || argv0 == "runsc-sandbox" || argv0 == "runsc-gofer"
}
