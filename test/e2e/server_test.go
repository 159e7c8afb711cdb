// Package e2e runs the real binary and the official E2B SDKs, unmodified.
//
// It is steered by environment variables that test/run.sh sets; without them
// its tests are skipped, by name.
//
//	HEARTH_TEST_BIN         the binary under test
//	HEARTH_TEST_CACHE       where template sources are kept between runs
//	HEARTH_TEST_JS          directories with the JavaScript SDK installed, colon-separated
//	HEARTH_TEST_PYTHON_SDK  a Python with the Python SDKs installed
package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// server is a running Hearth with a data directory of its own.
type server struct {
	bin, data, listen string
	settings          []string // HEARTH_ variables of its configuration
	env               []string // of programs that use it
}

// binary returns the binary under test, or skips.
func binary(t *testing.T) string {
	t.Helper()
	bin := os.Getenv("HEARTH_TEST_BIN")
	if bin == "" {
		t.Skip("HEARTH_TEST_BIN is not set; run `make test`")
	}
	if os.Geteuid() != 0 {
		t.Skip("sandboxes need root")
	}
	return bin
}

// newServer starts a server on a free port and stops it, and all its
// sandboxes, when the test ends. Nothing may be left of it then.
func newServer(t *testing.T, settings ...string) *server {
	t.Helper()
	s := prepare(t, settings...)
	s.up(t)
	return s
}

// newBaseServer is newServer with the template base alone, which saves time.
func newBaseServer(t *testing.T, settings ...string) *server {
	t.Helper()
	return newServer(t, append([]string{"HEARTH_BUILTIN=base"}, settings...)...)
}

// prepare is newServer without starting it.
func prepare(t *testing.T, settings ...string) *server {
	t.Helper()
	s := &server{bin: binary(t), data: t.TempDir(), listen: freeAddress(t), settings: settings}
	t.Cleanup(func() {
		machines := s.machines()
		if out, err := s.hearth("down", "--data", s.data).CombinedOutput(); err != nil {
			t.Errorf("down: %v\n%s", err, out)
		}
		if t.Failed() {
			log := filepath.Join(s.data, "hearth.log")
			t.Logf("what the server complained of:\n%s\nthe end of its log:\n%s", complaints(log), tail(log, 8<<10))
		}
		s.checkLeaks(t)
		checkMachines(t, machines)
	})
	return s
}

func (s *server) up(t *testing.T) {
	t.Helper()
	if out, err := s.hearth("up", "--detach", "--data", s.data, "--listen", s.listen).CombinedOutput(); err != nil {
		t.Fatalf("up: %v\n%s\n%s", err, out, tail(filepath.Join(s.data, "hearth.log"), 8<<10))
	}
	out, err := s.hearth("env", "--data", s.data).Output()
	if err != nil {
		t.Fatalf("env: %v", err)
	}
	s.env = nil
	for line := range strings.Lines(string(out)) {
		s.env = append(s.env, strings.TrimSpace(strings.TrimPrefix(line, "export ")))
	}
}

// hearth prepares a command line of the binary under test.
func (s *server) hearth(args ...string) *exec.Cmd {
	cmd := exec.Command(s.bin, args...)
	cmd.Env = append(os.Environ(), s.settings...)
	if dir := os.Getenv("HEARTH_TEST_CACHE"); dir != "" {
		cmd.Env = append(cmd.Env, "HEARTH_CACHE="+dir)
	}
	return cmd
}

func (s *server) pid(t *testing.T) int {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(s.data, "hearth.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// checkLeaks looks for what must not outlive `hearth down`: processes and mounts
// that name the data directory, and the node's devices, namespaces and filter.
func (s *server) checkLeaks(t *testing.T) {
	t.Helper()
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		raw, err := os.ReadFile(p)
		if err == nil && bytes.Contains(raw, []byte(s.data)) && !strings.Contains(p, "/"+strconv.Itoa(os.Getpid())+"/") {
			t.Errorf("left behind: process %s: %s", filepath.Base(filepath.Dir(p)), bytes.ReplaceAll(raw, []byte{0}, []byte{' '}))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(mounts, []byte(s.data)) {
		t.Errorf("left behind: mounts below %s:\n%s", s.data, mounts)
	}
	for _, left := range s.network(t) {
		t.Errorf("left behind: %s", left)
	}
}

// freeAddress returns an address that nobody listens at. Its port is none that the
// kernel gives to whoever asks for any: a server that starts again wants the same one,
// and by then another package's test might have it.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 1000 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20_000+rand.IntN(12_000)))
		if err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no port is free")
	return ""
}

func tail(path string, n int) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(raw[max(0, len(raw)-n):])
}

// complaints are the last lines of a server's log that say what it could not do, which thousands of
// others may have come after.
func complaints(path string) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	var lines []string
	for line := range strings.Lines(string(raw)) {
		if strings.Contains(line, "level=ERROR") || strings.Contains(line, "level=WARN") || strings.Contains(line, " status=5") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-40):], "")
}

// run runs a program with the server's environment and fails the test with its
// output when it fails or takes longer than limit.
func (s *server) run(t *testing.T, limit time.Duration, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), s.env...)
	cmd.WaitDelay = time.Second
	timer := time.AfterFunc(limit, func() { cmd.Process.Kill() })
	defer timer.Stop()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// key returns the value of one of the server's environment variables.
func (s *server) key(name string) string {
	for _, kv := range s.env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	panic(fmt.Sprintf("hearth env prints no %s", name))
}
