// Package hearth is the platform's vocabulary: the nouns, the states and the one
// error type that every other package shares. It holds no behaviour beyond the
// state table and identifiers, and imports only the standard library.
package hearth

import "time"

// State says where a sandbox is in its life. Stopped is terminal.
type State string

// The states of a sandbox.
const (
	Creating  State = "creating"
	Running   State = "running" // also while a snapshot of it is taken
	Pausing   State = "pausing"
	Paused    State = "paused"
	Resuming  State = "resuming"
	Reverting State = "reverting" // an earlier snapshot of its own takes the machine's place
	Stopping  State = "stopping"
	Stopped   State = "stopped"
)

// CanBecome reports whether the state machine has an edge from s to t.
// The switch is the whole state machine.
func (s State) CanBecome(t State) bool {
	switch s {
	case Creating:
		return t == Running || t == Stopping || t == Stopped
	case Running:
		return t == Pausing || t == Reverting || t == Stopping || t == Stopped
	case Pausing: // back to Running when the checkpoint fails and the machine thaws
		return t == Paused || t == Running || t == Stopping || t == Stopped
	case Paused:
		return t == Resuming || t == Stopping
	case Resuming: // back to Paused when the restore fails
		return t == Running || t == Paused || t == Stopping || t == Stopped
	case Reverting: // to Running also when the restore fails and the old machine goes on
		return t == Running || t == Stopping || t == Stopped
	case Stopping:
		return t == Stopped
	}
	return false
}

// Isolation says what stands between a guest and its host.
type Isolation string

// The kinds of isolation, the weakest first.
const (
	NoIsolation Isolation = "none"
	UserKernel  Isolation = "kernel"   // gVisor
	EmulatedVM  Isolation = "emulated" // a virtual machine without hardware support
	HardwareVM  Isolation = "vm"
)

// Words describes the isolation to people, and promises nothing more than there is.
func (i Isolation) Words() string {
	switch i {
	case NoIsolation:
		return "none"
	case UserKernel:
		return "a kernel in user space; no virtual machine"
	case EmulatedVM:
		return "a virtual machine emulated in software; slow"
	case HardwareVM:
		return "a virtual machine on the processor's own support"
	}
	return "unknown"
}

// Resources is the size of a machine.
type Resources struct {
	VCPUs     int `json:"vcpus"`
	MemoryMiB int `json:"memory_mib"`
	DiskMiB   int `json:"disk_mib"` // writable space beyond the template's own files
}

// TimeoutAction is what happens when a sandbox reaches EndsAt.
type TimeoutAction string

// The timeout actions.
const (
	KillOnTimeout  TimeoutAction = "kill"
	PauseOnTimeout TimeoutAction = "pause"
)

// Network is a sandbox's traffic policy, as its owner asked for it.
type Network struct {
	AllowInternet   *bool    `json:"allow_internet,omitempty"`    // nil: not set, which allows
	AllowOut        []string `json:"allow_out,omitempty"`         // CIDRs and domain patterns
	DenyOut         []string `json:"deny_out,omitempty"`          // CIDRs
	PrivateIngress  bool     `json:"private_ingress,omitempty"`   // the edge asks for the sandbox's traffic token
	MaskRequestHost string   `json:"mask_request_host,omitempty"` // Host header seen by the guest; empty keeps the client's
}

// Lifecycle is what a sandbox keeps of itself and when, beyond E2B's wishes.
type Lifecycle struct {
	PauseFiles bool          `json:"pause_files,omitempty"` // a pause that nobody asked for keeps files alone, no memory
	Idle       time.Duration `json:"idle,omitempty"`        // without use for so long it is paused; 0: never
	History    int64         `json:"history,omitempty"`     // bytes that its steps may occupy; 0: none are taken
	Steps      int64         `json:"steps,omitempty"`       // number of the last step, counted from 1

	// DropsMemory says that the pause under way keeps files alone.
	DropsMemory bool `json:"drops_memory,omitempty"`
}

// Sandbox is one isolated machine, running or paused.
type Sandbox struct {
	ID         SandboxID
	Team       TeamID
	Template   TemplateID
	Alias      string // the name under which the template was asked for
	Build      BuildID
	Node       NodeID     // empty unless a machine exists
	Snapshot   SnapshotID // set from Pausing until its files are gone after a resume or a kill; what it reverts to, while Reverting
	Wanted     string     // driver that was asked for; empty: none in particular
	Driver     string     // driver of its machine and snapshot; set with Node
	Isolation  Isolation  // what that driver gave it; set when it first runs
	State      State
	StopReason string // set when Stopped
	Resources  Resources
	Network    Network
	Env        map[string]string
	Metadata   map[string]string
	Open       bool       // created without "secure": the guest daemon asks for no token
	Head       SnapshotID // newest snapshot that its state comes from, of its own line; empty before the first
	OnTimeout  TimeoutAction
	AutoResume bool
	Lifecycle  Lifecycle
	Timeout    time.Duration // as asked for at create
	CreatedAt  time.Time
	StartedAt  time.Time
	EndsAt     time.Time // when its timeout falls due; when it was paused or stopped, for one that was
	Generation int64     // grows by one with every write; compare-and-swap key
	Launch     int64     // Generation with which its machine was last asked for; a machine of another is stale
}

// Template is a name that points at its newest ready Build.
type Template struct {
	ID        TemplateID
	Team      TeamID
	Aliases   []string
	Public    bool
	Build     BuildID // newest ready build; empty before the first
	CreatedAt time.Time
	UpdatedAt time.Time
}

// BuildStatus says how far a build is. The values are E2B's.
type BuildStatus string

// The build statuses.
const (
	BuildWaiting  BuildStatus = "waiting"
	BuildBuilding BuildStatus = "building"
	BuildReady    BuildStatus = "ready"
	BuildError    BuildStatus = "error"
)

// Build is one immutable result of building a template.
type Build struct {
	ID         BuildID
	Template   TemplateID
	Status     BuildStatus
	Reason     string // why Status is error, safe to show
	Source     string // key of what it was built from; an equal key need not be built again
	Resources  Resources
	Driver     string                // its sandboxes run on it unless they ask for another; empty: the node's choice
	Layers     []string              // blob keys of EROFS layers, lowest first
	Warm       map[string]SnapshotID // by driver: checkpoint taken after the start command was ready
	Start      string                // shell line that runs before the checkpoint, and after a boot without one
	Ready      string                // shell line that succeeds once Start is ready; empty: at once
	Env        map[string]string     // environment of every process in a sandbox of this build
	User       string                // default user; empty means "user"
	Workdir    string                // default working directory; empty means the user's home
	CreatedAt  time.Time
	FinishedAt time.Time
}

// SnapshotKind says why a snapshot is kept, and with that for how long.
type SnapshotKind string

// The kinds of snapshots.
const (
	OwnedSnapshot SnapshotKind = ""     // a build's warm one, or what a paused sandbox is: goes with its owner
	KeptSnapshot  SnapshotKind = "kept" // somebody asked for it: stays until somebody deletes it
	ForkSnapshot  SnapshotKind = "fork" // the start of forks: goes when they have started
	StepSnapshot  SnapshotKind = "step" // after a command or cell: goes when its sandbox's history is thinned, or with the sandbox
)

// SnapshotStatus says what can be done with a snapshot.
type SnapshotStatus string

// The statuses of snapshots.
const (
	SnapshotReady   SnapshotStatus = ""        // whole: sandboxes can be started from it
	SnapshotTaking  SnapshotStatus = "taking"  // the node writes it, or died over it
	SnapshotDropped SnapshotStatus = "dropped" // deleted; its files stay while somebody needs them
	SnapshotGone    SnapshotStatus = "gone"    // without files: only what came after it is left
	SnapshotFailed  SnapshotStatus = "failed"  // a step that could not be taken: without files, Reason says why
)

// Snapshot is a frozen sandbox.
type Snapshot struct {
	ID      SnapshotID
	Build   BuildID    // its layers lie below the snapshot's own writes
	Parent  SnapshotID // what the machine was restored from
	Base    SnapshotID // what its files refer to: only the changes since are in them; empty if they stand alone
	Driver  string     // name of the driver that wrote it
	Key     string     // driver version, CPU and kernel it needs; compared for equality before a restore
	Memory  bool       // false: disk only, resume boots
	Files   []File
	Created time.Time

	// What follows is empty for a build's warm snapshot.
	Sandbox   SandboxID // it was taken of, whose secrets are in it
	Team      TeamID
	Template  TemplateID
	Alias     string // with Tag its name in the team; empty: it has none
	Tag       string
	Kind      SnapshotKind
	Status    SnapshotStatus
	After     SnapshotID // the one before it in its sandbox's line, through forks; empty for the first
	Resources Resources  // of the machine, and of every machine restored from it
	Step      int64      // its number in its sandbox's history; 0: it is none
	Label     string     // what ran in the step, for people
	Reason    string     // why Status is failed, safe to show
}

// Bytes is what the snapshot's own files occupy, without what they refer to.
func (s *Snapshot) Bytes() (sum int64) {
	for _, f := range s.Files {
		if f.Stored > 0 {
			sum += f.Stored
		} else {
			sum += f.Bytes
		}
	}
	return sum
}

// File is one file of a snapshot, kept as a blob.
type File struct {
	Name   string // as the driver knows it; a plain name, no slashes
	Blob   string // key in the blob store
	Bytes  int64
	Stored int64  `json:",omitempty"` // of Bytes those that are not holes, when it was written; 0: not known
	SHA256 string // lower-case hex
}

// NodeStatus is what a node reports of itself.
type NodeStatus struct {
	ID        NodeID
	Drivers   []string // that can run here: what a restore needs one of
	Offers    []string // those that a new sandbox may ask for, what it gets unasked first
	Total     Resources
	Allocated Resources
	Starting  int
	Draining  bool
	Cached    map[string]bool // builds and snapshots whose blobs are on local disk
	SeenAt    time.Time
}

// Team owns sandboxes and templates.
type Team struct {
	ID   TeamID
	Name string
	Slug string // namespace of its template names, [a-z0-9-_]+
}

// APIKey is one credential of a team. The key itself is not kept.
type APIKey struct {
	ID        string
	Team      TeamID
	Name      string
	Hash      string // lower-case hex SHA-256 of the key
	Mask      string // first and last characters, for people
	CreatedAt time.Time
}
