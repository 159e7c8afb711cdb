package hearth_test

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"hearth/internal/hearth"
)

// TestShownHidesCauses: a caller sees what was written for it and nothing else.
func TestShownHidesCauses(t *testing.T) {
	secret := errors.New("open /secret: permission denied")
	for want, err := range map[string]error{
		"no such sandbox": hearth.Errorf(hearth.NotFound, "no such %s", "sandbox"),
		"try again":       fmt.Errorf("%w: %w", secret, hearth.Wrap(hearth.Unavailable, secret, "try again")),
		"outer":           hearth.Wrap(hearth.Internal, hearth.Errorf(hearth.NotFound, "inner"), "outer"),
		"internal error":  errors.Join(secret, io.EOF),
	} {
		if got := hearth.Shown(err); got != want {
			t.Errorf("%v: shown is %q, want %q", err, got, want)
		}
	}
}
