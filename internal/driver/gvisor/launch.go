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
	"gvisor.dev/gvisor/runsc/container"
	"gvisor.dev/gvisor/runsc/specutils"

	"hearth/internal/driver/hostproc"
)

// Creating a sandbox joins namespaces, moves the creator between cgroups and
// marks all its descriptors close-on-exec. None of that can be done to a server
// with other work, so it is done by a launcher: this program executed once more,
// which makes one sandbox, reports, and ends. The sandbox outlives it, and us.
//
// The launcher of a blank stays until it is told what to restore. When we end, or
// close it, it takes the sandbox with it, in which nothing runs yet.

// Descriptors of the launcher. 0, 1 and 2 become the guest's console; what it got
// beyond these from whoever started us is closed.
const (
	requestFD = 3 // launchRequests, then held open: when we die it ends, and so does the launcher
	replyFD   = 4
)

// launchRequest is what the launcher is told, as one JSON value. Of a second one,
// for a sandbox that waits, only Image and Memory count.
type launchRequest struct {
	Flags  []string `json:"flags,omitempty"`
	ID     string   `json:"id"`
	Bundle string   `json:"bundle,omitempty"`
	Image  string   `json:"image,omitempty"` // checkpoint to restore; empty boots, or waits
	Wait   bool     `json:"wait,omitempty"`  // make the sandbox only; another request follows
	Limit  int64    `json:"limit,omitempty"` // of the cgroup's memory while the guest runs, in bytes
	Memory memory   `json:"memory"`

	gone bool // there is no request, and nobody to ask
}

// launchReply is what it answers to each.
type launchReply struct {
	PID   int    `json:"pid"`
	Error string `json:"error"`
}

// launcherMain is the launcher's main function; it returns the exit code.
func launcherMain() int {
	if err := hostproc.CloseInherited(replyFD + 1); err != nil {
		return 1
	}
	stampVersion()
	log.SetTarget(log.GoogleEmitter{Writer: &log.Writer{Next: io.Discard}})
	reply := json.NewEncoder(os.NewFile(replyFD, "reply"))
	requests := listen(os.NewFile(requestFD, "request"))
	req := <-requests
	if req.gone {
		return 1
	}
	box, err := create(req)
	if err == nil && req.Wait {
		if reply.Encode(launchReply{PID: box.Sandbox.Getpid()}) != nil {
			return abandon(box)
		}
		next := <-requests
		if next.gone {
			return abandon(box)
		}
		req.Image, req.Memory = next.Image, next.Memory
	}
	if err == nil {
		err = start(box, req)
	}
	var answer launchReply
	if err != nil {
		answer.Error = err.Error()
	} else {
		answer.PID = box.Sandbox.Getpid()
	}
	if reply.Encode(answer) != nil {
		return 1
	}
	return 0
}

// listen reads requests until whoever asks is gone. Then it ends a launcher that
// is busy, whose half-made sandbox will be swept; one that waits is told.
func listen(from io.Reader) <-chan launchRequest {
	requests := make(chan launchRequest)
	go func() {
		in := json.NewDecoder(from)
		for {
			var req launchRequest
			if err := in.Decode(&req); err != nil {
				break
			}
			requests <- req
		}
		select {
		case requests <- launchRequest{gone: true}:
		default:
			os.Exit(2)
		}
	}()
	return requests
}

// abandon removes a sandbox that nobody waits for any more.
func abandon(box *container.Container) int {
	_ = box.Destroy()
	return 2
}

// create makes the sandbox, up to where it waits for what to run.
func create(req launchRequest) (*container.Container, error) {
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
	return box, nil
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

// start lets a created sandbox's guest run. After an error the sandbox is gone.
func start(box *container.Container, req launchRequest) error {
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
