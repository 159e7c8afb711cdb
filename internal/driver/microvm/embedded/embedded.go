// Package embedded carries hearth-init, the first program of every virtual
// machine, inside the main binary. "make build" compiles cmd/hearth-init to
// bin/hearth-init before it compiles the rest; the directory is otherwise empty
// but for a note, which keeps plain "go build ./..." working on a clean clone.
package embedded

import (
	"embed"
	"errors"
	"io/fs"

	"hearth/internal/hearth"
)

//go:embed bin
var content embed.FS

// Binary returns hearth-init: a static Linux executable for this architecture.
// It fails with FailedPrecondition when this program was built without it.
func Binary() ([]byte, error) { return binary(content) }

func binary(from fs.FS) ([]byte, error) {
	raw, err := fs.ReadFile(from, "bin/hearth-init")
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(raw) == 0 {
		return nil, hearth.Errorf(hearth.FailedPrecondition, `this program was built without hearth-init; run "make build"`)
	}
	return raw, err
}
