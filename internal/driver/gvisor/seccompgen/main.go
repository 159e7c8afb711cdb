// Command seccompgen compiles gVisor's seccomp filters ahead of time into
// internal/driver/gvisor/programs/programs.gob, which the driver embeds. Run it
// from the top of the tree, without cgo, before building the binary.
package main

import (
	"bytes"
	"encoding/gob"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"

	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
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

func generate(out string) error {
	if config.CgoEnabled {
		return fmt.Errorf("built with cgo: run it with CGO_ENABLED=0, as the filters differ")
	}
	ready, err := compile()
	if err != nil {
		return err
	}
	own, err := stubs()
	if err != nil {
		return err
	}
	maps.Copy(ready, own)
	if have, err := os.ReadFile(out); err == nil && holds(have, ready) {
		return nil // gob writes a map in another order each time, and all that embeds it would be built again
	}
	var buf bytes.Buffer
	if err := gob.NewEncoder(&buf).Encode(ready); err != nil {
		return err
	}
	tmp := out + ".tmp"
	if err := os.WriteFile(tmp, buf.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, out)
}

// holds reports whether a file has these programs.
func holds(raw []byte, ready map[string]precompiledseccomp.Program) bool {
	var have map[string]precompiledseccomp.Program
	return gob.NewDecoder(bytes.NewReader(raw)).Decode(&have) == nil && reflect.DeepEqual(have, ready)
}
