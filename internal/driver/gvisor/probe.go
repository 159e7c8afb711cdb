package gvisor

import (
	"context"

	"hearth/internal/driver"
	"hearth/internal/driver/hostproc"
	"hearth/internal/hearth"
)

// Probe checks, without changing anything, what a start would trip over.
func (d *Driver) Probe(context.Context) (driver.Capabilities, error) {
	missing := func(format string, args ...any) (driver.Capabilities, error) {
		return driver.Capabilities{}, hearth.Errorf(hearth.FailedPrecondition, "gvisor: "+format, args...)
	}
	if err := hostproc.Check(); err != nil {
		return missing("%v", err)
	}
	if n := hostproc.ReadNumber("/proc/sys/user/max_user_namespaces"); n == 0 && exists("/proc/sys/user/max_user_namespaces") {
		return missing("user namespaces are off: sysctl user.max_user_namespaces=15000")
	}
	if d.cfg.Guest != "" {
		if _, err := driver.LayerID(d.cfg.Guest); err != nil {
			return missing("guest image %s cannot be used: %v", d.cfg.Guest, err)
		}
	}
	key, err := d.key()
	if err != nil {
		return missing("processor cannot be identified: %v", err)
	}
	return driver.Capabilities{
		Isolation: hearth.UserKernel, MemorySnapshot: true, FileSnapshot: true, Blanks: true, Rests: sharing,
		SharedMemory: d.cfg.share(), LearnsPages: d.cfg.share(), Key: key,
	}, nil
}
