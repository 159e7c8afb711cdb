// Package embedded carries the guest daemon inside the main binary, so that one
// file is the whole product. "make build" compiles cmd/hearth-guest to
// bin/hearth-guest before it compiles the rest; the directory is otherwise empty but for a
// note, which keeps plain "go build ./..." working on a clean clone.
package embedded

import (
	"embed"
	"errors"
	"io/fs"

	"hearth/internal/hearth"
)

//go:embed bin
var content embed.FS

// Binary returns the guest daemon: a static Linux executable for this
// architecture. It fails with FailedPrecondition when this program was built without it.
func Binary() ([]byte, error) { return binary(content) }

func binary(from fs.FS) ([]byte, error) {
	raw, err := fs.ReadFile(from, "bin/hearth-guest")
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(raw) == 0 {
		return nil, hearth.Errorf(hearth.FailedPrecondition, `this program was built without the guest daemon; run "make build"`)
	}
	return raw, err
}
