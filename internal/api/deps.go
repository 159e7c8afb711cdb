package api

import (
	"context"
	"io"
	"log/slog"
	"time"

	"hearth/internal/control"
	"hearth/internal/control/compare"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/store"
)

// Deps is what the API is made of. Fields are required unless they say otherwise.
type Deps struct {
	Sandboxes   sandboxes
	Templates   templates
	Parcels     parcels     // optional: without it snapshots stay where they are
	Differences differences // optional: without it snapshots are not compared
	Builds      builds      // optional: without it builds have no logs
	Tokens      tokens
	Keys        keys
	Throttle    throttle // optional: without it wrong keys may be tried without end

	// Ready says whether the server takes work; nil means always.
	Ready func(context.Context) error

	// Domain is reported to clients, which build host names from it.
	// Empty leaves the choice to them.
	Domain string

	Log *slog.Logger
}

// sandboxes is the part of control.Controller that the API calls. Every call
// but List and Count checks that the sandbox is the team's and fails with
// NotFound when it is not. The request type is control's own: plain data, no behaviour.
type sandboxes interface {
	Create(ctx context.Context, req control.CreateRequest) (*hearth.Sandbox, error)
	Sandbox(ctx context.Context, team hearth.TeamID, id hearth.SandboxID) (*hearth.Sandbox, error)
	sandboxLists
	sandboxLife
	snapshots
	histories
	SetNetwork(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, n hearth.Network) error

	// Metrics returns samples, oldest first; a zero start means from the
	// beginning, a zero end until now.
	Metrics(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, start, end time.Time) ([]node.Usage, error)
}

type sandboxLists interface {
	List(ctx context.Context, f store.SandboxFilter, p store.Page) (list []*hearth.Sandbox, next string, err error)
	Count(ctx context.Context, f store.SandboxFilter) (int, error)
}

type sandboxLife interface {
	// Connect extends a running sandbox or resumes a paused one; resumed says which.
	Connect(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, timeout time.Duration) (s *hearth.Sandbox, resumed bool, err error)
	Pause(ctx context.Context, team hearth.TeamID, id hearth.SandboxID) error
	PauseFiles(ctx context.Context, team hearth.TeamID, id hearth.SandboxID) error // without memory
	Kill(ctx context.Context, team hearth.TeamID, id hearth.SandboxID) error

	// SetTimeout lets the sandbox end d from now; Extend never shortens.
	SetTimeout(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, d time.Duration) error
	Extend(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, d time.Duration) error
}

type snapshots interface {
	Snapshot(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, req control.SnapshotRequest) (*hearth.Snapshot, error)
	Snapshots(ctx context.Context, f store.SnapshotFilter, p store.Page) (list []*hearth.Snapshot, next string, err error)

	// DeleteSnapshot takes an ID or a name; NotFound when it is no snapshot of the team.
	DeleteSnapshot(ctx context.Context, team hearth.TeamID, name string) error
	Fork(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, timeout time.Duration, count int) ([]control.Forked, error)
	Rollback(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, name string) (*hearth.Sandbox, error)
	Tree(ctx context.Context, team hearth.TeamID, id hearth.SandboxID) (*control.Tree, error)
}

// histories are the steps of sandboxes that were created with one.
type histories interface {
	History(ctx context.Context, team hearth.TeamID, id hearth.SandboxID) (*control.History, error)
	RollbackTo(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, step int64) (*hearth.Sandbox, error)
	KeepStep(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, step int64, req control.SnapshotRequest) (*hearth.Snapshot, error)
}

// parcels is control/travel.Desk: snapshots as files.
type parcels interface {
	// Export writes nothing when the team has no such snapshot.
	Export(ctx context.Context, team hearth.TeamID, name string, w io.Writer) error
	Import(ctx context.Context, team hearth.TeamID, r io.Reader) (*hearth.Snapshot, error)
}

// differences is control/compare.Desk.
type differences interface {
	// Diff says what became of one snapshot's files in another.
	Diff(ctx context.Context, team hearth.TeamID, from, to string, limit int) (*compare.Result, error)
}

// templates is the part of store.Templates that the API reads and deletes.
type templates interface {
	ResolveTemplate(ctx context.Context, team hearth.TeamID, nameOrID string) (*hearth.Template, *hearth.Build, error)
	TemplateByAlias(ctx context.Context, team hearth.TeamID, alias string) (*hearth.Template, error)
	Template(ctx context.Context, id hearth.TemplateID) (*hearth.Template, error)
	ListTemplates(ctx context.Context, team hearth.TeamID, p store.Page) (list []*hearth.Template, next string, err error)
	DeleteTemplate(ctx context.Context, id hearth.TemplateID) error
	Build(ctx context.Context, id hearth.BuildID) (*hearth.Build, error)
	ListBuilds(ctx context.Context, template hearth.TemplateID) ([]*hearth.Build, error)
}

// LogEntry is one line of a build's log.
type LogEntry struct {
	At      time.Time
	Level   string // debug, info, warn or error
	Step    string // "base", a step's number, or "finalize"; may be empty
	Message string
}

// builds is the builder's memory of what builds printed.
type builds interface {
	// Logs returns at most limit entries from the offset-th on, oldest first.
	Logs(build hearth.BuildID, offset, limit int) []LogEntry
}

// tokens derives a sandbox's secrets from its ID; the same ID, the same token.
type tokens interface {
	Access(id hearth.SandboxID) string  // for the daemon inside
	Traffic(id hearth.SandboxID) string // for ports that are not public
}

// keys finds the team that an API key belongs to; NotFound or Unauthenticated
// when there is none.
type keys interface {
	Team(ctx context.Context, key string) (*hearth.Team, error)
}

// throttle slows down those who try keys.
type throttle interface {
	// Wait says for how long the client has to stay away; 0 lets it in.
	Wait(client string) time.Duration
	// Failed counts a wrong key against the client.
	Failed(client string)
}
