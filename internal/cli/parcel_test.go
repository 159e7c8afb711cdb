package cli

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"hearth/internal/hearth"
)

// TestReplace: the file is the new one, or the one that was there.
func TestReplace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	write := func(text string, err error) func(io.Writer) error {
		return func(w io.Writer) error { _, werr := io.WriteString(w, text); return errors.Join(werr, err) }
	}
	check := func(want string) {
		t.Helper()
		raw, _ := os.ReadFile(path)
		list, err := os.ReadDir(dir)
		if string(raw) != want || err != nil || len(list) > 1 {
			t.Errorf("the file is %q, want %q; beside it %v, %v", raw, want, list, err)
		}
	}
	failed := errors.New("failed")
	if err := replace(path, write("half", failed)); !errors.Is(err, failed) {
		t.Errorf("got %v", err)
	}
	check("")
	if err := replace(path, write("whole", nil)); err != nil {
		t.Fatal(err)
	}
	check("whole")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode: %v, %v", info, err)
	}
	if err := replace(path, write("half", failed)); !errors.Is(err, failed) {
		t.Errorf("got %v", err)
	}
	check("whole")
	if err := replace(path, write("newer", nil)); err != nil {
		t.Fatal(err)
	}
	check("newer")
	if err := replace(dir, write("x", nil)); hearth.KindOf(err) != hearth.InvalidArgument {
		t.Errorf("a directory: %v", err)
	}
	if err := replace("/dev/null", write("x", nil)); hearth.KindOf(err) != hearth.InvalidArgument {
		t.Errorf("a device: %v", err)
	}
	if err := replace(filepath.Join(dir, "none", "file"), write("x", nil)); hearth.KindOf(err) != hearth.NotFound {
		t.Errorf("no directory: %v", err)
	}
}
