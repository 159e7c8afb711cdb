package gvisor

import (
	"fmt"
	_ "unsafe" // for go:linkname

	"hearth/internal/driver/hostproc"
)

// gvisorVersion is the pinned gVisor module, and sentryRevision counts our own
// changes to what a checkpoint holds; pageFormat names that of a patched gVisor.
// Together they decide whether a checkpoint
// of another build of Hearth can be restored; a test compares the first with go.mod.
const (
	gvisorVersion  = "v0.0.0-20260905035102-160fafc42237"
	sentryRevision = 1

	publishedFormat = "" // pageFormat of a build without patches
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
// platform and the processor; format is the build's pageFormat. The host's kernel is not part of it: guests see
// the sentry's own system calls, and an update of the host must not cost users
// their paused sandboxes.
func checkpointKey(format string) (string, error) {
	model, features, err := hostproc.Processor()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s+hearth.%d%s/systrap/%s/%s", gvisorVersion, sentryRevision, format, model, features), nil
}
