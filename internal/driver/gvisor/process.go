package gvisor

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/internal/driver"
	"hearth/internal/driver/hostproc"
	"hearth/internal/hearth"
)

// machineState is Handle.State, as JSON: what Attach needs and must check.
type machineState struct {
	hostproc.Process
	Key       string            `json:"key"`
	Guest     string            `json:"guest"`
	Layer     string            `json:"layer"`
	Resources hearth.Resources  `json:"resources"`
	Net       driver.Attachment `json:"net"`
	Layers    []heldLayer       `json:"layers,omitempty"` // of its checkpoint, oldest first
}

func newState(pid int, spec driver.Spec, from origin) (machineState, error) {
	s := machineState{
		Key: from.key, Guest: from.guest, Layer: spec.Layers[0],
		Resources: spec.Resources, Net: spec.Net, Layers: from.layers,
	}
	var err error
	s.Process, err = hostproc.Identify(pid)
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
