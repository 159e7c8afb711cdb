package app

import (
	"context"
	"errors"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"

	"hearth/internal/hearth"
	"hearth/internal/node/agent"
	"hearth/internal/telemetry"
)

// metrics serves Prometheus's format, if an address is configured for it.
func (a *App) metrics(ctx context.Context) error {
	if a.cfg.Metrics == "" {
		return nil
	}
	reg := telemetry.Registry()
	reg.MustRegister(a.gauges()...)
	srv := &http.Server{Addr: a.cfg.Metrics, Handler: telemetry.Handler(reg), ReadHeaderTimeout: headerTime, ErrorLog: httpLog(a.opts.Log)}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return hearth.Wrap(hearth.Unavailable, err, "metrics: %s cannot be served", a.cfg.Metrics)
	}
	return nil
}

// gauges read the parts when they are asked for; nothing is counted twice.
func (a *App) gauges() []prometheus.Collector {
	stat := func(read func(agent.Stats) float64) func() float64 {
		return func() float64 { return read(a.agent.Stats()) }
	}
	gauge := func(name, help string, read func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "hearth", Name: name, Help: help}, read)
	}
	counter := func(name, help string, read func() float64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "hearth", Name: name, Help: help}, read)
	}
	return []prometheus.Collector{
		counter("history_steps_total", "Steps of sandboxes' histories that were taken.", func() float64 { return float64(a.control.Steps().Taken) }),
		counter("history_steps_failed_total", "Steps that could not be taken.", func() float64 { return float64(a.control.Steps().Failed) }),
		gauge("sandboxes_running", "Sandboxes that run.", func() float64 { return float64(len(a.control.Live())) }),
		counter("starts_warm_total", "Starts that took a machine of a pool.", stat(func(s agent.Stats) float64 { return float64(s.Warm) })),
		counter("starts_cold_total", "Starts that restored or booted a machine.", stat(func(s agent.Stats) float64 { return float64(s.Cold) })),
		counter("starts_blank_total", "Starts among the cold ones that were restored into a blank.", stat(func(s agent.Stats) float64 { return float64(s.Blank) })),
		gauge("starts_waiting", "Starts that wait for their turn.", stat(func(s agent.Stats) float64 { return float64(s.Waiting) })),
		gauge("pool_machines", "Restored, paused machines.", stat(func(s agent.Stats) float64 { return float64(s.Pooled) })),
		gauge("pool_blanks", "Machines that wait for their state.", stat(func(s agent.Stats) float64 { return float64(s.Blanks) })),
		gauge("pool_memory_bytes", "Memory that pools and blanks hold.", stat(func(s agent.Stats) float64 { return float64(s.PoolMemory) })),
		gauge("machines_undead", "Machines that could not be taken down yet.", stat(func(s agent.Stats) float64 { return float64(s.Undead) })),
	}
}
