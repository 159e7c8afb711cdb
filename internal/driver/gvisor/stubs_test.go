//go:build hearthcow

package gvisor

import (
	"bytes"
	"encoding/gob"
	"testing"

	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
	"gvisor.dev/gvisor/pkg/sentry/platform/systrap"
)

// TestEmbeddedStubProgramsFitThisGVisor: their names do not say for which gVisor they
// were compiled, and whatever is there under a name is the filter.
func TestEmbeddedStubProgramsFitThisGVisor(t *testing.T) {
	raw, err := programs.ReadFile("programs/programs.gob")
	if err != nil {
		t.Skip("seccompgen was not run before this build")
	}
	ready := map[string]precompiledseccomp.Program{}
	if err := gob.NewDecoder(bytes.NewReader(raw)).Decode(&ready); err != nil {
		t.Fatal(err)
	}
	stubs, err := systrap.Precompile()
	if err != nil {
		t.Fatal(err)
	}
	for name := range stubs {
		p, found := ready[name]
		if !found {
			t.Errorf("%q is not there", name)
			continue
		}
		const at = 1<<32 + 4096
		if err := systrap.Check(p, at, at+9*4096); err != nil {
			t.Error(err)
		}
	}
}
