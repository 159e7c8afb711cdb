// Command seccompgen compiles gVisor's seccomp filters ahead of time into
// internal/driver/gvisor/programs/programs.gob, which the driver embeds. Run it
// from the top of the tree, without cgo, before building the binary.
package main

import (
	"bytes"
	"encoding/gob"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
	filters "gvisor.dev/gvisor/runsc/boot/filter/config"
	"gvisor.dev/gvisor/runsc/config"
)

func main() {
	out := filepath.Join("internal", "driver", "gvisor", "programs", "programs.gob")
	if len(os.Args) == 2 {
		out = os.Args[1]
	}
	if err := generate(out); err != nil {
		fmt.Fprintln(os.Stderr, "seccompgen:", err)
		os.Exit(1)
	}
}

// generate keeps the programs of the platform and devices that the driver uses.
func generate(out string) error {
	if config.CgoEnabled {
		return fmt.Errorf("built with cgo: run it with CGO_ENABLED=0, as the filters differ")
	}
	all, err := filters.PrecompiledPrograms()
	if err != nil {
		return err
	}
	keep := map[string]precompiledseccomp.Program{}
	for _, p := range all {
		if wanted(p.Name) {
			keep[p.Name] = p
		}
	}
	if len(keep) == 0 {
		return fmt.Errorf("none of %d programs is for the sandboxes of the driver", len(all))
	}
	var buf bytes.Buffer
	if err := gob.NewEncoder(&buf).Encode(keep); err != nil {
		return err
	}
	tmp := out + ".tmp"
	if err := os.WriteFile(tmp, buf.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, out)
}

// wanted reports whether a sandbox of ours may ask for the program of that key:
// systrap, its own network stack, no devices of the host.
func wanted(key string) bool {
	for _, part := range []string{`Platform="systrap"`, "HostNetwork=false", "NVProxy=false", "TPUProxy=false", "RDMAProxy=false"} {
		if !strings.Contains(key, part) {
			return false
		}
	}
	return true
}
