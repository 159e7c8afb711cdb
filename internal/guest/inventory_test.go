package guest

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"hearth/internal/hearth"
)

func inventory(t testing.TB, entries ...hearth.Entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := NewInventoryWriter(&b)
	for _, e := range entries {
		if !w.Add(e) {
			t.Fatal("no room")
		}
	}
	if err := w.End(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestInventory(t *testing.T) {
	want := []hearth.Entry{
		{Path: "/a\xff", Kind: hearth.RegularFile, Size: 1 << 40, Mode: 0o4755, MTime: -5, UID: 1000, GID: 1<<32 - 1},
		{Path: "/", Kind: hearth.Directory, Mode: 0o1777, MTime: 1 << 60},
		{Path: "/l", Kind: hearth.Symlink, Target: "../x"},
		{Path: "/" + strings.Repeat("x", 4095), Kind: hearth.OtherEntry},
	}
	got, more, err := ReadInventory(bytes.NewReader(inventory(t, want...)))
	if err != nil || more || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %t, %v", got, more, err)
	}
	if got, _, err := ReadInventory(bytes.NewReader(inventory(t))); err != nil || len(got) != 0 {
		t.Errorf("an empty one: %+v, %v", got, err)
	}
	var b bytes.Buffer
	w := NewInventoryWriter(&b)
	w.Skip()
	if w.Add(want[0]) {
		t.Error("an entry after a gap")
	}
	if _, more, err := ReadInventory(bytes.NewReader(append(b.Bytes(), "HRTHFI01\x00\x00\x01"...))); err != nil || !more {
		t.Errorf("one that is not whole: %t, %v", more, err)
	}
}

// TestBadInventories: whatever a guest says, it is an error that says why, or well-formed entries.
func TestBadInventories(t *testing.T) {
	good := inventory(t, hearth.Entry{Path: "/a", Kind: hearth.RegularFile, Size: 5})
	for i := range good {
		if _, _, err := ReadInventory(bytes.NewReader(good[:i])); hearth.KindOf(err) != hearth.FailedPrecondition {
			t.Errorf("%d bytes of it: %v", i, err)
		}
	}
	for _, e := range []hearth.Entry{
		{Path: "a", Kind: 'f'}, {Path: "", Kind: 'f'}, {Path: "/a/../b", Kind: 'f'}, {Path: "/a/", Kind: 'd'}, {Path: "/a\x00", Kind: 'f'},
		{Path: "/a", Kind: 'x'}, {Path: "/a", Kind: 'f', Size: -1}, {Path: "/a", Kind: 'f', Mode: 1 << 20},
		{Path: "/" + strings.Repeat("x", 4096), Kind: 'f'}, {Path: "/a", Kind: 'l', Target: "\x00"},
	} {
		if _, _, err := ReadInventory(bytes.NewReader(inventory(t, e))); hearth.KindOf(err) != hearth.FailedPrecondition {
			t.Errorf("%.60q of kind %c: %v", e.Path, e.Kind, err)
		}
	}
}

func FuzzInventory(f *testing.F) {
	f.Add(inventory(f, hearth.Entry{Path: "/a", Kind: 'f', Size: 5}, hearth.Entry{Path: "/l", Kind: 'l', Target: "x"}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		list, _, err := ReadInventory(bytes.NewReader(raw))
		if err != nil {
			return
		}
		again, _, err := ReadInventory(bytes.NewReader(inventory(t, list...)))
		if err != nil || len(again) != len(list) {
			t.Errorf("%+v cannot be written: %v", list, err)
		}
	})
}
