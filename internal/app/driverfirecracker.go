package app

import (
	"context"
	"path/filepath"

	"hearth/internal/config"
	"hearth/internal/driver"
	"hearth/internal/driver/firecracker"
	"hearth/internal/driver/microvm"
)

func firecrackerDriver(p parts) (driver.Driver, error) {
	return firecracker.New(firecracker.Config{
		Root: filepath.Join(runtimeDir, "firecracker"), Guest: p.guest, CgroupParent: p.cfg.Node.Cgroup,
		Firecracker: p.cfg.Node.Firecracker.Binary, Jailer: p.cfg.Node.Firecracker.Jailer, Log: p.log,
		Boot: func(ctx context.Context) (*microvm.Boot, error) { return microvm.Prepare(ctx, guestKernel(p.cfg)) },
	})
}

// guestKernel is what virtual machines of every driver start.
func guestKernel(c *config.Config) microvm.Options {
	return microvm.Options{Cache: filepath.Join(cacheDir(c), "kernel"), Kernel: c.Node.VM.Kernel, Modules: c.Node.VM.Modules}
}

// cacheDir is where sources of templates and guests are kept.
func cacheDir(c *config.Config) string {
	if c.Cache != "" {
		return c.Cache
	}
	return filepath.Join(c.Data, "cache")
}
