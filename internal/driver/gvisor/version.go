package gvisor

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strings"
	_ "unsafe" // for go:linkname
)

// gvisorVersion is the pinned gVisor module, and sentryRevision counts our own
// changes to what a checkpoint holds; pageFormat names that of a patched gVisor.
// Together they decide whether a checkpoint
// of another build of Hearth can be restored; a test compares the first with go.mod.
const (
	gvisorVersion  = "v0.0.0-20260905035102-160fafc42237"
	sentryRevision = 1
)

// sentryVersion is what gVisor writes into a checkpoint and compares before a
// restore. It is normally set by the linker, and "VERSION_MISSING" in a build
// that forgot to, with which every checkpoint would pass.
//
//go:linkname sentryVersion gvisor.dev/gvisor/runsc/version.version
var sentryVersion string

func stampVersion() {
	sentryVersion = fmt.Sprintf("%s+hearth.%d", gvisorVersion, sentryRevision) + pageFormat
}

// checkpointKey names everything a checkpoint depends on: the sentry, the
// platform and the processor. The host's kernel is not part of it: guests see
// the sentry's own system calls, and an update of the host must not cost users
// their paused sandboxes.
func checkpointKey() (string, error) {
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	model, features := processor(string(cpuinfo))
	if features == "" {
		return "", fmt.Errorf("/proc/cpuinfo lists no features")
	}
	sum := sha256.Sum256([]byte(features))
	return fmt.Sprintf("%s+hearth.%d%s/systrap/%s/%s", gvisorVersion, sentryRevision, pageFormat, model, hex.EncodeToString(sum[:6])), nil
}

// processor reads the first processor's identity and its sorted feature list.
func processor(cpuinfo string) (model, features string) {
	fields := map[string]string{}
	first, _, _ := strings.Cut(cpuinfo, "\n\n")
	for line := range strings.Lines(first) {
		name, value, _ := strings.Cut(line, ":")
		fields[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	flags := fields["flags"]
	if flags == "" {
		flags = fields["Features"] // arm64
	}
	list := strings.Fields(flags)
	slices.Sort(list)
	vendor := fields["vendor_id"]
	if vendor == "" {
		vendor = "implementer" + fields["CPU implementer"]
	}
	return fmt.Sprintf("%s-%s-%s", vendor, fields["cpu family"], fields["model"]), strings.Join(list, " ")
}
