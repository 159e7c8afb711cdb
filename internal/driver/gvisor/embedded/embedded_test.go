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
	for name, tree := range map[string]fstest.MapFS{
		"missing": {"bin/README": {Data: []byte("note")}},
		"empty":   {"bin/hearth-sandbox": {}},
	} {
		if _, err := inMemory(tree); hearth.KindOf(err) != hearth.FailedPrecondition || !strings.Contains(err.Error(), "make build") {
			t.Errorf("%s: got %v, want FailedPrecondition that names the remedy", name, err)
		}
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
	defer unix.Umask(unix.Umask(0o077))
	f, err := inMemory(fstest.MapFS{"bin/hearth-sandbox": {Data: raw}})
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
		t.Skip("this host mounts nothing: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	pid, err := os.Readlink("/proc/self")
	if err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/proc/%s/fd/%d", pid, f.Fd())
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, raw) {
		t.Errorf("%d bytes, %v; embedded were %d", len(got), err, len(raw))
	}
	if text, err := exec.Command(path, "-test.list", "^TestInMemory$").CombinedOutput(); err != nil || !strings.Contains(string(text), "TestInMemory") {
		t.Errorf("executed: %s, %v", text, err)
	}
	if w, err := os.OpenFile(path, os.O_WRONLY, 0); !errors.Is(err, unix.EROFS) {
		t.Errorf("opened for writing: %v, %v", w, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if st.Mode&0o777 != 0o555 {
		t.Errorf("mode %#o: sandboxes are other users", st.Mode)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if device := fmt.Sprintf(" %d:%d ", unix.Major(st.Dev), unix.Minor(st.Dev)); err != nil || strings.Contains(string(mounts), device) {
		t.Errorf("it is mounted:%sis in\n%s%v", device, mounts, err)
	}
}
