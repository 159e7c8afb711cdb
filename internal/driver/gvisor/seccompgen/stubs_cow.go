//go:build hearthcow

package main

import (
	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
	"gvisor.dev/gvisor/pkg/sentry/platform/systrap"
)

// stubs returns the programs of a platform's own processes.
func stubs() (map[string]precompiledseccomp.Program, error) { return systrap.Precompile() }
