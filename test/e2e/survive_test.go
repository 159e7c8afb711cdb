package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// call makes one API request and returns the status and the body.
func (s *server) call(t *testing.T, method, path, body string) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.key("E2B_API_URL")+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-API-KEY", s.key("E2B_API_KEY"))
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, raw
}

type made struct {
	SandboxID       string `json:"sandboxID"`
	EnvdAccessToken string `json:"envdAccessToken"`
}

func (s *server) create(t *testing.T, body string) made {
	t.Helper()
	status, raw := s.call(t, "POST", "/v2/sandboxes", body)
	var m made
	if err := json.Unmarshal(raw, &m); status != http.StatusCreated || err != nil {
		t.Fatalf("create: %d %s", status, raw)
	}
	return m
}

// file reads a file of the sandbox through the edge.
func (s *server) file(t *testing.T, m made, path string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", s.key("E2B_SANDBOX_URL")+"/files?path="+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("E2b-Sandbox-Id", m.SandboxID)
	req.Header.Set("E2b-Sandbox-Port", "49983")
	req.Header.Set("X-Access-Token", m.EnvdAccessToken)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, string(raw)
}

// start runs a shell command in the background of a sandbox.
func (s *server) start(t *testing.T, m made, command string) {
	t.Helper()
	msg, _ := json.Marshal(map[string]any{"process": map[string]any{"cmd": "/bin/bash", "args": []string{"-l", "-c", command}}, "stdin": false})
	var body bytes.Buffer
	body.Write([]byte{0, 0, 0, byte(len(msg) >> 8), byte(len(msg))})
	body.Write(msg)
	req, err := http.NewRequestWithContext(t.Context(), "POST", s.key("E2B_SANDBOX_URL")+"/process.Process/Start", &body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("E2b-Sandbox-Id", m.SandboxID)
	req.Header.Set("E2b-Sandbox-Port", "49983")
	req.Header.Set("X-Access-Token", m.EnvdAccessToken)
	req.Header.Set("Content-Type", "application/connect+json")
	req.Header.Set("Connect-Protocol-Version", "1")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 5)
	if _, err := io.ReadFull(resp.Body, head); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("start: %d %v", resp.StatusCode, err)
	}
	resp.Body.Close() // the process lives on without a reader
}

// stalled is how long nothing takes that does not hang, however slow the host is.
const stalled = 3 * time.Minute

// eventually polls a condition of which there is no event.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(stalled)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", stalled, what)
		}
		<-time.After(2 * time.Millisecond) // the processors are for what it waits for
	}
}

// TestSurvivesItsOwnDeath kills the server with SIGKILL while sandboxes run.
func TestSurvivesItsOwnDeath(t *testing.T) {
	s := newServer(t)
	lives := s.create(t, `{"templateID":"base","timeout":600}`)
	ends := s.create(t, `{"templateID":"base","timeout":600}`)
	dies := s.create(t, `{"templateID":"base","timeout":600}`)
	s.start(t, lives, `n=0; while true; do n=$((n+1)); echo $n > /tmp/count; sleep 0.05; done`)
	count := func(m made) int {
		n := 0
		_, text := s.file(t, m, "/tmp/count")
		fmt.Sscan(text, &n)
		return n
	}
	eventually(t, "the counter counts", func() bool { return count(lives) > 0 })

	if status, raw := s.call(t, "POST", "/sandboxes/"+ends.SandboxID+"/timeout", `{"timeout":1}`); status != http.StatusNoContent {
		t.Fatalf("timeout: %d %s", status, raw)
	}
	victim := s.machineProcess(t, dies.SandboxID)
	pid := s.pid(t)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server is gone", func() bool { return syscall.Kill(pid, 0) != nil })
	if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.up(t)

	before := count(lives)
	eventually(t, "the counter counts on", func() bool { return count(lives) > before })
	for _, gone := range []made{ends, dies} {
		eventually(t, "what ended or died is gone", func() bool {
			status, _ := s.call(t, "GET", "/sandboxes/"+gone.SandboxID, "")
			return status == http.StatusNotFound
		})
	}
	if status, raw := s.call(t, "DELETE", "/sandboxes/"+lives.SandboxID, ""); status != http.StatusNoContent {
		t.Fatalf("kill: %d %s", status, raw)
	}
}

// machineProcess finds the host process of a sandbox's machine by the journal's
// machine ID, which is in its command line.
func (s *server) machineProcess(t *testing.T, sandbox string) int {
	t.Helper()
	machine := ""
	journals, _ := filepath.Glob(filepath.Join(s.data, "node", "machines", "*.json"))
	for _, j := range journals {
		raw, err := os.ReadFile(j)
		if err == nil && bytes.Contains(raw, []byte(sandbox)) {
			machine = strings.TrimSuffix(filepath.Base(j), ".json")
		}
	}
	if machine == "" {
		t.Fatalf("no journal of %s among %v", sandbox, journals)
	}
	monitors := []string{"runsc-sandbox", "hearth-qemu", "firecracker"}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		raw, err := os.ReadFile(p)
		program, _, _ := bytes.Cut(raw, []byte{0})
		if err == nil && slices.Contains(monitors, filepath.Base(string(program))) && bytes.Contains(raw, []byte(machine)) {
			pid := 0
			fmt.Sscan(filepath.Base(filepath.Dir(p)), &pid)
			return pid
		}
	}
	t.Fatalf("no process of machine %s", machine)
	return 0
}
