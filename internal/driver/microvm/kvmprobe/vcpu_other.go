//go:build !amd64

package kvmprobe

import (
	"context"

	"hearth/internal/hearth"
)

const program = ""

// run has no program for this processor yet.
func run(context.Context, int, string) error {
	return hearth.Errorf(hearth.FailedPrecondition, "virtual machines run on x86-64 only so far")
}
