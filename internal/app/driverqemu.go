package app

import (
	"path/filepath"

	"hearth/internal/driver"
	"hearth/internal/driver/qemu"
)

func qemuDriver(p parts) (driver.Driver, error) {
	accelerator := qemu.KVM
	if p.cfg.Node.QEMU.Emulate {
		accelerator = qemu.KVMOrTCG
	}
	return qemu.New(qemu.Config{
		Root: filepath.Join(runtimeDir, "qemu"), Guest: p.guest, Program: p.cfg.Node.QEMU.Binary, Accelerator: accelerator,
		Boot:         p.guestKernel,
		CgroupParent: p.cfg.Node.Cgroup, Log: p.log,
	})
}
