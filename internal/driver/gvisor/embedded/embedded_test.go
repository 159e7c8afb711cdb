package embedded

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"

	"hearth/internal/hearth"
)

func TestMissing(t *testing.T) {
	_, err := inMemory(fstest.MapFS{"bin/README": {Data: []byte("note")}})
	if hearth.KindOf(err) != hearth.FailedPrecondition || !strings.Contains(err.Error(), "make build") {
		t.Errorf("got %v, want FailedPrecondition that names the remedy", err)
	}
}

// TestInMemory: the program is executed as it was embedded, nobody can write to it, and
// no mount is seen.
func TestInMemory(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	mounts := readMounts(t)
	f, err := inMemory(fstest.MapFS{"bin/hearth-sandbox": {Data: raw}})
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
		t.Skip("this host mounts nothing: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, raw) {
		t.Errorf("%d bytes, %v; embedded were %d", len(got), err, len(raw))
	}
	if text, err := exec.Command(path, "-test.list", "^TestInMemory$").CombinedOutput(); err != nil || !strings.Contains(string(text), "TestInMemory") {
		t.Errorf("executed: %s, %v", text, err)
	}
	if _, err := f.WriteAt([]byte("x"), 0); err == nil {
		t.Error("it can be written to")
	}
	if now := readMounts(t); now != mounts {
		t.Errorf("mounts before:\n%s\nand now:\n%s", mounts, now)
	}
}

func readMounts(t *testing.T) string {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
