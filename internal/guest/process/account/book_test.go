package account

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestBook(t *testing.T) {
	want, err := Lookup("root")
	if err != nil {
		t.Fatal(err)
	}
	var b Book
	for range 3 {
		if got, err := b.Lookup("root"); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("Lookup(root) = %+v, %v; want %+v", got, err, want)
		}
		if got, err := b.Lookup("nobody-of-this-name"); err == nil {
			t.Errorf("an unknown user is %+v", got)
		}
	}
}

// TestBookForgets: what was remembered of other states of the files does not count.
func TestBookForgets(t *testing.T) {
	var b Book
	old, changed := [2]stamp{{ino: 1}, {ino: 2}}, [2]stamp{{ino: 1}, {ino: 3}}
	b.remember("a", Account{Name: "a", UID: 1}, old)
	if a, ok := b.recall("a", old); !ok || a.UID != 1 {
		t.Errorf("recall = %+v, %v", a, ok)
	}
	if a, ok := b.recall("b", old); ok {
		t.Errorf("a stranger is recalled: %+v", a)
	}
	if a, ok := b.recall("a", changed); ok {
		t.Errorf("recalled in spite of a change: %+v", a)
	}
	b.remember("b", Account{Name: "b"}, changed)
	if a, ok := b.recall("a", changed); ok {
		t.Errorf("recalled from before a change: %+v", a)
	}
	for i := range 10 * maxKnown {
		b.remember(string(rune('A'+i)), Account{}, changed)
		if len(b.known) > maxKnown {
			t.Fatalf("%d users are known", len(b.known))
		}
	}
}

// TestStamp: a file that has changed has another stamp, and none that has just
// changed is relied on.
func TestStamp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	write := func(text string) time.Time {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return time.Unix(st.Ctim.Unix())
	}
	at := write("one")
	first, ok := stampOf(path, at.Add(settled))
	if ok {
		t.Error("a stamp of a file that has just changed is relied on")
	}
	if same, ok := stampOf(path, at.Add(settled+1)); !ok || same != first {
		t.Errorf("of the same file: %+v, %v; want %+v", same, ok, first)
	}
	at = write("three")
	if other, ok := stampOf(path, at.Add(time.Hour)); !ok || other == first {
		t.Errorf("of a changed file: %+v, %v", other, ok)
	}
	if _, ok := stampOf(path+"x", at); ok {
		t.Error("a stamp of no file is relied on")
	}
}
