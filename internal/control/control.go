// Package control is the control plane: it owns what every sandbox should be
// and drives nodes towards it.
//
// The store is the truth. A step that needs a node is three writes apart: the
// row moves to the state of doing (creating, pausing, resuming, stopping), the
// node does it, the row moves on. Whoever dies between them leaves a row that
// says what was being done, and settle brings it to an end: at the start of the
// process, when a node comes back, and a few seconds after a call that could
// not find out how its step ended.
//
// One call at a time changes a sandbox's state: it holds the sandbox's lock
// here and compares and swaps in the store. Reading never waits. Calls outlive
// the clients that made them, and equal calls for one sandbox share one flight.
package control

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"hearth/internal/control/archive"
	"hearth/internal/control/catalog"
	"hearth/internal/control/due"
	"hearth/internal/control/history"
	"hearth/internal/control/lanes"
	"hearth/internal/control/retry"
	"hearth/internal/control/routes"
	"hearth/internal/control/usage"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/store"
)

// metadata is the part of store.Store that the control plane uses.
type metadata interface {
	store.Sandboxes
	store.Snapshots
	builds
}

type builds interface {
	DeleteTemplate(ctx context.Context, id hearth.TemplateID) error
	ResolveTemplate(ctx context.Context, team hearth.TeamID, nameOrID string) (*hearth.Template, *hearth.Build, error)
	Build(ctx context.Context, id hearth.BuildID) (*hearth.Build, error)
	ListBuilds(ctx context.Context, template hearth.TemplateID) ([]*hearth.Build, error)
}

// nodes finds the services that speak for hosts. Node fails with NotFound for a
// node that has left for good, with Unavailable for one that is away; a host
// keeps its ID over restarts.
type nodes interface {
	Node(id hearth.NodeID) (node.Service, error)
	Statuses() []*hearth.NodeStatus
}

// tokens derives a sandbox's secrets from its ID.
type tokens interface {
	Access(id hearth.SandboxID) string
	Traffic(id hearth.SandboxID) string
}

// shelf has the files of snapshots.
type shelf interface {
	archive.Shelf
	history.Shelf
}

// Deps is what a controller is made of. Every field but Limits and Unused is required.
type Deps struct {
	Store  metadata
	Nodes  nodes
	Tokens tokens
	Shelf  shelf
	Now    func() time.Time
	Log    *slog.Logger
	Limits Limits

	// Unused says since when no request to a sandbox has been under way, the zero
	// time if none was seen; false while one is. Nil: nothing is paused for idleness.
	Unused func(id hearth.SandboxID) (since time.Time, unused bool)
}

// Limits are the bounds of what callers may ask for and of how long things may
// take. A zero field is its default.
type Limits struct {
	Sandboxes    int           // machines of one team at once; 0: no limit
	MaxTimeout   time.Duration // longest life from a start or resume; 24 h
	StartTimeout time.Duration // 90 s
	PauseTimeout time.Duration // 10 min
	StoreTimeout time.Duration // for one write that must be made; 30 s
	Settle       time.Duration // between tries to end what is unclear; 5 s
	Sample       time.Duration // between metrics samples; 5 s
	Retention    time.Duration // how long stopped sandboxes are remembered; 1 h
}

func (l Limits) withDefaults() Limits {
	set := func(d *time.Duration, to time.Duration) {
		if *d <= 0 {
			*d = to
		}
	}
	set(&l.MaxTimeout, 24*time.Hour)
	set(&l.StartTimeout, 90*time.Second)
	set(&l.PauseTimeout, 10*time.Minute)
	set(&l.StoreTimeout, 30*time.Second)
	set(&l.Settle, 5*time.Second)
	set(&l.Sample, 5*time.Second)
	set(&l.Retention, time.Hour)
	return l
}

// Controller is the control plane's only entry point. Its methods are safe for
// concurrent use. Call Reconcile once before the first of them, and Run.
type Controller struct {
	store  metadata
	nodes  nodes
	tokens tokens
	now    func() time.Time
	log    *slog.Logger
	limits Limits
	unused func(hearth.SandboxID) (time.Time, bool)

	lanes   *lanes.Lanes
	table   *routes.Table
	due     *due.Queue
	unclear lanes.Set // sandboxes whose last step has an unknown end
	archive *archive.Archive
	history *history.Keeper
	catalog *catalog.Catalog
	gates   gates
	samples *usage.Samples

	life context.Context // ends when Run has given up waiting for calls under way
	end  context.CancelCauseFunc
	work sync.WaitGroup // calls that go on without their callers
}

// New returns a controller. It starts nothing.
func New(d Deps) *Controller {
	life, end := context.WithCancelCause(context.Background())
	c := &Controller{
		store: d.Store, nodes: d.Nodes, tokens: d.Tokens, now: d.Now, log: d.Log,
		limits: d.Limits.withDefaults(), unused: d.Unused, table: routes.New(), due: due.New(), samples: usage.New(), gates: newGates(), life: life, end: end,
	}
	c.lanes = lanes.New(life, &c.work)
	c.catalog = catalog.New(catalog.Deps{Store: d.Store, Log: d.Log})
	c.archive = archive.New(archive.Deps{
		Store: d.Store, Shelf: d.Shelf, Log: d.Log,
		Detached: func(ctx context.Context) (context.Context, context.CancelFunc) {
			return c.detached(ctx, c.limits.StoreTimeout)
		},
	})
	c.history = history.New(history.Deps{
		Store: d.Store, Archive: c.archive, Shelf: d.Shelf, Lanes: c.lanes, Go: c.work.Go, Life: c.life, Log: d.Log, Take: c.takeStep,
	})
	return c
}

// Archive is the controller's snapshots.
func (c *Controller) Archive() *archive.Archive { return c.archive }

// clock is the time as the store keeps it.
func (c *Controller) clock() time.Time { return c.now().UTC().Round(0) }

// detached is ctx without its end, with a deadline of its own and the
// controller's life.
func (c *Controller) detached(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), d,
		hearth.Errorf(hearth.DeadlineExceeded, "no answer within %s", d))
	stop := context.AfterFunc(c.life, cancel)
	return ctx, func() { stop(); cancel() }
}

// missing reports whether err says that a row or machine does not exist.
func missing(err error) bool { return err != nil && hearth.KindOf(err) == hearth.NotFound }

// errSame ends an update that was made already, by an earlier try whose answer
// was lost.
var errSame = errors.New("already so")

// move writes a sandbox's next state. The caller holds the sandbox's lock and
// has just read sb; nobody else changes the state meanwhile. An error of
// change is returned as it is and the row stays. After any other error the row
// is as it was, or that is unknown.
func (c *Controller) move(ctx context.Context, sb *hearth.Sandbox, to hearth.State, change func(*hearth.Sandbox) error) (*hearth.Sandbox, error) {
	ctx, cancel := c.detached(ctx, c.limits.StoreTimeout)
	defer cancel()
	var out *hearth.Sandbox
	err := retry.Do(ctx, 8, func() (err error) {
		var seen *hearth.Sandbox
		out, err = c.store.UpdateSandbox(ctx, sb.ID, func(s *hearth.Sandbox) error {
			if s.State == to && s.Generation > sb.Generation {
				seen = s
				return errSame
			}
			if s.State != sb.State || !s.State.CanBecome(to) {
				return hearth.Errorf(hearth.FailedPrecondition, "Sandbox %q is %s and cannot become %s", s.ID, s.State, to)
			}
			s.State = to
			return change(s)
		})
		if errors.Is(err, errSame) {
			out, err = seen, nil
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	c.publish(out)
	return out, nil
}

// publish makes a row's new state known to the edge and to the timeouts.
func (c *Controller) publish(sb *hearth.Sandbox) {
	c.table.Put(c.route(sb))
	switch sb.State {
	case hearth.Running:
		c.due.Set(sb)
	case hearth.Paused, hearth.Stopping, hearth.Stopped:
		c.due.Drop(sb.ID)
	}
}

// notFound is the one answer for what is not there, not the caller's, or over.
func notFound(id hearth.SandboxID) error {
	return hearth.Errorf(hearth.NotFound, "Sandbox %q doesn't exist or you don't have access to it", id)
}

// row reads a sandbox of a team, whatever its state but stopped.
func (c *Controller) row(ctx context.Context, team hearth.TeamID, id hearth.SandboxID) (*hearth.Sandbox, error) {
	sb, err := c.store.Sandbox(ctx, id)
	if missing(err) {
		return nil, notFound(id)
	}
	if err != nil {
		return nil, err
	}
	if sb.Team != team || sb.State == hearth.Stopped {
		return nil, notFound(id)
	}
	return sb, nil
}

// Sandbox returns a sandbox of the team: running, or on its way from or to
// paused. NotFound before it runs and once it is being killed.
func (c *Controller) Sandbox(ctx context.Context, team hearth.TeamID, id hearth.SandboxID) (*hearth.Sandbox, error) {
	sb, err := c.row(ctx, team, id)
	if err == nil && (sb.State == hearth.Creating || sb.State == hearth.Stopping) {
		err = notFound(id)
	}
	if err != nil {
		return nil, err
	}
	return sb, nil
}

// List is a page of sandboxes, as store.Sandboxes.ListSandboxes.
func (c *Controller) List(ctx context.Context, f store.SandboxFilter, p store.Page) ([]*hearth.Sandbox, string, error) {
	return c.store.ListSandboxes(ctx, f, p)
}

// Count is the number of sandboxes that a filter selects. A team's sandboxes in
// states that live are counted in memory, however many there are.
func (c *Controller) Count(ctx context.Context, f store.SandboxFilter) (int, error) {
	if n, ok := c.table.Count(f); ok {
		return n, nil
	}
	return c.store.CountSandboxes(ctx, f)
}
