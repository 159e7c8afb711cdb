package blob

import (
	"strings"

	"hearth/internal/hearth"
)

// MaxKey is the length of the longest key.
const MaxKey = 200

// CheckKey returns an InvalidArgument that says what is wrong with a key.
func CheckKey(key string) error {
	if key == "" || len(key) > MaxKey {
		return hearth.Errorf(hearth.InvalidArgument, "blob key of %d characters, it must have 1 to %d", len(key), MaxKey)
	}
	for segment := range strings.SplitSeq(key, "/") {
		if segment == "" || segment == "." || segment == ".." {
			return hearth.Errorf(hearth.InvalidArgument, "blob key %q has the segment %q", key, segment)
		}
		if strings.ContainsFunc(segment, foreign) {
			return hearth.Errorf(hearth.InvalidArgument, "blob key %q has other characters than [a-z0-9._/-]", key)
		}
	}
	return nil
}

func foreign(c rune) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '.', c == '_', c == '-':
		return false
	}
	return true
}
