package e2e

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestCommandLine runs the scripts in testdata with the real binary as "hearth".
// They need no sandbox: those are in the other tests.
func TestCommandLine(t *testing.T) {
	bin := binary(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", filepath.Dir(bin)+":"+e.Getenv("PATH"))
			return nil
		},
	})
}

// TestFaultsAtStart checks that what keeps a server from starting is said in
// one sentence, with an exit code, and leaves nothing behind.
func TestFaultsAtStart(t *testing.T) {
	s := newServer(t)
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for _, tc := range []struct {
		name, want string
		args       []string
	}{
		{"second server on the directory", "already runs", []string{"up", "--data", s.data, "--listen", freeAddress(t)}},
		{"busy port", "in use", []string{"up", "--data", filepath.Join(t.TempDir(), "d"), "--listen", busy.Addr().String()}},
		{"busy port, detached", "in use", []string{"up", "--detach", "--data", filepath.Join(t.TempDir(), "d"), "--listen", busy.Addr().String()}},
		{"directory that is a file", "data directory", []string{"up", "--data", s.bin}},
		{"bad address", "listen", []string{"up", "--data", t.TempDir(), "--listen", "nowhere"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, err := s.hearth(tc.args...).CombinedOutput()
			last := lastLine(string(out))
			if _, ok := err.(*exec.ExitError); !ok || !strings.Contains(last, tc.want) {
				t.Errorf("got %v and %q, want a failure that says %q", err, last, tc.want)
			}
		})
	}
	t.Run("not root", func(t *testing.T) {
		cmd := s.hearth("up", "--data", t.TempDir())
		unprivileged(cmd, t)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(lastLine(string(out)), "root") {
			t.Errorf("got %v and %q, want a failure that says root", err, lastLine(string(out)))
		}
	})
	t.Run("missing package", func(t *testing.T) {
		cmd := s.hearth("up", "--data", filepath.Join(t.TempDir(), "d"), "--listen", freeAddress(t))
		cmd.Env = append(cmd.Env, "PATH=/nonexistent")
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(lastLine(string(out)), "apt-get install") {
			t.Errorf("got %v and %q, want a failure that names the package", err, lastLine(string(out)))
		}
	})
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// unprivileged makes cmd run as nobody, on a copy of the binary it can reach.
func unprivileged(cmd *exec.Cmd, t *testing.T) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "hearth-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(cmd.Path)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Path = filepath.Join(dir, "hearth")
	if err := os.WriteFile(cmd.Path, raw, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = nobody()
}
