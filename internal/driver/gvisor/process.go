package gvisor

import (
	"encoding/json"
	"fmt"
	"os"

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
	Layers    []heldLayer       `json:"layers,omitempty"`   // of its checkpoint, oldest first
	Switches  bool              `json:"switches,omitempty"` // it can be asked whether it is frozen; false also of a build before that could be
}

func newState(pid int, spec driver.Spec, from origin) (machineState, error) {
	s := machineState{
		Key: from.key, Guest: from.guest, Layer: spec.Layers[0],
		Resources: spec.Resources, Net: spec.Net, Layers: from.layers, Switches: sharing,
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
