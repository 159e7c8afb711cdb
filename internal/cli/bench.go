package cli

import "hearth/internal/bench"

type benchCmd struct {
	dataFlag
	bench.Options
}

// Run measures this host and prints a table, or JSON.
func (b *benchCmd) Run(in *invocation) error {
	c, err := b.load(in)
	if err != nil {
		return err
	}
	b.Running = b.Data != ""
	return bench.Run(in.ctx, c, b.Options, in.out, in.err)
}
