package daemon

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hearth/internal/guest"
	"hearth/internal/hearth"
)

// TestInventory: a sealed daemon lists files for who knows the host's secret; one
// that is in use never does, because it stops everything.
func TestInventory(t *testing.T) {
	f := serve(t)
	f.daemon.root = t.TempDir()
	if err := os.WriteFile(filepath.Join(f.daemon.root, "a"), []byte("hello"), 0o640); err != nil {
		t.Fatal(err)
	}
	lists := func(headers ...string) {
		t.Helper()
		list, more, err := guest.ReadInventory(strings.NewReader(f.want(200, "POST", guest.InventoryPath, "", headers...)))
		if err != nil || more || len(list) != 2 || list[1].Size != 5 || list[1].Mode != 0o640 || time.Since(time.Unix(0, list[1].MTime)) > time.Minute {
			t.Errorf("%+v, %t, %v", list, more, err)
		}
	}
	lists() // nobody's yet
	f.want(204, "POST", guest.InitPath, initBody(nil))
	f.want(409, "POST", guest.InventoryPath, "", guest.ControlHeader, "host")
	f.want(401, "POST", guest.InventoryPath, "")
	f.want(204, "POST", guest.QuiescePath, `{}`, guest.ControlHeader, "host")
	f.want(401, "POST", guest.InventoryPath, "", guest.ControlHeader, "guessed")
	f.want(401, "POST", guest.InventoryPath, "", tokenHeader, "secret")
	lists(guest.ControlHeader, "host")
}

func TestWalk(t *testing.T) {
	root := t.TempDir()
	for _, err := range []error{
		os.MkdirAll(filepath.Join(root, "d", "e"), 0o750),
		os.WriteFile(filepath.Join(root, "d", "f\xff"), make([]byte, 1000), 0o600),
		os.Symlink("../nowhere", filepath.Join(root, "d", "l")),
		os.Chmod(filepath.Join(root, "d", "e"), 0o1777|os.ModeSticky),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	out := guest.NewInventoryWriter(&b)
	walk(t.Context(), root, out)
	if err := out.End(); err != nil {
		t.Fatal(err)
	}
	list, more, err := guest.ReadInventory(&b)
	if err != nil || more {
		t.Fatal(more, err)
	}
	var got []string
	for _, e := range list {
		got = append(got, strings.TrimPrefix(e.Path, root)+" "+string(e.Kind)+e.Target)
		if e.Kind == hearth.RegularFile && e.Size != 1000 || e.Kind != hearth.RegularFile && e.Size != 0 {
			t.Errorf("%+v", e)
		}
	}
	if want := " d|/d d|/d/e d|/d/f\xff f|/d/l l../nowhere"; strings.Join(got, "|") != want {
		t.Errorf("%q, want %q", strings.Join(got, "|"), want)
	}

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	b.Reset()
	out = guest.NewInventoryWriter(&b)
	walk(ended, root, out)
	if err := out.End(); err != nil {
		t.Fatal(err)
	}
	if _, more, err := guest.ReadInventory(&b); err != nil || !more {
		t.Errorf("what took too long looks whole: %t, %v", more, err)
	}
}
