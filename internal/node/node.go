// Package node is the contract between the control plane and one host.
// node/agent implements it in process; every implementation passes nodetest.
package node

import (
	"context"
	"iter"
	"net"
	"time"

	"hearth/internal/hearth"
)

// Service is one host: its sandboxes, and what it has for them.
type Service interface {
	Sandboxes

	Status(ctx context.Context) (*hearth.NodeStatus, error)
	List(ctx context.Context) ([]*Instance, error)

	// Keep declares the warm snapshots for which the node holds restored,
	// paused machines. It replaces what was declared before and returns at once.
	Keep(ctx context.Context, pools []Pool) error

	// Events yields what happened on the host from now on, until ctx ends; the
	// first reader also gets what happened before, recovery included. Of a
	// sandbox a slow reader may see only the newest event. The error Aborted says
	// that events were lost and that the reader has to List; it goes on then.
	Events(ctx context.Context) iter.Seq2[Event, error]
}

// Sandboxes is one host's sandboxes. Start, Pause, Snapshot, Stop and Update are
// idempotent by sandbox ID and generation, so that a caller may retry after an
// Unavailable error. One sandbox never has two machines.
type Sandboxes interface {
	// Start returns when the sandbox's guest daemon has answered Init. The
	// generation is the sandbox's Launch, or its Generation where that is not
	// set. A greater one replaces the machine of a smaller one; a smaller one, or
	// one that was stopped before, is refused with Aborted. NotFound: it was stopped
	// meanwhile. ResourceExhausted: too many starts wait, try again later.
	Start(ctx context.Context, req StartRequest) (*Instance, error)

	// Pause freezes, checkpoints and closes the machine. It returns when the state
	// is safe; the next call for the sandbox waits until the machine is gone. When
	// the checkpoint fails the machine runs on and the error says why. The same Into again
	// returns the same snapshot, also after a crash: a caller that does not know
	// how a pause ended asks again, and gets it, or NotFound.
	Pause(ctx context.Context, id hearth.SandboxID, req PauseRequest) (*hearth.Snapshot, error)

	// Snapshot freezes and checkpoints the machine, which then goes on as if
	// nothing had happened: connections wait meanwhile. Into as in Pause.
	Snapshot(ctx context.Context, id hearth.SandboxID, req SnapshotRequest) (*hearth.Snapshot, error)

	// Stop kills the machine. Stopping what is not there is not an error.
	Stop(ctx context.Context, id hearth.SandboxID, reason string) error

	// Update changes the traffic policy; it is in force when Update returns.
	Update(ctx context.Context, id hearth.SandboxID, network hearth.Network) error

	// Dial connects to a TCP port inside a sandbox on this host, be it bound to
	// all addresses of the guest or to its loopback alone.
	Dial(ctx context.Context, id hearth.SandboxID, port uint16) (net.Conn, error)

	Usage(ctx context.Context, id hearth.SandboxID) (Usage, error)
}

// StartRequest is everything a node needs to run a sandbox.
type StartRequest struct {
	Sandbox hearth.Sandbox
	Build   hearth.Build     // its layers, environment, default user
	Restore *hearth.Snapshot // nil boots from the build's layers and runs its commands
	Driver  string           // boots the machine; empty: the node's choice. A restore takes its snapshot's
	Token   string           // guest access token; empty leaves the daemon open

	// Revert says that the sandbox runs here, and that its machine goes on when
	// the new one does not start: it is kept frozen until then. NotFound when it
	// does not run here.
	Revert bool
}

// Check refuses what no node could start.
func (r StartRequest) Check() error {
	s := r.Sandbox
	switch {
	case s.ID == "" || len(s.ID) > 64:
		return hearth.Errorf(hearth.InvalidArgument, "sandbox.id is %d bytes long, not 1 to 64", len(s.ID))
	case s.Resources.VCPUs < 1 || s.Resources.MemoryMiB < 1 || s.Resources.DiskMiB < 1:
		return hearth.Errorf(hearth.InvalidArgument, "sandbox.resources are not all positive")
	case r.Revert && r.Restore == nil:
		return hearth.Errorf(hearth.InvalidArgument, "revert needs a snapshot to restore")
	}
	return nil
}

// PauseRequest says what a pause leaves behind.
type PauseRequest struct {
	Into   hearth.SnapshotID
	Forget bool // drop identity and secrets first: the snapshot starts many sandboxes

	// FilesOnly keeps no memory: what is started from the snapshot boots.
	// FailedPrecondition where the sandbox's driver cannot do that.
	FilesOnly bool
}

// SnapshotRequest says where the state of a sandbox that goes on is kept.
type SnapshotRequest struct {
	Into hearth.SnapshotID
}

// Pool is a build of which restored, paused machines are kept.
type Pool struct {
	Build    hearth.Build
	Snapshot hearth.Snapshot
	Floor    int // machines to hold however little they are asked for
	Ceiling  int // machines to hold at most, however much; less than Floor means Floor
}

// Instance is a sandbox's machine on a host.
type Instance struct {
	ID         hearth.SandboxID
	Generation int64
	StartedAt  time.Time
	State      hearth.State
	Driver     string
	Isolation  hearth.Isolation
}

// Usage is what a sandbox uses by the host's accounting. Bytes.
type Usage struct {
	At        time.Time
	VCPUs     int
	CPUPct    float64 // of one vCPU, over the time since the sample before
	Memory    int64
	MemoryMax int64
	Disk      int64
	DiskMax   int64
}

// Event is one change of a sandbox's state that the control plane did not ask for.
type Event struct {
	At         time.Time
	ID         hearth.SandboxID
	Generation int64 // of the machine; an event of an earlier generation is history
	State      hearth.State
	Reason     string
}
