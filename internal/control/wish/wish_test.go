package wish_test

import (
	"strings"
	"testing"

	"hearth/internal/control/wish"
	"hearth/internal/hearth"
)

func TestCheckName(t *testing.T) {
	long := strings.Repeat("x", 128)
	for _, tc := range []struct{ alias, tag, refused string }{
		{"", "", ""}, {"golden", "", ""}, {long, long, ""}, {"golden", "v1.2", ""},
		{long + "x", "", "name has 129 bytes before its tag and 0 in it, at most 128 are allowed for each"},
		{"golden", long + "x", "name has 6 bytes before its tag and 129 in it, at most 128 are allowed for each"},
		{"", "v1", "name has a tag and no name"},
		{"../x", "", "name must be name[:tag]"},
		{"s00000000000000000000", "", "name must not look like the ID of a snapshot"},
	} {
		err := wish.CheckName(tc.alias, tc.tag)
		if (err == nil) != (tc.refused == "") || err != nil && (hearth.KindOf(err) != hearth.InvalidArgument || !strings.HasPrefix(err.Error(), tc.refused)) {
			t.Errorf("%q, %q: %v, want %q", tc.alias, tc.tag, err, tc.refused)
		}
	}
}
