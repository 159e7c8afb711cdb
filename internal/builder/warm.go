package builder

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"hearth/internal/hearth"
	"hearth/internal/node"
)

// Target is a driver of the node for which builds are made warm.
type Target struct {
	Driver string

	// Key is what a snapshot must have as its own to be restored here; empty if
	// the driver keeps no memory: then nothing is warm.
	Key string

	// Chosen limits the driver to templates that choose it. Others boot on it.
	Chosen bool

	// Learns says that the driver's machines start sooner once it has seen one of
	// their snapshot in use.
	Learns bool
}

// preferred is the driver that a recipe's sandboxes run on unasked.
func (b *Builder) preferred(own string) string {
	if own == "" && len(b.deps.Drivers) > 0 {
		return b.deps.Drivers[0].Driver
	}
	return own
}

// targets are the drivers that a recipe's build is made warm for, the preferred
// one first.
func (b *Builder) targets(own string) []Target {
	first := b.preferred(own)
	var list []Target
	for _, t := range b.deps.Drivers {
		switch {
		case t.Key == "":
		case t.Driver == first:
			list = slices.Insert(list, 0, t)
		case !t.Chosen:
			list = append(list, t)
		}
	}
	return list
}

// checkDriver refuses a template's choice that this node does not have.
func (b *Builder) checkDriver(own string) error {
	if own == "" || slices.ContainsFunc(b.deps.Drivers, func(t Target) bool { return t.Driver == own }) {
		return nil
	}
	return invalid("driver: %.40q is not a driver of this node", own)
}

// key is what a driver's snapshots need to have as theirs; empty: none fits.
func (b *Builder) key(driver string) string {
	for _, t := range b.deps.Drivers {
		if t.Driver == driver {
			return t.Key
		}
	}
	return ""
}

// makeWarm makes the build's snapshots, one driver after the other. Without the
// preferred driver's the build fails. Another one that cannot be made is told in
// the log and left out: its sandboxes boot.
func (b *Builder) makeWarm(ctx context.Context, j *job) error {
	targets := b.targets(j.recipe.Driver)
	if len(targets) == 0 {
		return b.deps.Rows.UpdateBuild(ctx, &j.build)
	}
	j.build.Warm = map[string]hearth.SnapshotID{}
	for _, t := range targets {
		j.build.Warm[t.Driver] = hearth.NewSnapshotID() // in the row before it exists: a sweep finds it
	}
	if err := b.deps.Rows.UpdateBuild(ctx, &j.build); err != nil {
		return err
	}
	for n, t := range targets {
		err := b.warm(ctx, j, t, int64(2*n+1)) // and the next one for its rehearsal
		if err == nil {
			continue
		}
		if t.Driver == b.preferred(j.recipe.Driver) || ctx.Err() != nil {
			return err
		}
		j.log.add(Warn, stepFinalize, fmt.Sprintf("No warm snapshot for driver %s, sandboxes on it will boot: %s", t.Driver, reason(err)))
		b.deps.Log.Warn("a template is not warm for a driver", "template", j.recipe.Name, "build", j.build.ID, "driver", t.Driver, "err", err)
		if err := b.scrapWarm(ctx, &j.build, t.Driver); err != nil {
			return err
		}
	}
	return nil
}

// scrapWarm removes what was made of one snapshot.
func (b *Builder) scrapWarm(ctx context.Context, build *hearth.Build, driver string) error {
	id := hearth.BuildMachineID(build.ID)
	if err := b.deps.Node.Stop(ctx, id, "build failed"); err != nil {
		return err
	}
	if err := b.dropSnapshot(ctx, build.Warm[driver]); err != nil {
		return err
	}
	build.Warm = maps.Clone(build.Warm)
	delete(build.Warm, driver)
	return nil
}

// warm boots a machine, waits until its start command is ready, and keeps its
// state as the build's snapshot for a driver. generation tells the machines of
// one build apart.
func (b *Builder) warm(ctx context.Context, j *job, t Target, generation int64) error {
	id := hearth.BuildMachineID(j.build.ID)
	token := string(hearth.NewSnapshotID()) // random; Forget takes it out of the snapshot
	began := time.Now()
	if err := b.start(ctx, j, startOf(j, t.Driver, generation, token)); err != nil {
		return err
	}
	say := func(level, message string) { j.log.add(level, stepFinalize, message) }
	if err := Prepare(ctx, b.deps.Guest(id, token), &j.build, say); err != nil {
		return err
	}
	j.log.add(Info, stepFinalize, "Keeping the state of the running machine")
	snap, err := b.deps.Node.Pause(ctx, id, node.PauseRequest{Into: j.build.Warm[t.Driver], Forget: true})
	if err != nil {
		return err
	}
	snap.Build = j.build.ID
	if err := b.deps.Rows.CreateSnapshot(ctx, snap); err != nil {
		return err
	}
	if t.Learns {
		b.rehearse(ctx, j, snap, generation+1)
	}
	j.log.add(Info, stepFinalize, fmt.Sprintf("Warm on driver %s [%.1f s]", t.Driver, time.Since(began).Seconds()))
	return nil
}

// firstUse is what users of a sandbox do first: a command and, in templates that
// have a code interpreter, a cell. What it says and how it ends is no matter.
const firstUse = `curl --silent --max-time 20 --output /dev/null --header "X-Access-Token: $REHEARSAL" ` +
	`--header 'Content-Type: application/json' --data '{"code":"1"}' http://127.0.0.1:49999/execute`

// rehearse uses a machine of a new snapshot once before users do, for its driver
// to learn from. Without it they wait longer at first: no build fails of it.
func (b *Builder) rehearse(ctx context.Context, j *job, snap *hearth.Snapshot, generation int64) {
	token := string(hearth.NewSnapshotID())
	req := startOf(j, snap.Driver, generation, token)
	req.Restore = snap
	id := req.Sandbox.ID
	_, err := b.deps.Node.Start(ctx, req)
	if err == nil {
		_, err = b.deps.Guest(id, token).Run(ctx, Command{
			Line: firstUse, User: j.build.User, Env: map[string]string{"REHEARSAL": token},
		}, func(Output) {})
	}
	if err = errors.Join(err, b.deps.Node.Stop(context.WithoutCancel(ctx), id, "rehearsed")); err != nil {
		b.deps.Log.Warn("a new snapshot was not rehearsed", "build", j.build.ID, "driver", snap.Driver, "err", err)
	}
}

// startOf asks for the machine in which a build is made warm. The commands are
// the builder's to run, which shows what they print.
func startOf(j *job, driver string, generation int64, token string) node.StartRequest {
	now := time.Now()
	req := node.StartRequest{
		Token: token, Build: j.build, Driver: driver,
		Sandbox: hearth.Sandbox{
			ID: hearth.BuildMachineID(j.build.ID), Template: j.build.Template, Build: j.build.ID, State: hearth.Creating,
			Resources: j.build.Resources, Env: j.build.Env, CreatedAt: now, StartedAt: now, EndsAt: now.Add(maxBuild),
			Generation: generation, Launch: generation,
		},
	}
	req.Build.Start, req.Build.Ready = "", ""
	return req
}

// retryFor is how long a build waits for room on a busy node.
const retryFor = 2 * time.Minute

func (b *Builder) start(ctx context.Context, j *job, req node.StartRequest) error {
	began := time.Now()
	j.log.add(Debug, stepFinalize, "Starting a machine on driver "+req.Driver)
	for wait := time.Second; ; wait *= 2 {
		_, err := b.deps.Node.Start(ctx, req)
		kind := hearth.KindOf(err)
		if err == nil || kind != hearth.ResourceExhausted && kind != hearth.Unavailable || time.Since(began) > retryFor {
			return err
		}
		j.log.add(Info, stepFinalize, "Waiting for room on the node")
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

// usable reports whether a ready build can be started from as it is, on every
// driver that it should be warm for.
func (b *Builder) usable(ctx context.Context, build *hearth.Build, own string) bool {
	if build.Status != hearth.BuildReady || !b.present(ctx, build.Layers) {
		return false
	}
	for _, t := range b.targets(own) {
		s, err := b.deps.Rows.Snapshot(ctx, build.Warm[t.Driver])
		if err != nil || s.Key != t.Key || b.deps.Shelf.Readable(ctx, s.ID) != nil {
			return false
		}
	}
	return true
}

// dropWarm removes all snapshots of a build.
func (b *Builder) dropWarm(ctx context.Context, build *hearth.Build) error {
	var errs []error
	for _, id := range build.Warm {
		errs = append(errs, b.dropSnapshot(ctx, id))
	}
	return errors.Join(errs...)
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
