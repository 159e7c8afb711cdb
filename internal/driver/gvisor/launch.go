package gvisor

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/container"
	"gvisor.dev/gvisor/runsc/specutils"

	"hearth/internal/driver/hostproc"
)

// Creating a sandbox joins namespaces, moves the creator between cgroups and
// marks all its descriptors close-on-exec. None of that can be done to a server
// with other work, so it is done by a launcher: this program executed once more,
// which makes one sandbox, reports, and ends. The sandbox outlives it, and us.

// Descriptors of the launcher. 0, 1 and 2 become the guest's console.
const (
	requestFD = 3 // a launchRequest, then held open: when we die it ends, and so does the launcher
	replyFD   = 4
)

// launchRequest is what the launcher is told, as one JSON value.
type launchRequest struct {
	Flags  []string `json:"flags"`
	ID     string   `json:"id"`
	Bundle string   `json:"bundle"`
	Image  string   `json:"image"` // checkpoint to restore; empty boots
	Limit  int64    `json:"limit"` // of the cgroup's memory while the guest runs, in bytes
	Memory memory   `json:"memory"`
}

// launchReply is what it answers.
type launchReply struct {
	PID   int    `json:"pid"`
	Error string `json:"error"`
}

// launcherMain is the launcher's main function; it returns the exit code.
func launcherMain() int {
	stampVersion()
	log.SetTarget(log.GoogleEmitter{Writer: &log.Writer{Next: io.Discard}})
	request, reply := os.NewFile(requestFD, "request"), os.NewFile(replyFD, "reply")
	var req launchRequest
	if err := json.NewDecoder(request).Decode(&req); err != nil {
		fmt.Fprintln(reply, `{"error":"no request"}`)
		return 1
	}
	go func() {
		_, _ = io.Copy(io.Discard, request)
		os.Exit(2) // whoever asked is gone: what is half made will be swept
	}()
	var answer launchReply
	pid, err := launch(req)
	if err != nil {
		answer.Error = err.Error()
	}
	answer.PID = pid
	if err := json.NewEncoder(reply).Encode(answer); err != nil {
		return 1
	}
	return 0
}

// launch makes the sandbox and lets its guest run.
func launch(req launchRequest) (int, error) {
	conf, err := runtimeConfig(req.Flags)
	if err != nil {
		return 0, err
	}
	spec, err := specutils.ReadSpec(req.Bundle, conf)
	if err != nil {
		return 0, err
	}
	readAhead(req.Image, req.Memory.Layers)
	c, err := container.New(conf, container.Args{ID: req.ID, Spec: spec, BundleDir: req.Bundle})
	if err != nil {
		return 0, err
	}
	if err := run(conf, c, req); err != nil {
		_ = c.Destroy()
		return 0, err
	}
	return c.Sandbox.Getpid(), nil
}

func run(conf *config.Config, c *container.Container, req launchRequest) error {
	limit := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &req.Limit}}
	if cg := c.Sandbox.CgroupJSON.Cgroup; cg != nil {
		if err := cg.Update(limit); err != nil {
			return fmt.Errorf("raising the memory limit: %w", err)
		}
		if err := hostproc.ForbidSwap(cg.MakePath("memory")); err != nil {
			return fmt.Errorf("forbidding swap: %w", err)
		}
	}
	if req.Image == "" {
		return c.Start(conf)
	}
	setMemory(c, req.Memory)
	return c.Restore(conf, req.Image, false, true, nil)
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
