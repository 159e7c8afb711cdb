package gvisor

import (
	"bytes"
	"embed"
	"encoding/gob"
	"maps"
	_ "unsafe" // for go:linkname

	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
	"gvisor.dev/gvisor/runsc/boot/filter"
)

// programs holds programs.gob when seccompgen was run before the build.
//
//go:embed programs
var programs embed.FS

// precompiledPrograms is where gVisor looks for a filter before it compiles
// one. The Go module is published without any, and without a way to add them.
//
//go:linkname precompiledPrograms gvisor.dev/gvisor/runsc/boot/filter.precompiledPrograms
var precompiledPrograms map[string]precompiledseccomp.Program

// installPrograms gives the sandbox process its ready seccomp filters. The key
// of a sandbox's program names everything the filter depends on, so a program that does
// not fit this build is never found, and gVisor compiles its own as before. Those of
// the platform's own processes depend on gVisor's version and patches alone: whoever changes
// these has to generate again, as make does each time.
func installPrograms() error {
	raw, err := programs.ReadFile("programs/programs.gob")
	if err != nil {
		return nil // not generated in this build
	}
	ready := map[string]precompiledseccomp.Program{}
	if err := gob.NewDecoder(bytes.NewReader(raw)).Decode(&ready); err != nil {
		return err
	}
	filter.ListPrecompiled() // makes the map, once and empty
	maps.Copy(precompiledPrograms, ready)
	installStubs(ready)
	return nil
}

// Precompiled reports whether this build carries seccomp filters.
func Precompiled() bool {
	_, err := programs.ReadFile("programs/programs.gob")
	return err == nil
}
