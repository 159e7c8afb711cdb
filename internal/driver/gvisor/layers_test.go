package gvisor

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"hearth/internal/driver"
)

// chain writes checkpoints that lie on each other, and returns the top one.
func chain(t *testing.T, ids ...string) (*driver.Checkpoint, manifest) {
	t.Helper()
	var top *driver.Checkpoint
	var man manifest
	var below []layerID
	for i, id := range ids {
		dir := t.TempDir()
		man = manifest{ID: id, Bytes: int64(i + 1), Base: below}
		raw, err := json.Marshal(man)
		if err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string][]byte{manifestFile: raw, pagesFile: make([]byte, i+1), "checkpoint.img": nil, "pages_meta.img": nil} {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		below = append(below, layerID{ID: id, Bytes: int64(i + 1)})
		top = &driver.Checkpoint{Dir: dir, Base: top}
	}
	return top, man
}

func TestLayersOf(t *testing.T) {
	top, man := chain(t, "a", "b", "c")
	layers, err := layersOf(top, man)
	if err != nil {
		t.Fatal(err)
	}
	var ids string
	for _, l := range layers {
		ids += fmt.Sprintf("%s%d", l.ID, l.Bytes)
	}
	if ids != "a1b2c3" {
		t.Errorf("layers are %s", ids)
	}
	alone, aloneMan := chain(t, "d")
	alone.Base = top // whoever calls may know of more than is needed
	if layers, err := layersOf(alone, aloneMan); err != nil || len(layers) != 1 {
		t.Errorf("layers of one that stands alone: %v, %v", layers, err)
	}
	other, _ := chain(t, "x", "b")
	for name, c := range map[string]*driver.Checkpoint{
		"base missing":       {Dir: top.Dir},
		"lowest missing":     {Dir: top.Dir, Base: &driver.Checkpoint{Dir: top.Base.Dir}},
		"another lowest":     {Dir: top.Dir, Base: &driver.Checkpoint{Dir: top.Base.Dir, Base: other.Base}},
		"files gone":         {Dir: top.Dir, Base: &driver.Checkpoint{Dir: t.TempDir(), Base: top.Base.Base}},
		"in another order":   {Dir: top.Dir, Base: &driver.Checkpoint{Dir: top.Base.Base.Dir, Base: top.Base}},
		"itself as its base": {Dir: top.Dir, Base: top},
	} {
		if layers, err := layersOf(c, man); err == nil {
			t.Errorf("%s: %v", name, layers)
		}
	}
	if err := os.Truncate(filepath.Join(top.Base.Dir, pagesFile), 1); err != nil {
		t.Fatal(err)
	}
	if layers, err := layersOf(top, man); err == nil {
		t.Errorf("a base that was cut short: %v", layers)
	}
}
