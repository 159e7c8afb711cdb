// Package arch holds tests of the tree itself: who may import whom, and how
// large things may grow.
package arch

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
)

// layers, lowest first. A package may import its own layer's contracts and
// anything below; never above. Children of a contract are adapters.
var allow = map[string][]string{
	"internal/hearth":    {},
	"internal/driver":    {"internal/hearth"},
	"internal/store":     {"internal/hearth"},
	"internal/blob":      {"internal/hearth"},
	"internal/node":      {"internal/hearth"},
	"internal/guest":     {},
	"internal/placement": {"internal/hearth"},
	"internal/edge":      {"internal/hearth"},
	"internal/control":   {"internal/hearth", "internal/store", "internal/node", "internal/placement"},
}

func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "hearth/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for dec.More() {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		rel := strings.TrimPrefix(p.ImportPath, "hearth/")
		ok, known := allow[rel]
		if !known {
			continue
		}
		for _, i := range p.Imports {
			i, mine := strings.CutPrefix(i, "hearth/")
			if !mine {
				continue
			}
			found := false
			for _, a := range ok {
				found = found || a == i
			}
			if !found {
				t.Errorf("%s may not import %s", rel, i)
			}
		}
	}
}
