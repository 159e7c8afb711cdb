// Package store is the contract for the platform's metadata.
// Implementations must pass package storetest.
//
// Errors: NotFound for a missing row, AlreadyExists for a taken ID or name,
// Aborted for a lost compare-and-swap, Unavailable when the database is away,
// InvalidArgument for text that CheckText refuses.
//
// Rows go in and come out as copies: what a caller does to its own afterwards
// changes nothing here. Times are kept to the nanosecond and come back in UTC.
package store

import (
	"context"
	"time"

	"hearth/internal/hearth"
)

// Page asks for one page of a keyset listing. Cursor is opaque; a cursor that
// the store did not make is an InvalidArgument.
type Page struct {
	Limit  int
	Cursor string
}

// Store is the union that the composition root hands out; services declare the
// subset they use.
type Store interface {
	Sandboxes
	Templates
	Builds
	Snapshots
	Teams
	Ping(ctx context.Context) error
	Close() error
}

// Sandboxes keeps sandboxes, stopped ones until they are purged.
type Sandboxes interface {
	// CreateSandbox writes a new row as it is; its Generation must be positive.
	CreateSandbox(ctx context.Context, s *hearth.Sandbox) error
	Sandbox(ctx context.Context, id hearth.SandboxID) (*hearth.Sandbox, error)

	// UpdateSandbox loads, calls change, and writes with Generation+1 if
	// Generation still matches, retrying a few times; it fails with Aborted
	// when it keeps losing. An error of change is returned as it is and nothing
	// is written. ID, Team, CreatedAt and Generation are the store's: what change
	// does to them is ignored. change may run more than once.
	UpdateSandbox(ctx context.Context, id hearth.SandboxID, change func(*hearth.Sandbox) error) (*hearth.Sandbox, error)

	// ListSandboxes is ordered by StartedAt, then ID, newest first unless the
	// filter says otherwise. next is empty on the last page.
	ListSandboxes(ctx context.Context, f SandboxFilter, p Page) (list []*hearth.Sandbox, next string, err error)
	CountSandboxes(ctx context.Context, f SandboxFilter) (int, error)

	// DueSandboxes returns running sandboxes whose EndsAt is not after now.
	DueSandboxes(ctx context.Context, now time.Time, limit int) ([]hearth.SandboxID, error)

	// PurgeSandboxes forgets sandboxes that stopped before the given time, by
	// their EndsAt.
	PurgeSandboxes(ctx context.Context, before time.Time) error
}

// SandboxFilter selects sandboxes; zero fields select everything.
type SandboxFilter struct {
	Team         hearth.TeamID
	Node         hearth.NodeID
	Template     hearth.TemplateID
	States       []hearth.State
	Metadata     map[string]string // all pairs must be equal
	StartedAfter time.Time         // inclusive
	OldestFirst  bool
}

// Templates keeps the names under which builds are found.
type Templates interface {
	// CreateTemplate fails with AlreadyExists when an alias is taken in the team.
	CreateTemplate(ctx context.Context, t *hearth.Template) error

	// ResolveTemplate finds a template by ID or alias in the team, then among
	// public ones (by alias the oldest of them), with its newest ready build.
	// "slug/alias" looks in the team of that slug alone. FailedPrecondition when
	// it has no ready build; the template is returned with the error.
	ResolveTemplate(ctx context.Context, team hearth.TeamID, nameOrID string) (*hearth.Template, *hearth.Build, error)

	// TemplateByAlias finds a team's own template, with or without a build.
	TemplateByAlias(ctx context.Context, team hearth.TeamID, alias string) (*hearth.Template, error)
	Template(ctx context.Context, id hearth.TemplateID) (*hearth.Template, error)

	// ListTemplates lists a team's own templates, newest first.
	ListTemplates(ctx context.Context, team hearth.TeamID, p Page) (list []*hearth.Template, next string, err error)

	// DeleteTemplate removes a template and its builds.
	DeleteTemplate(ctx context.Context, id hearth.TemplateID) error
}

// Builds keeps the results of building templates.
type Builds interface {
	// CreateBuild fails with NotFound when the template does not exist.
	CreateBuild(ctx context.Context, b *hearth.Build) error
	Build(ctx context.Context, id hearth.BuildID) (*hearth.Build, error)
	ListBuilds(ctx context.Context, template hearth.TemplateID) ([]*hearth.Build, error) // newest first

	// UpdateBuild writes a build that is not finished; FailedPrecondition when
	// it is, InvalidArgument when b's own status is a final one.
	UpdateBuild(ctx context.Context, b *hearth.Build) error

	// FinishBuild writes the build and, when it is ready, moves its template to
	// it in the same transaction, unless the template already points at a build
	// that was created later. FailedPrecondition when the build is finished,
	// InvalidArgument when b's own status is not a final one.
	FinishBuild(ctx context.Context, b *hearth.Build) error
}

// Snapshots keeps what was checkpointed. A name, Alias and Tag of a Team, is
// the snapshot's that got it last: writing it takes it from the one before.
type Snapshots interface {
	CreateSnapshot(ctx context.Context, s *hearth.Snapshot) error
	Snapshot(ctx context.Context, id hearth.SnapshotID) (*hearth.Snapshot, error)

	// UpdateSnapshot loads, calls change, and writes, in one transaction. An error
	// of change is returned as it is and nothing is written. ID, Team and Created
	// stay what they are.
	UpdateSnapshot(ctx context.Context, id hearth.SnapshotID, change func(*hearth.Snapshot) error) (*hearth.Snapshot, error)

	// FindSnapshots is ordered by Created, then ID, newest first. next is empty
	// on the last page.
	FindSnapshots(ctx context.Context, f SnapshotFilter, p Page) (list []*hearth.Snapshot, next string, err error)

	// SnapshotUses counts what refers to a snapshot.
	SnapshotUses(ctx context.Context, id hearth.SnapshotID) (SnapshotUses, error)
	ListSnapshots(ctx context.Context) ([]*hearth.Snapshot, error) // oldest first
	DeleteSnapshot(ctx context.Context, id hearth.SnapshotID) error
}

// SnapshotFilter selects snapshots; zero fields select everything.
type SnapshotFilter struct {
	Team     hearth.TeamID
	Sandbox  hearth.SandboxID
	Template hearth.TemplateID
	Alias    string
	Tag      string
	Kinds    []hearth.SnapshotKind
	Statuses []hearth.SnapshotStatus
}

// SnapshotUses is who refers to a snapshot.
type SnapshotUses struct {
	Sandboxes int // not stopped, that are paused in it or being started from it
	Heirs     int // sandboxes not stopped, and snapshots, that come after it in a line
	Others    int // of the heirs those that are not, or not of, its own sandbox
}

// Teams keeps teams and the hashes of their API keys.
type Teams interface {
	CreateTeam(ctx context.Context, t *hearth.Team) error
	Team(ctx context.Context, id hearth.TeamID) (*hearth.Team, error)
	ListTeams(ctx context.Context) ([]*hearth.Team, error) // by ID

	// CreateAPIKey fails with NotFound when the team does not exist.
	CreateAPIKey(ctx context.Context, k *hearth.APIKey) error
	TeamByKeyHash(ctx context.Context, hash string) (*hearth.Team, error)
}
