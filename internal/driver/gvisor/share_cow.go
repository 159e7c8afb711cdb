//go:build hearthcow

package gvisor

import (
	"os"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
	"gvisor.dev/gvisor/pkg/sentry/pgalloc"
	"gvisor.dev/gvisor/pkg/sentry/platform/systrap"
	"gvisor.dev/gvisor/pkg/state"
	"gvisor.dev/gvisor/pkg/state/statefile"
	"gvisor.dev/gvisor/runsc/boot"
	"gvisor.dev/gvisor/runsc/cgroup"
	"gvisor.dev/gvisor/runsc/container"
	"gvisor.dev/gvisor/runsc/sandbox"

	"hearth/internal/driver/gvisor/launcher"
)

// sharing says that gVisor is built with our patches, all of them, and pageFormat names what
// they make of checkpoints: ones of another format are refused.
const (
	sharing    = true
	pageFormat = "+cow.1"
)

// startQuickly makes this process start and save its sandbox as the patches can, if it is one.
func startQuickly() {
	boot.Quick, state.Quick, state.QuickSave, pgalloc.QuickSave = true, true, true, true
}

// launchQuickly makes this process make sandboxes as the patches can, if it is a launcher. keep is given the
// sockets of each one's network. Of the control groups' controllers those are left alone that do nothing here. The
// one of systemd is not: what is in none of its groups of its own ends with the server's service.
func launchQuickly(keep func([]*os.File)) {
	cgroup.Only("cpu", "cpuacct", "freezer", "memory", "pids", "systemd")
	cgroup.ByThread = true
	sandbox.Keep = keep
	container.Unrecorded = true
}

// installStubs gives the platform the programs of its own processes that are among ready ones.
func installStubs(ready map[string]precompiledseccomp.Program) { systrap.Programs = ready }

// setMemory tells a created sandbox where its pages come from.
func setMemory(c *container.Container, m launcher.Memory) {
	c.Sandbox.Share = sandbox.ShareOpts{ShareOpts: boot.ShareOpts{Enabled: m.Share, Hot: m.Hot}, Files: m.Layers}
}

func checkpointOpts(layered bool) sandbox.CheckpointOpts {
	return sandbox.CheckpointOpts{Compression: statefile.CompressionLevelNone, Resume: true, Layered: layered}
}

// touchedPages asks a sandbox which pages of its checkpoint it has copied.
func touchedPages(box *sandbox.Sandbox) ([]uint64, error) { return box.TouchedPages() }

// switchTo pauses a sandbox's guest, perhaps for long, or lets it go on.
func switchTo(box *sandbox.Sandbox, paused, long bool) error {
	to := boot.Running
	if paused {
		to = boot.Paused
	}
	_, err := box.Switch(boot.SwitchOpts{At: sinceBoot(), To: to, Long: long})
	return err
}

// isPaused asks whether it is, and makes what others asked for before come to nothing.
func isPaused(box *sandbox.Sandbox) (bool, error) {
	return box.Switch(boot.SwitchOpts{At: sinceBoot()})
}

// sinceBoot is in nanoseconds, the same for all processes of the host, and never goes back.
func sinceBoot() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0 // every Linux has it; and a request at 0 is refused
	}
	return t.Nano()
}
