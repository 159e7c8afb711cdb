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
		Boot: p.guestKernel,
	})
}

// guestKernel makes ready what virtual machines of every driver boot.
func (p parts) guestKernel(ctx context.Context) (*microvm.Boot, error) {
	return GuestKernel(ctx, p.cfg)
}

// GuestKernel makes ready what virtual machines boot, as the configuration has it.
func GuestKernel(ctx context.Context, cfg *config.Config) (*microvm.Boot, error) {
	return microvm.Prepare(ctx, microvm.Options{
		Cache: filepath.Join(cfg.CacheDir(), "kernel"), Kernel: cfg.Node.VM.Kernel, Modules: cfg.Node.VM.Modules,
	})
}
