package jail

import (
	"bytes"
	"hearth/internal/driver/hostproc"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestBelongsTo(t *testing.T) {
	for line, want := range map[string]bool{
		"/usr/bin/jailer\x00--id\x00m1\x00--exec-file\x00x": true,
		"firecracker\x00--id\x00m1\x00--start-time-us\x001": true,
		"firecracker-v1.16.1\x00--id\x00m1":                 true,
		"hearth-pager\x00m1":                                true,
		"hearth-pager\x00m2":                                false,
		"hearth-pager\x00m1\x00more":                        false,
		"firecracker\x00--id\x00m2\x00m1":                   false,
		"firecracker\x00m1":                                 false,
		"firecracker\x00--id":                               false,
		"vi\x00--id\x00m1":                                  false,
		"sh\x00-c\x00firecracker --id m1":                   false,
		"":                                                  false,
		"jailer\x00--uid\x005\x00--id\x00m1\x00--\x00--id\x00other": true,
	} {
		if got := belongsTo("m1", "hearth-pager", strings.Split(strings.TrimSuffix(line, "\x00"), "\x00")); got != want {
			t.Errorf("%q: %t, want %t", line, got, want)
		}
	}
}

// A file of another file system is mounted, read-only, and taken off again.
func TestFileOfAnotherFileSystem(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	other := filepath.Join(t.TempDir(), "a place")
	must(t, os.Mkdir(other, 0o755))
	must(t, unix.Mount("tmpfs", other, "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(other, 0)) })
	must(t, os.WriteFile(filepath.Join(other, "layer"), []byte("content"), 0o400))
	must(t, os.Symlink("layer", filepath.Join(other, "link")))
	j := Jail{Dir: filepath.Join(t.TempDir(), "a machine"), ID: "m1", Exe: "firecracker", UID: 12345}
	must(t, os.Mkdir(j.Dir, 0o700))
	must(t, j.Prepare())
	must(t, j.Put(filepath.Join(other, "link"), "layer0"))
	if got, err := os.ReadFile(j.Path("layer0")); err != nil || !bytes.Equal(got, []byte("content")) {
		t.Errorf("%q, %v", got, err)
	}
	if err := os.WriteFile(j.Path("layer0"), []byte("changed"), 0); err == nil {
		t.Error("the machine may write it")
	}
	if info, err := os.Stat(j.Path("layer0")); err != nil || info.Mode().Perm() != 0o444 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	must(t, UnmountBelow(j.Dir))
	must(t, hostproc.Empty(j.Dir))
	if got, err := os.ReadFile(filepath.Join(other, "layer")); err != nil || string(got) != "content" {
		t.Errorf("the original is %q, %v", got, err)
	}
}

func TestPutRefuses(t *testing.T) {
	j := Jail{Dir: t.TempDir(), ID: "m1", Exe: "firecracker"}
	must(t, j.Prepare())
	for _, from := range []string{"/nowhere", "/dev/null", t.TempDir()} {
		if err := j.Put(from, "x"); err == nil {
			t.Errorf("%s was put there", from)
		}
	}
}

func TestPIDs(t *testing.T) {
	j := Jail{Dir: t.TempDir(), ID: "m1", Exe: "firecracker"}
	must(t, j.Prepare())
	for text, want := range map[string]int{"4711": 4711, "4711\n": 4711, "": 0, "1": 0, "-5": 0, "x": 0, "99999999999999999999": 0} {
		must(t, os.WriteFile(j.Path("firecracker.pid"), []byte(text), 0o600))
		if got, err := j.PID(); got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
