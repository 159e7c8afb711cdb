package app

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"hearth/internal/builder"
	"hearth/internal/config"
	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// parts is what drivers are made of.
type parts struct {
	cfg   *config.Config
	guest string // EROFS image of the guest daemon; empty when nothing is to be started
	log   *slog.Logger
}

// makers makes each driver of config.DriverNames. Making one starts nothing and
// works on every host; its Probe says whether it can run there.
func makers() map[string]func(parts) (driver.Driver, error) {
	return map[string]func(parts) (driver.Driver, error){
		"firecracker": firecrackerDriver,
		"gvisor":      gvisorDriver,
		"qemu":        qemuDriver,
	}
}

// Drivers makes every driver there is for a configuration, the strongest isolation
// first. guest is the image of the guest daemon. Their machines are the caller's to
// end, and so is the configuration's control group.
func Drivers(cfg *config.Config, guest string, log *slog.Logger) ([]driver.Driver, error) {
	return allDrivers(parts{cfg: cfg, guest: guest, log: log})
}

// allDrivers makes every driver there is, the strongest isolation first.
func allDrivers(p parts) ([]driver.Driver, error) {
	var list []driver.Driver
	for _, name := range config.DriverNames() {
		make, ok := makers()[name]
		if !ok {
			continue
		}
		d, err := make(p)
		if err != nil {
			return nil, err
		}
		list = append(list, &probedOnce{Driver: d})
	}
	return list, nil
}

// probedOnce is a driver that is asked once what it can do here: the answer may
// take a second and does not change while the process runs.
type probedOnce struct {
	driver.Driver
	once sync.Once
	caps driver.Capabilities
	err  error
}

// Prepare implements driver.Preparer where the driver does.
func (d *probedOnce) Prepare(ctx context.Context, spec driver.Spec) (driver.Blank, error) {
	p, able := d.Driver.(driver.Preparer)
	if !able {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "driver %q prepares no machines", d.Name())
	}
	return p.Prepare(ctx, spec)
}

// Probe implements driver.Driver.
func (p *probedOnce) Probe(ctx context.Context) (driver.Capabilities, error) {
	p.once.Do(func() { p.caps, p.err = p.Driver.Probe(ctx) })
	return p.caps, p.err
}

// choice is what drivers a node runs sandboxes on.
type choice struct {
	offers  []string // that new sandboxes may ask for, what they get unasked first
	slow    []string // those of them that emulate the processor
	targets []builder.Target
}

// wish is a driver and the configuration's key that asks for it.
type wish struct{ key, driver string }

// wishes lists the drivers that are asked for by name.
func wishes(c *config.Config) []wish {
	var list []wish
	if c.Node.Driver != config.Auto {
		list = append(list, wish{"node.driver", c.Node.Driver})
	}
	for _, name := range c.Node.Drivers {
		list = append(list, wish{"node.drivers", name})
	}
	for _, name := range c.Chosen() {
		list = append(list, wish{"a template's driver", name})
	}
	return list
}

// choose decides which drivers sandboxes run on. A driver that is asked for and
// cannot run here is a FailedPrecondition with the driver's own reason.
func choose(ctx context.Context, c *config.Config, all []driver.Driver, log *slog.Logger) (*choice, error) {
	able, unable := map[string]driver.Capabilities{}, map[string]error{}
	for _, d := range all {
		caps, err := d.Probe(ctx)
		if err != nil {
			unable[d.Name()] = err
			continue
		}
		able[d.Name()] = caps
	}
	def := c.Node.Driver
	if def == config.Auto {
		var err error
		if def, err = automatic(able, unable); err != nil {
			return nil, err
		}
	}
	list := append([]wish{{"node.driver", def}}, wishes(c)...)
	ch := &choice{}
	for _, w := range list {
		caps, ok := able[w.driver]
		if !ok {
			return nil, cannotRun(w, unable[w.driver])
		}
		if slices.Contains(ch.offers, w.driver) {
			continue
		}
		ch.offers = append(ch.offers, w.driver)
		t := builder.Target{Driver: w.driver, Chosen: w.driver != def && !slices.Contains(c.Node.Drivers, w.driver)}
		t.Learns = caps.LearnsPages
		if caps.MemorySnapshot {
			t.Key = caps.Key
		}
		ch.targets = append(ch.targets, t)
		log.Info("driver", "name", w.driver, "isolation", caps.Isolation.Words(), "unasked", w.driver == def)
		if caps.Isolation == hearth.EmulatedVM {
			ch.slow = append(ch.slow, w.driver)
			log.Warn("a driver emulates the processor in software: its sandboxes are many times slower than the host", "driver", w.driver)
		}
	}
	return ch, nil
}

// automatic is the strongest driver that runs here. One that emulates the
// processor is never taken: it is too slow to be anybody's default.
func automatic(able map[string]driver.Capabilities, unable map[string]error) (string, error) {
	var why []string
	for _, name := range config.DriverNames() {
		caps, ok := able[name]
		switch {
		case ok && caps.Isolation != hearth.EmulatedVM:
			return name, nil
		case ok:
			why = append(why, name+": it would emulate the processor in software")
		case unable[name] != nil:
			why = append(why, unable[name].Error())
		}
	}
	return "", hearth.Errorf(hearth.FailedPrecondition, "node.driver: auto finds no driver that runs on this host: %s", strings.Join(why, "; "))
}

func cannotRun(w wish, why error) error {
	if why == nil {
		return hearth.Errorf(hearth.FailedPrecondition, "%s: %s is not in this build", w.key, w.driver)
	}
	return hearth.Wrap(hearth.FailedPrecondition, fmt.Errorf("%w; `hearth doctor` says what to do", why), "%s: %s cannot run on this host", w.key, w.driver)
}

// Purge removes what drivers keep between machines. What is left serves another
// server of this host.
func Purge(all []driver.Driver) error {
	for _, d := range all {
		if p, ok := d.(*probedOnce); ok {
			d = p.Driver
		}
		p, ok := d.(interface{ Purge() error })
		if !ok {
			continue
		}
		if err := p.Purge(); err != nil && hearth.KindOf(err) != hearth.FailedPrecondition {
			return err
		}
	}
	return nil
}
