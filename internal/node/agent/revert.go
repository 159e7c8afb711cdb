package agent

import (
	"context"

	"hearth/internal/node"
	"hearth/internal/node/agent/journal"
	"hearth/internal/node/agent/turn"
)

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
