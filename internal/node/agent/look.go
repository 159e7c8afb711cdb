package agent

import (
	"cmp"
	"context"

	"hearth/internal/hearth"
	"hearth/internal/node/agent/turn"
)

// Look starts a machine from a snapshot that is nobody's and reaches nobody, lets
// see into it, and takes it down. see gets what its daemon, which stays sealed,
// takes for the host's secret. FailedPrecondition when the snapshot cannot be
// restored here, ResourceExhausted when the host has no room.
func (a *Agent) Look(ctx context.Context, b hearth.Build, s hearth.Snapshot, see func(ctx context.Context, dial Dialer, control string) error) error {
	end, err := a.enter()
	if err != nil {
		return err
	}
	defer end()
	if err := a.hasMemory(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, a.cfg.StartTimeout, hearth.Errorf(hearth.DeadlineExceeded,
		"it was not looked through within %s", a.cfg.StartTimeout))
	defer cancel()
	defer context.AfterFunc(a.life, cancel)()
	leave, err := a.queue.Enter(ctx, turn.User)
	if err != nil {
		return err
	}
	mc, err := a.boot(ctx, plan{build: &b, restore: &s, resources: s.Resources, urgency: turn.User})
	leave()
	if err != nil {
		return err
	}
	defer a.discard(ctx, mc)
	ctx, done := mc.within(ctx)
	defer done()
	return turn.Because(ctx, see(ctx, mc.dial, cmp.Or(mc.given, a.key.Of(mc.secret))))
}
