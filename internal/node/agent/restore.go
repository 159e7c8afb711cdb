package agent

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"slices"

	"hearth/internal/driver"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/node/agent/journal"
	"hearth/internal/node/agent/secret"
	"hearth/internal/node/agent/shelf"
	"hearth/internal/node/agent/turn"
)

// driverFor chooses the driver and refuses a snapshot that it cannot restore,
// before anything is read.
func (a *Agent) driverFor(p plan) (driver.Driver, error) {
	name, from := cmp.Or(p.driver, a.cfg.Driver), p.restore
	if from != nil {
		name = from.Driver
	}
	caps, able := a.capabilities(name)
	switch {
	case !able:
		return nil, hearth.Errorf(hearth.FailedPrecondition, "driver %q does not run on this node", name)
	case from != nil && from.Key != caps.Key:
		return nil, hearth.Errorf(hearth.FailedPrecondition,
			"snapshot %s needs %s %q, and this node has %q", from.ID, name, from.Key, caps.Key)
	}
	return a.deps.Drivers[name], nil
}

// capabilities returns what a driver can do here; false when it does not run here.
func (a *Agent) capabilities(name string) (driver.Capabilities, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	caps, able := a.caps[name]
	return caps, able
}

// offers lists what new sandboxes may ask for, what they get unasked first. The
// caller holds mu.
func (a *Agent) offers() []string {
	var list []string
	for _, name := range append([]string{a.cfg.Driver}, a.cfg.Offers...) {
		if _, able := a.caps[name]; able && !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return list
}

// checkpoint makes a snapshot usable by a driver, in a directory of the
// machine's. Both stay until the machine is taken down.
func (a *Agent) checkpoint(ctx context.Context, mc *machine, s *hearth.Snapshot) (*driver.Checkpoint, error) {
	if s == nil {
		return nil, nil
	}
	if err := a.shelf.Hold(ctx, mc.id(), s.ID); err != nil {
		return nil, err
	}
	dir := a.dir("restore", mc.id())
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, shelf.DiskError(err, "the snapshot's directory cannot be made")
	}
	caps, _ := a.capabilities(s.Driver)
	c, err := a.shelf.LayPacked(ctx, s, dir, caps.PackedFile)
	if err == nil && mc.secret != "" {
		mc.given, err = secret.Given(filepath.Join(c.Dir, shelf.SecretFile))
	}
	return c, err
}

// revert starts a sandbox's next machine while the one it has is kept, frozen:
// when the next one answers it takes its place, and when it does not the old one
// goes on where it was. The caller holds the sandbox's lock; ctx is the flight's.
func (a *Agent) revert(ctx context.Context, b *box, p plan) (*node.Instance, error) {
	wake := a.hush(b)
	defer wake()
	b.mc.rec.Phase = journal.Pausing // whoever finds it without its successor thaws it
	err := a.journal.Write(b.mc.rec)
	if err == nil {
		err = b.mc.live.Freeze(ctx)
	}
	var inst *node.Instance
	if err == nil {
		inst, err = a.startCold(ctx, p) // and puts the new box into the old one's place
	}
	if err != nil {
		err = turn.Because(ctx, err)
		a.resume(ctx, b)
		return nil, err
	}
	a.log.Info("sandbox reverted", "sandbox", b.id, "snapshot", p.restore.ID)
	return inst, nil
}
