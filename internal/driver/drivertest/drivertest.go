// Package drivertest is the conformance suite that every driver must pass. Its
// cases start machines whose first process is testguest, or does what testguest
// does, and look at them from outside and inside.
package drivertest

import (
	"cmp"
	"net"
	"testing"
	"time"

	"hearth/internal/driver"
)

// Env is one driver under test.
type Env struct {
	// Driver returns a driver on the host under test. Two drivers of one Env are
	// two lives of one process: what the first started, the second can attach to.
	Driver func(t *testing.T) driver.Driver
	// Spec returns a spec of a new machine that boots testguest, or is a clone of
	// one that has, in an existing and empty directory. Memory is 128 MiB, disk 64.
	Spec func(t *testing.T) driver.Spec
	// Kill ends a machine from outside, as the host's administrator would.
	Kill func(t *testing.T, m driver.Machine)
	// Doomed returns a spec, and a driver, with which Start fails half way.
	Doomed func(t *testing.T) (driver.Driver, driver.Spec)
	// Kernel says that guests are programs that a kernel runs, and not functions:
	// they can be out of memory, fill a disk, fork.
	Kernel bool
	// Outside listens where a machine of the spec reaches it, once it runs; nil
	// where machines have no network.
	Outside func(t *testing.T, spec driver.Spec) net.Listener
	// EndsQuietly says that a restored guest is told of the end of a connection of
	// before, but not that it was reset.
	EndsQuietly bool
	// Generations is how often the cases that look for lost writes restore a
	// machine, and Boots how often they boot one from its files; 0 means 10.
	Generations, Boots int
	// Skip says why a case is not run here, "" if it is; nil runs all.
	Skip func(name string) string
	// Count counts what machines hold on the host: processes, cgroups, mounts,
	// descriptors. Every case must leave it as it was.
	Count func(t *testing.T) map[string]int
}

type testCase struct {
	name   string
	memory bool // needs Capabilities.MemorySnapshot
	files  bool // needs Capabilities.FileSnapshot
	kernel bool // needs Env.Kernel
	blank  bool // needs Capabilities.Blanks
	rests  bool // needs Capabilities.Rests
	run    func(t *testing.T, env Env)
}

func cases() []testCase {
	return []testCase{
		{name: "BootAndDial", run: bootAndDial},
		{name: "RefusedPort", run: refusedPort},
		{name: "BadSpecIsInvalid", run: badSpec},
		{name: "HandleIsPlainData", run: handleIsPlainData},
		{name: "UsageIsWithinLimits", run: usage},
		{name: "FreezeStopsThawContinues", run: freezeThaw},
		{name: "FreezeAndThawAreIdempotent", run: freezeIdempotent},
		{name: "RestIsAFreeze", rests: true, run: restIsAFreeze},
		{name: "RestingIsCheckpointed", memory: true, rests: true, run: restingIsCheckpointed},
		{name: "RestingIsAttached", rests: true, run: restingIsAttached},
		{name: "RestingEnds", rests: true, run: restingEnds},
		{name: "CheckpointNeedsFrozen", memory: true, run: checkpointNeedsFrozen},
		{name: "CheckpointKeepsFrozenAndThawable", memory: true, run: checkpointKeepsFrozen},
		{name: "FailedCheckpointKeepsThawable", memory: true, run: failedCheckpoint},
		{name: "RestoreKeepsMemoryAndFiles", memory: true, run: restoreKeeps},
		{name: "TwoRestoresAreIsolated", memory: true, run: twoRestores},
		{name: "NothingIsLostOverTenRestores", memory: true, run: lostWrites},
		{name: "BlankIsRestored", memory: true, blank: true, run: blankIsRestored},
		{name: "BlankIsUsedOnce", memory: true, blank: true, run: blankIsUsedOnce},
		{name: "BlankIsClosed", memory: true, blank: true, run: blankIsClosed},
		{name: "BlankIsSwept", memory: true, blank: true, run: blankIsSwept},
		{name: "BlankMeetsBadCheckpoints", memory: true, blank: true, run: blankMeetsBadCheckpoints},
		{name: "CancelledBlanksLeaveNothing", memory: true, blank: true, run: cancelledBlanks},
		{name: "ClonesDrawTheirOwnRandomness", memory: true, kernel: true, run: clonesDraw},
		{name: "ClockAfterRestore", memory: true, kernel: true, run: clockAfterRestore},
		{name: "CertificateOfThisSecondIsTrusted", memory: true, kernel: true, run: justIssued},
		{name: "StaleConnectionsEnd", memory: true, kernel: true, run: staleConnections},
		{name: "IdentityIsTheMachinesOwn", memory: true, kernel: true, run: identity},
		{name: "DaemonBelongsToItsMachine", memory: true, kernel: true, run: daemons},
		{name: "TwoStartsAtOnceAreOneMachine", memory: true, run: twoStarts},
		{name: "ClocksKeepPace", kernel: true, run: clocksKeepPace},
		{name: "WrongKeyIsRefused", memory: true, run: wrongKey},
		{name: "DamagedCheckpointStartsNothing", memory: true, run: damaged},
		{name: "AttachAfterCrash", run: attachAfterCrash},
		{name: "AttachFrozenAfterCrash", run: attachFrozen},
		{name: "AttachUnknownIsNotFound", run: attachUnknown},
		{name: "SweepIsIdempotent", run: sweepIdempotent},
		{name: "SweepKillsTheLiving", run: sweepKills},
		{name: "CloseIsIdempotentAndConcurrent", run: closeConcurrent},
		{name: "NoFileIsLostOverTenBoots", files: true, run: lostFiles},
		{name: "KillIsSeenWithinASecond", run: killSeen},
		{name: "GuestExitIsReported", run: guestExit},
		{name: "DoomedStartLeavesNothing", run: doomedStart},
		{name: "CancelledStartLeavesNothing", run: cancelledStart},
		{name: "SameIDTwiceIsRefused", run: sameIDTwice},
		{name: "OutOfMemoryIsReported", kernel: true, run: outOfMemory},
		{name: "DiskQuota", kernel: true, run: diskQuota},
		{name: "ForkBombIsContained", kernel: true, run: forkBomb},
		{name: "RootForkBombIsContained", kernel: true, run: rootForkBomb},
		{name: "ConsoleFloodIsHarmless", kernel: true, run: consoleFlood},
		{name: "RootMayMount", kernel: true, run: rootMayMount},
	}
}

// Run runs the suite. Cases for which the driver lacks a capability are skipped
// by name, so that a skip is visible.
func Run(t *testing.T, env Env) {
	env.Generations, env.Boots = cmp.Or(env.Generations, 10), cmp.Or(env.Boots, 10)
	caps, err := env.Driver(t).Probe(t.Context())
	if err != nil {
		t.Skipf("the driver cannot run here: %v", err)
	}
	for _, c := range cases() {
		before := env.Count(t)
		t.Run(c.name, func(t *testing.T) {
			if c.memory && !caps.MemorySnapshot {
				t.Skip("the driver's checkpoints keep no memory")
			}
			if c.files && !caps.FileSnapshot {
				t.Skip("the driver cannot keep files without memory")
			}
			if c.kernel && !env.Kernel {
				t.Skip("the driver's guests are no programs")
			}
			if c.blank && !caps.Blanks {
				t.Skip("the driver makes nothing ahead of a restore")
			}
			if c.rests && !caps.Rests {
				t.Skip("the driver's machines cannot do more than freeze")
			}
			if env.Skip != nil {
				if why := env.Skip(c.name); why != "" {
					t.Skip(why)
				}
			}
			c.run(t, env)
		})
		NothingLeft(t, c.name, before, env.Count)
	}
}

// NothingLeft fails unless there is soon no more of anything than was counted before
// what has the name given. It waits for what is freed behind a caller's back, such as
// the descriptors of a closed connection. That there is less is no fault: such a thing
// may have been counted before, too.
func NothingLeft(t *testing.T, name string, before map[string]int, count func(*testing.T) map[string]int) {
	t.Helper()
	deadline := time.After(patience)
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		after := count(t)
		more := false
		for what, n := range after {
			more = more || n > before[what]
		}
		if !more {
			return
		}
		select {
		case <-again.C:
		case <-deadline:
			t.Errorf("%s left something behind: before %v, after %v", name, before, after)
			return
		}
	}
}
