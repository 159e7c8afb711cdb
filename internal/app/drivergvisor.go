package app

import (
	"path/filepath"

	"hearth/internal/driver"
	"hearth/internal/driver/gvisor"
	"hearth/internal/driver/gvisor/embedded"
)

func gvisorDriver(p parts) (driver.Driver, error) {
	return gvisor.New(gvisor.Config{
		Root: filepath.Join(runtimeDir, "gvisor"), Guest: p.guest, CgroupParent: p.cfg.Node.Cgroup,
		UIDBase: uint32(p.cfg.Node.SubUIDBase), Log: p.log,
		Lessons: filepath.Join(p.cfg.Data, "node", "hot"), Program: embedded.InMemory,
	})
}
