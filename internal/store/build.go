package store

import "hearth/internal/hearth"

// Finished reports whether a build with that status is never written again.
func Finished(s hearth.BuildStatus) bool {
	return s == hearth.BuildReady || s == hearth.BuildError
}
