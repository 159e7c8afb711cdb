// Package driver is the contract between a node and an isolation technology.
// Implementations live in child packages and must pass package drivertest.
//
// The life of a machine: Start boots it from layers, or restores it from a
// checkpoint. The owner may Freeze it (its vCPUs stop in place, it costs no
// CPU), take a Checkpoint of it while frozen, and Thaw it. Close kills it and
// frees everything it held on the host. A machine outlives the process that
// started it: after a restart the owner calls Attach with the handle it kept.
package driver

import (
	"context"
	"net"
	"net/netip"
	"os"
	"time"

	"hearth/internal/hearth"
)

// A Driver starts machines with one isolation technology on this host.
// Methods are safe for concurrent use.
type Driver interface {
	Name() string

	// Probe reports whether this host can run the driver, and what it can do.
	// The error is a FailedPrecondition that says what is missing and the remedy.
	Probe(ctx context.Context) (Capabilities, error)

	// Start boots a machine, or restores one when spec.From is set. A machine
	// is running when Start returns, though its daemon may not answer yet.
	// When it fails nothing is left behind. A checkpoint whose Key differs from
	// the driver's own is refused with FailedPrecondition before anything runs.
	Start(ctx context.Context, spec Spec) (Machine, error)

	// Attach finds a machine started by an earlier process from its handle,
	// frozen or running as it was left. Process id, start time and executable
	// must all match. It returns a NotFound error when the machine is gone; the
	// caller then calls Sweep.
	Attach(ctx context.Context, h Handle) (Machine, error)

	// Sweep removes whatever a dead machine left on the host: processes,
	// cgroups, mounts, h.Dir. Idempotent. Of the handle only Driver, ID and Dir
	// need be set, so that a start cut short by a crash can be swept too.
	Sweep(ctx context.Context, h Handle) error
}

// Capabilities is what a driver can do on this host.
type Capabilities struct {
	Isolation      hearth.Isolation // what stands between guest and host
	MemorySnapshot bool             // Checkpoint keeps memory and processes
	FileSnapshot   bool             // machines are FileKeepers
	SharedMemory   bool             // machines of one checkpoint that stands alone share the memory they only read
	PackedFile     string           // the file of its checkpoints that Start takes in Checkpoint.Packed, too; empty: none
	LearnsPages    bool             // machines start sooner once one of their checkpoint was used: what it wrote to first is read in advance
	Blanks         bool             // the driver is a Preparer
	Rests          bool             // machines are Resters
	Tap            bool             // machines send through Attachment.Tap; else they take Device's address over
	Key            string           // what a checkpoint of this driver on this host needs: version, CPU, kernel
}

// A Machine is one running guest. Dial, Usage, Done and Exit may be called from
// any goroutine; the rest are called by one owner at a time.
type Machine interface {
	Handle() Handle

	// Dial connects to a TCP port inside the guest. A port on which nothing
	// listens fails with an error that wraps ECONNREFUSED. Connections are
	// closed when the guest ends; until then a frozen guest is merely silent.
	Dial(ctx context.Context, port uint16) (net.Conn, error)

	// Freeze stops the guest's vCPUs in place and Thaw lets them go on. Both
	// are idempotent.
	Freeze(ctx context.Context) error
	Thaw(ctx context.Context) error

	// Checkpoint writes a frozen machine's memory and writes into dir, which
	// exists and is empty. The machine stays frozen and can be thawed. Files
	// need not be synced to disk: who keeps them syncs them before answering
	// for them. After an error dir's content is the caller's to remove.
	// A machine restored from a checkpoint may refer to it as the new one's Base.
	Checkpoint(ctx context.Context, dir string) (*Checkpoint, error)

	Usage(ctx context.Context) (Usage, error)

	// Done is closed when the guest has ended, within a second of its death;
	// Exit then says how.
	Done() <-chan struct{}
	Exit() Exit

	// Close kills the guest and frees every host resource, spec.Dir included.
	// Idempotent; safe after the guest has died.
	Close(ctx context.Context) error
}

// A Rester is a Machine that waits for long more cheaply than one that was just frozen.
type Rester interface {
	// Rest is Freeze after which the machine uses no processor time at all, and less
	// memory than before if it can. It may be deaf, too: a Dial waits until the next Thaw or
	// fails. All else is as of a frozen machine.
	Rest(ctx context.Context) error
}

// Resting is how a machine waits for long: by its Rest, or frozen when it has none.
func Resting(m Machine) func(context.Context) error {
	if able, is := m.(Rester); is {
		return able.Rest
	}
	return m.Freeze
}

// A Timekeeper is a Machine whose timers may be late by a millisecond or two until somebody uses it:
// coarse ones make its start cheaper.
type Timekeeper interface {
	// ExactTimers makes them as exact as the driver's can be. It may be called again.
	ExactTimers()
}

// ExactTimers is called before a machine is used.
func ExactTimers(m Machine) {
	if able, is := m.(Timekeeper); is {
		able.ExactTimers()
	}
}

// A FileKeeper is a Machine that can keep its files without its memory.
type FileKeeper interface {
	// CheckpointFiles is Checkpoint that leaves out memory and processes: a machine
	// started from it boots, and finds every file that was written. What lies in
	// file systems that are in memory by nature, such as /tmp on tmpfs, is lost.
	// A machine that has a kernel of its own may run for a moment in between, so
	// that it writes out what it has in memory; one that does not answer is an
	// error, and frozen as before.
	CheckpointFiles(ctx context.Context, dir string) (*Checkpoint, error)
}

// A Preparer is a Driver that can do ahead of time what a restore does before it
// looks at the checkpoint.
type Preparer interface {
	// Prepare makes a blank of a spec whose From is nil. When it fails nothing is
	// left behind.
	Prepare(ctx context.Context, spec Spec) (Blank, error)
}

// A Blank is a machine that waits for its state: its processes and its memory on
// the host are there, and no guest. Until it is restored it runs nobody's code and
// can reach nobody. It ends with the process that prepared it; what is left
// then is removed by Sweep, as of a start that was cut short.
type Blank interface {
	// Restore makes the machine that Start would make of the spec with this
	// checkpoint. It works once: whatever comes of it, the blank is used up, and
	// after an error nothing is left behind. FailedPrecondition says that
	// the checkpoint does not fit this blank; Start may still be able to restore it.
	Restore(ctx context.Context, from *Checkpoint) (Machine, error)

	// Memory is what it holds of the host's now, in bytes.
	Memory() int64

	// Done is closed when the blank has ended. Once it was asked to be restored it
	// says nothing any more.
	Done() <-chan struct{}

	// Close frees every host resource, spec.Dir included. Idempotent; it does
	// nothing to a machine that was restored.
	Close(ctx context.Context) error
}

// Spec is everything Start needs. It is plain data so that it can be logged,
// compared in tests and sent to a helper process. It holds no secrets.
type Spec struct {
	ID        string   // one per start; never reused, unlike a sandbox ID; [a-z0-9-]{1,40}
	Dir       string   // the only place on the host the driver may write; absolute, exists, empty
	Layers    []string // EROFS images, lowest first; absolute paths
	Resources hearth.Resources
	Net       Attachment
	Hostname  string
	From      *Checkpoint // nil boots; its files stay where they are until the machine is closed
}

// Attachment is the network slot prepared by package netns.
type Attachment struct {
	NetNS   string // path that can be opened and entered; empty: no network
	Guest   netip.Prefix
	Gateway netip.Addr
	Device  string           // interface inside the namespace
	MAC     net.HardwareAddr // the guest's; frames of another never arrive
	Tap     string           // tap device inside the namespace, wired to Device; empty: not asked for
}

// Handle names a machine across restarts of this process.
type Handle struct {
	Driver string `json:"driver"`
	ID     string `json:"id"`
	Dir    string `json:"dir"`
	State  []byte `json:"state,omitempty"` // opaque to everyone but the driver
}

// Checkpoint is a machine's frozen state on local disk.
type Checkpoint struct {
	Driver string   `json:"driver"`
	Key    string   `json:"key"`   // Capabilities.Key of the driver that wrote it
	Dir    string   `json:"-"`     // where the files are now; absolute
	Files  []string `json:"files"` // plain names in Dir

	// Packed are those of Files that are not in Dir, by name: Start reads of them
	// what it needs, when it needs it. Only what Capabilities.PackedFile names.
	Packed map[string]Packed `json:"-"`

	// FilesOnly says that there is no memory in it: a machine started from it boots.
	FilesOnly bool `json:"files_only,omitempty"`

	// Base is the checkpoint that this one refers to, possibly layered itself: a
	// driver may write only what changed since Spec.From. It is Spec.From, or a
	// Base of it, and its owner knows it by its Dir. Its files must stay as
	// they are while this one, or a machine started from it, exists. Nil: this
	// one stands alone.
	Base *Checkpoint `json:"-"`
}

// Packed is a file that lies in an archive, or farther away.
type Packed interface {
	Size() int64

	// Lend opens the file for a process that has nothing else: what it is told, which
	// may hold secrets, and descriptors, which the caller closes. That process can
	// read the file to its end, whatever becomes of this one. Every byte it reads is
	// verified by then, and not before.
	Lend(ctx context.Context) (layout []byte, files []*os.File, err error)
}

// MaxLayers is how many checkpoints may lie on each other, the lowest counted: a
// driver writes one that stands alone rather than a deeper one.
const MaxLayers = 16

// Layers counts the checkpoints that c is made of, itself included; nil has none.
func (c *Checkpoint) Layers() int {
	n := 0
	for ; c != nil; c = c.Base {
		n++
	}
	return n
}

// Usage is what a machine has used so far, by the host's accounting.
type Usage struct {
	CPU       time.Duration // since the machine started
	Memory    int64         // bytes now
	MemoryMax int64         // bytes allowed
	RxBytes   int64
	TxBytes   int64
}

// Exit says how a machine ended.
type Exit struct {
	Code   int
	OOM    bool // the host killed it at its memory limit
	Reason string
	At     time.Time
}

// Why says in a few words how a machine ended.
func (x Exit) Why() string {
	switch {
	case x.OOM:
		return "out of memory"
	case x.Reason != "":
		return x.Reason
	}
	return "its machine ended"
}
