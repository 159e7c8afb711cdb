package config

import (
	"path/filepath"
	"slices"
	"strings"
)

// validateDrivers looks at every key that names a driver, and at what drivers need.
func (c *Config) validateDrivers() error {
	if c.Node.Driver != Auto {
		if err := knownDriver("node.driver", c.Node.Driver, Auto); err != nil {
			return err
		}
	}
	for _, name := range c.Node.Drivers {
		if err := knownDriver("node.drivers", name); err != nil {
			return err
		}
	}
	for template, name := range c.BuiltinDrivers {
		if !slices.Contains(c.Builtin, template) {
			return invalid("builtin_drivers", "%q is not in builtin", template)
		}
		if err := knownDriver("builtin_drivers."+template, name); err != nil {
			return err
		}
	}
	for _, t := range c.Templates {
		if t.Driver == "" {
			continue
		}
		if err := knownDriver("templates."+t.Name+".driver", t.Driver); err != nil {
			return err
		}
	}
	for key, path := range map[string]string{
		"node.vm.kernel": c.Node.VM.Kernel, "node.vm.modules": c.Node.VM.Modules, "node.qemu.binary": c.Node.QEMU.Binary,
		"node.firecracker.binary": c.Node.Firecracker.Binary, "node.firecracker.jailer": c.Node.Firecracker.Jailer,
	} {
		if path != "" && !filepath.IsAbs(path) {
			return invalid(key, "%q must be an absolute path", path)
		}
	}
	return nil
}

func knownDriver(key, name string, also ...string) error {
	if slices.Contains(DriverNames(), name) {
		return nil
	}
	return invalid(key, "%q is not a driver of this build; there is: %s", name, strings.Join(append(also, DriverNames()...), ", "))
}

// Chosen returns the drivers that templates choose, each once.
func (c *Config) Chosen() []string {
	var list []string
	for _, name := range c.BuiltinDrivers {
		list = append(list, name)
	}
	for _, t := range c.Templates {
		if t.Driver != "" {
			list = append(list, t.Driver)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}
