package journal

import (
	"os"
	"strings"
	"testing"

	"hearth/internal/driver"
)

func TestLastWholeLineCounts(t *testing.T) {
	j := New(t.TempDir())
	if err := os.Mkdir(j.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	r := Record{Phase: Starting, Slot: 3, Handle: driver.Handle{Driver: "fake", ID: "m1"}, Sandbox: &Sandbox{ID: "i1", Env: map[string]string{"A": strings.Repeat("x", 5000)}}}
	for i := range 100 { // beyond maxJournal
		r.Sandbox.Generation, r.Phase = int64(i), Running
		if err := j.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := appendTo(j.Path("m1"), []byte(`{"version":1,"Phase":"end`)); err != nil { // cut short
		t.Fatal(err)
	}
	list, err := j.Load()
	if err != nil || len(list) != 1 || list[0].Sandbox.Generation != 99 || list[0].Slot != 3 || list[0].Phase != Running {
		t.Fatalf("%+v, %v", list, err)
	}
	r.Phase = Ending
	if err := j.Write(r); err != nil { // after a line that was cut short
		t.Fatal(err)
	}
	if list, err = j.Load(); err != nil || list[0].Phase != Ending {
		t.Fatalf("%+v, %v", list, err)
	}
	if info, err := os.Stat(j.Path("m1")); err != nil || info.Size() > maxJournal || info.Mode().Perm() != 0o600 {
		t.Fatalf("%d bytes, %v", info.Size(), err)
	}
}
