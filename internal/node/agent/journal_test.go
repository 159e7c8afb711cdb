package agent

import (
	"os"
	"strings"
	"testing"

	"hearth/internal/driver"
)

func TestLastWholeLineCounts(t *testing.T) {
	j := newJournal(t.TempDir())
	if err := os.Mkdir(j.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	r := record{Phase: starting, Slot: 3, Handle: driver.Handle{Driver: "fake", ID: "m1"}, Sandbox: &sandboxRecord{ID: "i1", Env: map[string]string{"A": strings.Repeat("x", 5000)}}}
	for i := range 100 { // beyond maxJournal
		r.Sandbox.Generation, r.Phase = int64(i), running
		if err := j.write(r); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := appendTo(j.path("m1"), []byte(`{"version":1,"phase":"end`)); err != nil { // cut short
		t.Fatal(err)
	}
	list, err := j.load()
	if err != nil || len(list) != 1 || list[0].Sandbox.Generation != 99 || list[0].Slot != 3 || list[0].Phase != running {
		t.Fatalf("%+v, %v", list, err)
	}
	r.Phase = ending
	if err := j.write(r); err != nil { // after a line that was cut short
		t.Fatal(err)
	}
	if list, err = j.load(); err != nil || list[0].Phase != ending {
		t.Fatalf("%+v, %v", list, err)
	}
	if info, err := os.Stat(j.path("m1")); err != nil || info.Size() > maxJournal || info.Mode().Perm() != 0o600 {
		t.Fatalf("%d bytes, %v", info.Size(), err)
	}
}
