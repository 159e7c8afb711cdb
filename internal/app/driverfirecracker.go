package app

import (
	"context"
	"path/filepath"

	"hearth/internal/driver"
	"hearth/internal/driver/firecracker"
	"hearth/internal/driver/microvm"
)

func firecrackerDriver(p parts) (driver.Driver, error) {
	return firecracker.New(firecracker.Config{
		Root:        filepath.Join(runtimeDir, "firecracker"),
		Firecracker: p.cfg.Node.Firecracker.Binary, Jailer: p.cfg.Node.Firecracker.Jailer,
		Boot: p.guestKernel, Guest: p.guest, CgroupParent: p.cfg.Node.Cgroup, Log: p.log,
	})
}

// guestKernel makes ready what virtual machines boot.
func (p parts) guestKernel(ctx context.Context) (*microvm.Boot, error) {
	dir := p.cfg.Cache
	if dir == "" {
		dir = filepath.Join(p.cfg.Data, "cache")
	}
	return microvm.Prepare(ctx, microvm.Options{
		Cache: filepath.Join(dir, "kernel"), Kernel: p.cfg.Node.VM.Kernel, Modules: p.cfg.Node.VM.Modules,
	})
}
