package control

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"hearth/internal/control/archive"
	"hearth/internal/control/lanes"
	"hearth/internal/control/retry"
	"hearth/internal/control/wish"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/placement"
	"hearth/internal/trace"
)

// CreateRequest is everything a caller may ask of a new sandbox.
type CreateRequest = wish.Create

// Create makes a sandbox and returns when its guest daemon answers. Kinds:
// InvalidArgument for the request, NotFound for the template, ResourceExhausted
// over the team's limit or when no node has room, Unavailable when it may work
// later. After an error nothing of the sandbox is left but a stopped row.
func (c *Controller) Create(ctx context.Context, req CreateRequest) (*hearth.Sandbox, error) {
	ref, err := wish.ParseRef(req.Template)
	if err != nil {
		return nil, err
	}
	if ref.IsSnapshot() {
		return c.createFrom(ctx, req, ref)
	}
	end := trace.Begin(ctx, "control.template")
	t, b, err := c.catalog.Resolve(ctx, req.Team, ref)
	end()
	if missing(err) {
		if sb, serr := c.createFrom(ctx, req, ref); !missing(serr) || errors.Is(serr, archive.ErrTag) {
			return sb, serr
		}
	}
	if err != nil {
		return nil, err
	}
	if err := c.check(&req); err != nil {
		return nil, err
	}
	if err := c.checkDriver(req.Driver); err != nil {
		return nil, err
	}
	now := c.clock()
	sb := &hearth.Sandbox{
		ID: hearth.NewSandboxID(), Team: req.Team, Template: t.ID, Alias: ref.Of(t), Build: b.ID, State: hearth.Creating,
		Wanted: req.Driver, Driver: cmp.Or(req.Driver, b.Driver),
		Resources: b.Resources, Network: req.Network, Env: req.Env, Metadata: req.Metadata, Open: req.Open,
		OnTimeout: req.OnTimeout, AutoResume: req.AutoResume, Lifecycle: req.Lifecycle, Timeout: req.Timeout,
		CreatedAt: now, StartedAt: now, EndsAt: now.Add(req.Timeout), Generation: 1, Launch: 1,
	}
	if err := c.table.Admit(c.route(sb), c.limits.Sandboxes); err != nil {
		return nil, err
	}
	unlock, err := c.lanes.Lock(ctx, sb.ID)
	if err != nil {
		c.table.Remove(sb.ID)
		return nil, err
	}
	defer unlock()
	end = trace.Begin(ctx, "control.row")
	warm, err := c.insert(ctx, sb, b)
	end()
	if err != nil {
		c.table.Remove(sb.ID)
		return nil, err
	}
	return c.launch(ctx, sb, node.StartRequest{Build: *b, Restore: warm, Token: c.access(sb)})
}

// insert places a new sandbox and writes its row. It returns the snapshot that
// the sandbox starts from, nil if there is none.
func (c *Controller) insert(ctx context.Context, sb *hearth.Sandbox, b *hearth.Build) (warm *hearth.Snapshot, err error) {
	if sb.Node, sb.Driver, err = c.place(sb, slices.Collect(maps.Values(b.Warm))); err != nil {
		return nil, err
	}
	if warm, err = c.catalog.Warm(ctx, b, sb.Driver); err != nil {
		return nil, err
	}
	return warm, c.enter(ctx, sb)
}

// enter writes the row of a new sandbox.
func (c *Controller) enter(ctx context.Context, sb *hearth.Sandbox) error {
	wctx, cancel := c.detached(ctx, c.limits.StoreTimeout)
	defer cancel()
	tries := 0
	err := retry.Do(wctx, 4, func() error {
		err := c.store.CreateSandbox(wctx, sb)
		if tries++; tries > 1 && err != nil && hearth.KindOf(err) == hearth.AlreadyExists {
			return nil // an earlier try, whose answer was lost
		}
		return err
	})
	if err != nil {
		return c.doubt(sb, err) // the row may be there all the same
	}
	return nil
}

// access is the token that the guest daemon is given.
func (c *Controller) access(sb *hearth.Sandbox) string {
	if sb.Open {
		return ""
	}
	return c.tokens.Access(sb.ID)
}

// place chooses a node for a sandbox, one that holds what it may start from if it
// can, and the driver if the sandbox has none yet: what the node gives unasked.
func (c *Controller) place(sb *hearth.Sandbox, from []hearth.SnapshotID, avoid ...hearth.NodeID) (hearth.NodeID, string, error) {
	req := placement.Request{Resources: sb.Resources, Driver: sb.Driver, Wants: []string{string(sb.Build)}, Avoid: avoid}
	for _, id := range from {
		req.Wants = append(req.Wants, string(id))
	}
	nodes := c.nodes.Statuses()
	id, err := placement.Choose(req, nodes, rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())))
	if err != nil || sb.Driver != "" {
		return id, sb.Driver, err
	}
	for _, n := range nodes {
		if n.ID == id && len(n.Offers) > 0 {
			return id, n.Offers[0], nil
		}
	}
	return id, "", nil // the node knows
}

// checkDriver refuses what no node lets a new sandbox ask for.
func (c *Controller) checkDriver(name string) error {
	if name == "" {
		return nil
	}
	var offers []string
	for _, n := range c.nodes.Statuses() {
		offers = append(offers, n.Offers...)
	}
	if slices.Contains(offers, name) {
		return nil
	}
	slices.Sort(offers)
	return hearth.Errorf(hearth.InvalidArgument, "driver: %.40q is not offered here; there is: %s", name, strings.Join(slices.Compact(offers), ", "))
}

// launch starts the machine of a sandbox that is being created, on another node
// if the first cannot. The caller holds the sandbox's lock.
func (c *Controller) launch(ctx context.Context, sb *hearth.Sandbox, req node.StartRequest) (*hearth.Sandbox, error) {
	var avoid []hearth.NodeID
	for {
		m, err := c.start(ctx, sb, req)
		if err == nil && ctx.Err() != nil {
			err = lanes.Ended(ctx) // nobody would know the sandbox
		}
		if err == nil {
			return c.begin(ctx, sb, m)
		}
		if req.Restore != nil && sb.Head == "" && hearth.KindOf(err) == hearth.FailedPrecondition {
			c.log.Warn("warm snapshot refused, booting instead", "sandbox", sb.ID, "snapshot", req.Restore.ID, "err", err)
			req.Restore = nil
			continue
		}
		avoid = append(avoid, sb.Node)
		next := c.elsewhere(ctx, sb, req.Restore, err, avoid)
		if next == nil {
			c.giveUp(ctx, sb, err)
			return nil, err
		}
		sb = next
	}
}

// elsewhere moves a sandbox whose start failed to another node, nil if there is
// none or trying makes no sense.
func (c *Controller) elsewhere(ctx context.Context, sb *hearth.Sandbox, from *hearth.Snapshot, cause error, avoid []hearth.NodeID) *hearth.Sandbox {
	kind := hearth.KindOf(cause)
	if ctx.Err() != nil || kind != hearth.Unavailable && kind != hearth.ResourceExhausted {
		return nil
	}
	var ids []hearth.SnapshotID
	if from != nil {
		ids = append(ids, from.ID)
	}
	next, _, err := c.place(sb, ids, avoid...)
	if err != nil || c.halt(ctx, sb, "started elsewhere") != nil {
		return nil
	}
	wctx, cancel := c.detached(ctx, c.limits.StoreTimeout)
	defer cancel()
	moved, err := c.store.UpdateSandbox(wctx, sb.ID, func(s *hearth.Sandbox) error {
		if s.State != hearth.Creating {
			return hearth.Errorf(hearth.FailedPrecondition, "Sandbox %q is %s", s.ID, s.State)
		}
		s.Node, s.Launch = next, s.Generation+1
		return nil
	})
	if err != nil {
		return nil
	}
	c.publish(moved)
	return moved
}

// begin moves a sandbox whose machine answers to running. Its timeout begins now.
func (c *Controller) begin(ctx context.Context, sb *hearth.Sandbox, m *node.Instance) (*hearth.Sandbox, error) {
	defer trace.Begin(ctx, "control.running")()
	now := c.clock()
	running, err := c.move(ctx, sb, hearth.Running, func(s *hearth.Sandbox) error {
		s.EndsAt = now.Add(s.Timeout)
		s.Driver, s.Isolation = cmp.Or(m.Driver, s.Driver), m.Isolation
		return nil
	})
	if err != nil {
		c.giveUp(ctx, sb, err)
		return nil, err
	}
	return running, nil
}

// giveUp ends a sandbox that could not be created.
func (c *Controller) giveUp(ctx context.Context, sb *hearth.Sandbox, cause error) {
	c.log.Warn("sandbox could not be created", "sandbox", sb.ID, "node", sb.Node, "err", cause)
	if _, err := c.stop(ctx, sb, "could not be created: "+hearth.Shown(cause), nil); err != nil {
		c.log.Warn("sandbox is not cleaned up yet", "sandbox", sb.ID, "err", err)
	}
}

// start asks the sandbox's node for its machine, and again when the node could
// not be reached: the node knows a repeated request by the launch.
func (c *Controller) start(ctx context.Context, sb *hearth.Sandbox, req node.StartRequest) (*node.Instance, error) {
	svc, err := c.nodes.Node(sb.Node)
	if err != nil {
		return nil, err
	}
	req.Sandbox, req.Driver = *sb, sb.Driver
	ctx, cancel := context.WithTimeoutCause(ctx, c.limits.StartTimeout,
		hearth.Errorf(hearth.DeadlineExceeded, "the sandbox did not start within %s", c.limits.StartTimeout))
	defer cancel()
	defer trace.Begin(ctx, "node.start")()
	for n := 1; ; n++ {
		m, err := svc.Start(ctx, req)
		if err == nil || n == 3 || hearth.KindOf(err) != hearth.Unavailable || !retry.Wait(ctx, n) {
			return m, err
		}
	}
}

// check refuses what cannot be asked for, and fills in defaults.
func (c *Controller) check(req *CreateRequest) error {
	if err := c.checkTimeout(req.Timeout); err != nil {
		return err
	}
	return wish.CheckCreate(req)
}

// checkTimeout holds a timeout that starts a life against the limits.
func (c *Controller) checkTimeout(d time.Duration) error {
	if d <= 0 {
		return hearth.Errorf(hearth.InvalidArgument, "Timeout must be greater than 0")
	}
	return c.checkMaximum(d)
}

func (c *Controller) checkMaximum(d time.Duration) error {
	if d > c.limits.MaxTimeout {
		return hearth.Errorf(hearth.InvalidArgument, "Timeout cannot be greater than %g hours", c.limits.MaxTimeout.Hours())
	}
	return nil
}
