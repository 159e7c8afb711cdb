package cli

import (
	"hearth/internal/bench"
	"hearth/internal/bench/copier"
	"hearth/internal/bench/machines"
)

type benchCmd struct {
	Rows  benchRowsCmd  `cmd:"" default:"withargs" help:"Measure the rows of docs/PERFORMANCE.md."`
	Trace benchTraceCmd `cmd:"" help:"Print what each step of a create costs."`
	Plot  benchPlotCmd  `cmd:"" help:"Draw creates by the size of bursts and memory by the number of sandboxes."`

	Drivers benchDriversCmd `cmd:"" help:"Measure each driver's machines by themselves: boot, restore, clone, pause, memory, speed inside."`
	Relay   benchRelayCmd   `cmd:"" hidden:""`
}

type benchRowsCmd struct {
	dataFlag
	bench.Options
}

// Run measures this host and prints a table, or JSON.
func (b *benchRowsCmd) Run(in *invocation) error {
	c, err := b.load(in)
	if err != nil {
		return err
	}
	b.Running = b.Data != ""
	return bench.Run(in.ctx, c, b.Options, in.out, in.err)
}

type benchTraceCmd struct {
	dataFlag
	bench.TraceOptions
}

// Run measures creates and prints their budget.
func (b *benchTraceCmd) Run(in *invocation) error {
	c, err := b.load(in)
	if err != nil {
		return err
	}
	b.Running = b.Data != ""
	return bench.Trace(in.ctx, c, b.TraceOptions, in.out, in.err)
}

type benchPlotCmd struct {
	bench.PlotOptions
}

// Run measures and draws.
func (b *benchPlotCmd) Run(in *invocation) error {
	var none dataFlag
	c, err := none.load(in)
	if err != nil {
		return err
	}
	return bench.Plots(in.ctx, c, b.PlotOptions, in.err)
}

type benchDriversCmd struct {
	machines.Options
}

// Run measures this host's drivers and prints a table, or JSON.
func (b *benchDriversCmd) Run(in *invocation) error {
	var none dataFlag
	c, err := none.load(in)
	if err != nil {
		return err
	}
	return machines.Run(in.ctx, c, b.Options, in.out, in.err)
}

// benchRelayCmd is the reference of row 14, which the bench starts itself.
type benchRelayCmd struct {
	To string `arg:"" help:"Address that everything is copied to."`
}

// Run copies until it is killed.
func (b *benchRelayCmd) Run(in *invocation) error { return copier.Serve(in.ctx, b.To, in.out) }
