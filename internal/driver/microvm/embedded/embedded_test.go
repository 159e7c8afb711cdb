package embedded

import (
	"strings"
	"testing"
	"testing/fstest"

	"hearth/internal/hearth"
)

func TestBinary(t *testing.T) {
	for name, tree := range map[string]fstest.MapFS{
		"missing": {"bin/README": {Data: []byte("note")}},
		"empty":   {"bin/hearth-init": {}},
	} {
		if _, err := binary(tree); hearth.KindOf(err) != hearth.FailedPrecondition || !strings.Contains(err.Error(), "make build") {
			t.Errorf("%s: got %v, want FailedPrecondition that names the remedy", name, err)
		}
	}
	raw, err := binary(fstest.MapFS{"bin/hearth-init": {Data: []byte("elf")}})
	if err != nil || string(raw) != "elf" {
		t.Errorf("got %q, %v", raw, err)
	}
}
