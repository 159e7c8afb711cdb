package gvisor

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/runsc/container"
	"gvisor.dev/gvisor/runsc/specutils"

	"hearth/internal/driver/gvisor/launcher"
	"hearth/internal/driver/hostproc"
)

// launcherMain is the launcher's main function; it returns the exit code.
func launcherMain() int {
	if err := hostproc.CloseInherited(launcher.FirstFree); err != nil {
		return 1
	}
	stampVersion()
	log.SetTarget(log.GoogleEmitter{Writer: &log.Writer{Next: io.Discard}})
	return launcher.Serve(create)
}

// sandboxed is a sandbox in a launcher.
type sandboxed struct{ *container.Container }

// PID is the sandbox's process number.
func (s sandboxed) PID() int { return s.Sandbox.Getpid() }

// Abandon removes it.
func (s sandboxed) Abandon() { _ = s.Destroy() }

// create makes the sandbox, up to where it waits for what to run.
func create(req launcher.Request) (launcher.Sandbox, error) {
	conf, err := runtimeConfig(req.Flags)
	if err != nil {
		return nil, err
	}
	spec, err := specutils.ReadSpec(req.Bundle, conf)
	if err != nil {
		return nil, err
	}
	readAhead(req.Image, req.Memory.Layers)
	box, err := container.New(conf, container.Args{ID: req.ID, Spec: spec, BundleDir: req.Bundle})
	if err != nil {
		return nil, err
	}
	if err := bound(box, req.Limit); err != nil {
		_ = box.Destroy()
		return nil, err
	}
	return sandboxed{box}, nil
}

// bound raises the memory limit, once the guest's size is fixed, to what all of
// the sandbox may have.
func bound(box *container.Container, limit int64) error {
	cg := box.Sandbox.CgroupJSON.Cgroup
	if cg == nil {
		return nil
	}
	if err := cg.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
		return fmt.Errorf("raising the memory limit: %w", err)
	}
	if err := hostproc.ForbidSwap(cg.MakePath("memory")); err != nil {
		return fmt.Errorf("forbidding swap: %w", err)
	}
	return nil
}

// Start lets the guest run.
func (s sandboxed) Start(req launcher.Request) error {
	box := s.Container
	conf, err := runtimeConfig(req.Flags)
	if err == nil {
		if req.Image == "" {
			err = box.Start(conf)
		} else {
			if req.Wait {
				readAhead(req.Image, req.Memory.Layers)
			}
			setMemory(box, req.Memory)
			err = box.Restore(conf, req.Image, false, true, nil)
		}
	}
	if err != nil {
		_ = box.Destroy()
	}
	return err
}

// readAhead asks the kernel for a checkpoint's pages while the sandbox is still
// being made. It helps when they are not in memory and costs nothing when they are.
func readAhead(image string, layers []string) {
	if image == "" {
		return
	}
	files := slices.Clone(layers)
	for _, name := range checkpointFiles {
		files = append(files, filepath.Join(image, name))
	}
	for _, name := range files {
		if f, err := os.Open(name); err == nil {
			prefetch(f)
			_ = f.Close()
		}
	}
}
