// Package guest is the contract with the daemon inside a sandbox: its ports,
// and what the host asks of it. Users' calls (processes, files, code) go through
// the edge straight to the daemon's public services and never through Agent.
//
// The daemon is *sealed* when it starts and from Quiesce on: it answers its
// health check and Init, and refuses everything else with 503. So no clone of a
// checkpoint serves anybody before Init has given it a clock, fresh entropy,
// an identity and a token of its own.
package guest

import (
	"context"
	"time"
)

// Ports on which the parts of the daemon listen inside every sandbox.
const (
	Port        = 49983 // processes, files, health, init
	CodePort    = 49999 // code interpreter, in templates that have one
	JupyterPort = 8888  // Jupyter Server, started on first use, in the same templates
)

// ControlHeader carries the secret that only the host knows. Without it, or
// with a wrong one, the host's own endpoints answer 401.
const ControlHeader = "X-Hearth-Control"

// Paths of the endpoints that are for the host alone, on Port. The edge never
// forwards them.
const (
	InitPath    = "/init"
	QuiescePath = "/quiesce"
	ForwardPath = "/forward" // ?port=N: upgrades to a connection to 127.0.0.1:N

	// RehearsePath makes a sealed daemon that nobody has claimed run a command and a
	// cell that do nothing, so that the first ones that matter are not the first.
	RehearsePath = "/rehearse"
)

// Agent is what the host asks of a guest. Whatever a guest replies is hostile:
// bounded in size and time by the implementation.
type Agent interface {
	// Init unseals the daemon. It is called after every boot, restore and thaw
	// from a failed checkpoint. It waits until the daemon answers or ctx ends.
	Init(ctx context.Context, req InitRequest) error

	// Quiesce seals the daemon and flushes file systems before a checkpoint.
	Quiesce(ctx context.Context, req QuiesceRequest) error
}

// InitRequest is the JSON body of POST /init. The daemon answers 204.
//
// The first Init of a sealed daemon that has no control secret sets it; every
// later one must present it in ControlHeader (trust on first use: no user code
// runs in a machine before its first Init).
type InitRequest struct {
	Now        time.Time         `json:"now"`        // the guest's wall clock is set to it if it can be
	Seed       []byte            `json:"seed"`       // fresh entropy, at least 32 bytes
	Control    string            `json:"control"`    // secret that later host calls present
	Token      string            `json:"token"`      // access token users present; empty: open
	SandboxID  string            `json:"sandbox_id"` // also the host name
	TemplateID string            `json:"template_id"`
	Env        map[string]string `json:"env"`     // replaces what an earlier Init set
	User       string            `json:"user"`    // default user
	Workdir    string            `json:"workdir"` // default directory; empty: home
	DNS        []string          `json:"dns"`     // written to /etc/resolv.conf

	// GoesOn says that this machine is the one that was quiesced, not one that was
	// started from its checkpoint: its connections live, and requests that Hold
	// kept waiting are served. Otherwise both have lost their other end.
	GoesOn bool `json:"goes_on"`
}

// QuiesceRequest is the JSON body of POST /quiesce.
type QuiesceRequest struct {
	// Forget drops control secret, token, environment and identity, so that the
	// checkpoint can be the start of many sandboxes (a template's warm snapshot).
	Forget bool `json:"forget"`

	// Hold lets users' requests wait for Init instead of refusing them: the
	// sandbox goes on in a moment.
	Hold bool `json:"hold"`
}
