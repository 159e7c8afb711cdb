package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearth/client"
)

// sdk is the Go client of a server.
func (s *server) sdk(t *testing.T) *client.Client {
	t.Helper()
	c, err := client.New(client.Options{APIKey: s.key("E2B_API_KEY"), APIURL: s.key("E2B_API_URL"), SandboxURL: s.key("E2B_SANDBOX_URL")})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// do runs a command line of the binary on the server's directory.
func (s *server) do(t *testing.T, args ...string) string {
	t.Helper()
	cmd := s.hearth(append(args, "--data", s.data)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("hearth %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	return strings.TrimSpace(string(out))
}

func run(t *testing.T, sb *client.Sandbox, line string) string {
	t.Helper()
	res, err := sb.Commands.Run(t.Context(), line, client.RunOptions{})
	if err != nil || res.ExitCode != 0 {
		t.Fatalf("%s: %v, %+v", line, err, res)
	}
	return strings.TrimSpace(res.Stdout)
}

// arrived checks that a sandbox of an imported snapshot goes on where the one
// that it was taken of was: the file, and the process with its count in memory.
func arrived(t *testing.T, c *client.Client, snapshot, process string, least int) *client.Sandbox {
	t.Helper()
	sb, err := c.Create(t.Context(), client.CreateOptions{Template: snapshot, Timeout: 5 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if got := run(t, sb, "cat /home/user/note"); got != "kept for later" {
		t.Errorf("the file is %q", got)
	}
	run(t, sb, "kill -0 "+process)
	line := `before=$(cat /tmp/count); for i in $(seq 500); do now=$(cat /tmp/count); [ "$now" != "$before" ] && echo "$now" && exit; sleep 0.1; done; exit 1`
	if n, err := strconv.Atoi(run(t, sb, line)); err != nil || n <= least {
		t.Errorf("the process counts %d after %d: it began anew; %v", n, least, err)
	}
	return sb
}

// TestSnapshotTravels takes a snapshot out of a server, and into it again, and into
// another one, which has keys of its own.
func TestSnapshotTravels(t *testing.T) {
	s := newBaseServer(t)
	c := s.sdk(t)
	sb, err := c.Create(t.Context(), client.CreateOptions{Timeout: 5 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sb.Files.Write(t.Context(), "/home/user/note", strings.NewReader("kept for later")); err != nil {
		t.Fatal(err)
	}
	process := run(t, sb, `nohup sh -c 'n=100; while :; do n=$((n+1)); echo $n >/tmp/c; mv /tmp/c /tmp/count; sleep 0.1; done' >/dev/null 2>&1 & until [ -s /tmp/count ]; do sleep 0.1; done; echo $!`)
	least, err := strconv.Atoi(run(t, sb, "cat /tmp/count"))
	if err != nil {
		t.Fatal(err)
	}
	snapshot := s.do(t, "sandbox", "snapshot", sb.ID)
	file := filepath.Join(t.TempDir(), "moment.tar.zst")
	s.do(t, "snapshot", "export", snapshot, file)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 || info.Size() < 1<<20 {
		t.Errorf("the file: %v, %v", info, err)
	}
	if err := sb.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.do(t, "snapshot", "delete", snapshot)
	if out, err := s.hearth("snapshot", "export", snapshot, file+".2", "--data", s.data).CombinedOutput(); err == nil || !strings.Contains(string(out), "not found") {
		t.Errorf("export of what was deleted: %v, %s", err, out)
	}

	first := s.do(t, "snapshot", "import", file)
	second := s.do(t, "snapshot", "import", file)
	if listed := s.do(t, "snapshot", "list"); first == second || !strings.Contains(listed, first) || !strings.Contains(listed, second) {
		t.Errorf("imported %s and %s, listed %s", first, second, listed)
	}
	back := arrived(t, c, first, process, least)
	s.do(t, "snapshot", "delete", first)
	run(t, back, "kill -0 "+process) // it lives on
	if err := back.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}

	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	cut := file + ".cut"
	if err := os.WriteFile(cut, raw[:len(raw)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := s.hearth("snapshot", "import", cut, "--data", s.data).CombinedOutput(); err == nil || !strings.Contains(string(out), "cut short") {
		t.Errorf("half a file: %v, %s", err, out)
	}
	if _, there := snapshotFiles(s)[second[:21]]; !there {
		t.Errorf("%s has no files: %v", second, snapshotFiles(s))
	}
	s.do(t, "snapshot", "delete", second)
	if removed, there := snapshotFiles(s)[second[:21]]; there && !removed {
		t.Error("a deleted import is left in the store")
	}

	if out, err := s.hearth("down", "--data", s.data).CombinedOutput(); err != nil { // two servers' drivers share their group's directory
		t.Fatalf("down: %v\n%s", err, out)
	}
	other := newBaseServer(t)
	arrived(t, other.sdk(t), other.do(t, "snapshot", "import", file), process, least)
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(file), ".*")); len(left) > 0 {
		t.Errorf("left beside the file: %v", left)
	}
}
