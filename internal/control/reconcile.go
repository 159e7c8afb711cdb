package control

import (
	"context"
	"sync"
	"time"

	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/store"
)

// settlers is how many sandboxes are settled at once.
const settlers = 16

// unsettled are the states of rows that own something.
func unsettled() []hearth.State {
	return []hearth.State{hearth.Creating, hearth.Running, hearth.Pausing, hearth.Paused, hearth.Resuming, hearth.Reverting, hearth.Stopping}
}

// Reconcile makes rows and machines agree: every row that a crash left in
// between is brought to an end, running rows without their machine are stopped,
// machines without their row are. It also fills the routes and the timeouts.
// What belongs to a node that does not answer is left for later.
func (c *Controller) Reconcile(ctx context.Context) error {
	seen := c.survey(ctx)
	p := store.Page{Limit: store.MaxPage}
	for {
		rows, next, err := c.store.ListSandboxes(ctx, store.SandboxFilter{States: unsettled(), OldestFirst: true}, p)
		if err != nil {
			return err
		}
		each(rows, func(sb *hearth.Sandbox) {
			if _, routed := c.Route(sb.ID); routed && seen.has(sb) {
				return // nothing to settle
			}
			if sb.State == hearth.Pausing { // may take minutes: Run does it
				c.admitKnown(sb)
				return
			}
			c.settleLater(ctx, sb.ID, seen)
		})
		if next == "" {
			break
		}
		p.Cursor = next
	}
	var strays []stray
	for id, machines := range seen {
		for _, m := range machines {
			strays = append(strays, stray{id, m.ID, m.Generation})
		}
	}
	each(strays, func(s stray) { c.stopStray(ctx, s) })
	if err := c.archive.Sweep(ctx, hearth.SnapshotDropped, hearth.SnapshotGone); err != nil && ctx.Err() == nil {
		c.log.Warn("dropped snapshots are not removed yet", "err", err)
	}
	return ctx.Err()
}

// admitKnown makes a sandbox known that is to be settled later.
func (c *Controller) admitKnown(sb *hearth.Sandbox) {
	if _, routed := c.Route(sb.ID); !routed {
		c.publish(sb)
	}
	c.unclear.Add(sb.ID)
}

// stray is a machine that may have no row.
type stray struct {
	node       hearth.NodeID
	id         hearth.SandboxID
	generation int64
}

// of reports whether the machine is the row's.
func (s stray) of(sb *hearth.Sandbox) bool {
	return sb != nil && sb.Node == s.node && sb.Launch == s.generation && sb.State != hearth.Stopped
}

// sighting is the machines that nodes listed a moment ago.
type sighting map[hearth.NodeID]map[hearth.SandboxID]*node.Instance

// machine returns the row's machine if it was seen.
func (s sighting) machine(sb *hearth.Sandbox) *node.Instance {
	if m := s[sb.Node][sb.ID]; m != nil && m.Generation == sb.Launch {
		return m
	}
	return nil
}

// has reports whether a running row's machine was seen and nothing is to be done.
func (s sighting) has(sb *hearth.Sandbox) bool {
	return sb.State == hearth.Running && sb.Snapshot == "" && s.machine(sb) != nil
}

// each runs fn for every item, several at once.
func each[T any](items []T, fn func(T)) {
	var wg sync.WaitGroup
	turns := make(chan struct{}, settlers)
	for _, item := range items {
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			fn(item)
		})
	}
	wg.Wait()
}

// survey lists the machines of every node that answers.
func (c *Controller) survey(ctx context.Context) sighting {
	seen := sighting{}
	for _, s := range c.nodes.Statuses() {
		machines, err := c.instances(ctx, s.ID)
		if err != nil {
			c.log.Warn("node cannot be listed, its sandboxes are settled later", "node", s.ID, "err", err)
			continue
		}
		seen[s.ID] = machines
	}
	return seen
}

// settleLater settles a sandbox, and notes it for another try if that fails.
func (c *Controller) settleLater(ctx context.Context, id hearth.SandboxID, seen sighting) {
	if err := c.settle(ctx, id, seen); err != nil && ctx.Err() == nil {
		c.unclear.Add(id)
		c.log.Warn("sandbox is not settled yet", "sandbox", id, "err", err)
	}
}

// settle brings a sandbox whose last step has an unknown end to a state that
// holds, by what its node says. seen saves asking the node and may be nil.
func (c *Controller) settle(ctx context.Context, id hearth.SandboxID, seen sighting) error {
	unlock, err := c.lanes.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	return c.settleNow(ctx, id, seen)
}

// settleNow is settle for who holds the sandbox's lock.
func (c *Controller) settleNow(ctx context.Context, id hearth.SandboxID, seen sighting) error {
	sb, err := c.store.Sandbox(ctx, id)
	if missing(err) {
		c.table.Remove(id)
		c.due.Drop(id)
		return nil
	}
	if err != nil {
		return err
	}
	if _, routed := c.Route(id); !routed { // for the edge and the limits, until it is settled
		c.publish(sb)
	}
	m := seen.machine(sb)
	if m == nil {
		if m, err = c.machine(ctx, sb); err != nil {
			return err
		}
	}
	ctx = context.WithoutCancel(ctx)
	switch sb.State {
	case hearth.Creating:
		_, err = c.stop(ctx, sb, "the server stopped while it was being created", nil)
	case hearth.Running:
		err = c.settleRunning(ctx, sb, m)
	case hearth.Pausing:
		_, err = c.finishPause(ctx, sb)
	case hearth.Paused:
		err = c.settlePaused(ctx, sb)
	case hearth.Resuming:
		err = c.settleResuming(ctx, sb, m)
	case hearth.Reverting:
		_, err = c.settleReverting(ctx, sb)
	case hearth.Stopping:
		_, err = c.stop(ctx, sb, sb.StopReason, nil)
	case hearth.Stopped:
		c.publish(sb)
	}
	return err
}

func (c *Controller) settleRunning(ctx context.Context, sb *hearth.Sandbox, m *node.Instance) error {
	if m == nil {
		_, err := c.stop(ctx, sb, "its machine is gone", nil)
		return err
	}
	c.publish(sb)
	if sb.Snapshot != "" {
		return c.unshelve(ctx, sb)
	}
	return nil
}

func (c *Controller) settlePaused(ctx context.Context, sb *hearth.Sandbox) error {
	_, err := c.store.Snapshot(ctx, sb.Snapshot)
	if missing(err) {
		_, err = c.stop(ctx, sb, "its snapshot is gone", nil)
		return err
	}
	if err == nil {
		c.publish(sb)
	}
	return err
}

// settleResuming keeps a machine that did start, for as long as was asked for.
func (c *Controller) settleResuming(ctx context.Context, sb *hearth.Sandbox, m *node.Instance) error {
	if m == nil || m.State != hearth.Running {
		return c.back(ctx, sb, c.clock())
	}
	running, err := c.finishResume(ctx, sb, m, max(sb.EndsAt.Sub(c.clock()), time.Second))
	if err != nil {
		return err
	}
	return c.unshelve(ctx, running)
}

// stopStray stops a machine that no row stands for. Those of template builds are
// the builder's.
func (c *Controller) stopStray(ctx context.Context, s stray) {
	if s.id.OfBuild() {
		return
	}
	unlock, err := c.lanes.Lock(ctx, s.id)
	if err != nil {
		return
	}
	defer unlock()
	sb, err := c.store.Sandbox(ctx, s.id)
	if err != nil && !missing(err) {
		c.log.Warn("a machine cannot be compared with its row", "sandbox", s.id, "node", s.node, "err", err)
		return
	}
	if s.of(sb) {
		return
	}
	machines, err := c.instances(ctx, s.node)
	if err != nil {
		return // the node is settled when it is back
	}
	m := machines[s.id]
	if m == nil || (stray{s.node, s.id, m.Generation}).of(sb) {
		return
	}
	c.log.Warn("stopping a machine without a row", "sandbox", s.id, "node", s.node, "generation", m.Generation)
	if err := c.halt(ctx, &hearth.Sandbox{ID: s.id, Node: s.node}, "no sandbox has this machine"); err != nil {
		c.log.Warn("a machine without a row could not be stopped", "sandbox", s.id, "node", s.node, "err", err)
	}
}
