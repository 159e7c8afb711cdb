//go:build !hearthcow

package gvisor

import (
	"errors"
	"os"

	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
	"gvisor.dev/gvisor/pkg/state/statefile"
	"gvisor.dev/gvisor/runsc/container"
	"gvisor.dev/gvisor/runsc/sandbox"

	"hearth/internal/driver/gvisor/launcher"
)

// A build with plain `go build` has gVisor as it is published: every machine
// reads the pages of its checkpoint into memory of its own.
const (
	sharing    = false
	pageFormat = publishedFormat
)

func startQuickly() {}

func launchQuickly(func([]*os.File)) {}

func installStubs(map[string]precompiledseccomp.Program) {}

func setMemory(*container.Container, launcher.Memory) {}

func checkpointOpts(bool) sandbox.CheckpointOpts {
	return sandbox.CheckpointOpts{Compression: statefile.CompressionLevelNone, Resume: true}
}

func touchedPages(*sandbox.Sandbox) ([]uint64, error) { return nil, nil }

func switchTo(*sandbox.Sandbox, bool, bool) error { return errPublished }

func isPaused(*sandbox.Sandbox) (bool, error) { return false, errPublished }

var errPublished = errors.New("published gVisor cannot say whether its tasks are paused")
