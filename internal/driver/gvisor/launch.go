package gvisor

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
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
	_ = os.WriteFile("/proc/self/comm", []byte(launcher.Name), 0) // else it is a descriptor's number
	if err := reserveTable(); err != nil {
		return 1
	}
	log.SetTarget(log.GoogleEmitter{Writer: &log.Writer{Next: io.Discard}})
	log.SetLevel(log.Warning) // to be put in words for nobody takes time
	m := &maker{}
	launchQuickly(m.keep)
	return launcher.Serve(m.create)
}

// tableSize has room for the numbers 253 to 255, to which gVisor moves a sandbox's standard files
// when it makes its kernel (startingStdioFD in runsc/boot).
const tableSize = 256

// reserveTable makes this process's table of files, and so those of its children, that large. A
// sandbox would make its own grow when it has threads, which waits for a grace period of RCU: 8 ms.
func reserveTable() error {
	null, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(null)
	return unix.Dup3(null, tableSize-1, unix.O_CLOEXEC)
}

// maker makes a launcher's sandboxes, one at a time.
type maker struct {
	kept []*os.File // of the one that is being started
}

// keep is given the sockets of its network.
func (m *maker) keep(sockets []*os.File) { m.kept = append(m.kept, sockets...) }

// sandboxed is a sandbox in a launcher.
type sandboxed struct {
	*container.Container
	by *maker
}

// Kept takes what is to be closed when the sandbox has ended.
func (s sandboxed) Kept() []*os.File {
	if !sharing {
		runtime.GC() // published gVisor leaves closing them to the collector
	}
	files := s.by.kept
	s.by.kept = nil
	return files
}

// PID is the sandbox's process number.
func (s sandboxed) PID() int { return s.Sandbox.Getpid() }

// Abandon removes it.
func (s sandboxed) Abandon() { _ = s.Destroy() }

// create makes the sandbox, up to where it waits for what to run.
func (m *maker) create(req launcher.Request) (launcher.Sandbox, error) {
	if err := hostproc.CloseOnExec(launcher.FirstOwn); err != nil {
		return nil, err
	}
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
	return sandboxed{box, m}, nil
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
