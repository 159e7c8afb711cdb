package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"hearth/client"
	"hearth/internal/netns/hostnet"
)

// client returns the Go SDK for the server.
func (s *server) client(t *testing.T) *client.Client {
	t.Helper()
	c, err := client.New(client.Options{APIKey: s.key("E2B_API_KEY"), APIURL: s.key("E2B_API_URL"), SandboxURL: s.key("E2B_SANDBOX_URL")})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// sandbox makes a sandbox of base, which ends with the test.
func (s *server) sandbox(t *testing.T, o client.CreateOptions) *client.Sandbox {
	t.Helper()
	sb, err := s.client(t).Create(t.Context(), o)
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	t.Cleanup(func() {
		if err := sb.Kill(context.WithoutCancel(t.Context())); err != nil && !client.NotFound(err) {
			t.Errorf("killing %s: %v", sb.ID, err)
		}
	})
	return sb
}

// sh runs a command line as root and returns its output, whatever its exit code.
func sh(t *testing.T, sb *client.Sandbox, line string) string {
	t.Helper()
	res, err := sb.Commands.Run(t.Context(), line, client.RunOptions{User: "root"})
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return res.Stdout + res.Stderr
}

// answers fails the test unless a command works in the sandbox.
func answers(t *testing.T, sb *client.Sandbox) {
	t.Helper()
	if got := sh(t, sb, "echo alive"); got != "alive\n" {
		t.Fatalf("sandbox %s answers %q", sb.ID, got)
	}
}

// tag tells the server's devices, namespaces and filter from those of others.
func (s *server) tag() string {
	sum := sha256.Sum256([]byte(s.data))
	return hex.EncodeToString(sum[:3])[:5]
}

// network lists what the server has in the host's network.
func (s *server) network(t *testing.T) []string {
	t.Helper()
	var found []string
	links, err := hostnet.Dumped(netlink.LinkList)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, "hs"+s.tag()+"-") {
			found = append(found, "device "+l.Attrs().Name)
		}
	}
	namespaces, _ := filepath.Glob("/run/hearth/netns/" + s.tag() + "*")
	for _, n := range namespaces {
		found = append(found, "namespaces in "+n)
	}
	nft, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := nft.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		if table.Name == "hearth-"+s.tag() {
			found = append(found, "table "+table.Name)
		}
	}
	return found
}

// machines lists the IDs of the machines in the server's journal.
func (s *server) machines() []string {
	var ids []string
	journals, _ := filepath.Glob(filepath.Join(s.data, "node", "machines", "*.json"))
	for _, j := range journals {
		ids = append(ids, strings.TrimSuffix(filepath.Base(j), ".json"))
	}
	return ids
}

// machineOf returns the ID of a sandbox's machine.
func (s *server) machineOf(t *testing.T, sandbox string) string {
	t.Helper()
	for _, id := range s.machines() {
		raw, err := os.ReadFile(filepath.Join(s.data, "node", "machines", id+".json"))
		if err == nil && bytes.Contains(raw, []byte(sandbox)) {
			return id
		}
	}
	t.Fatalf("no journal of %s", sandbox)
	return ""
}

// leftOf lists what the host still has of a machine.
func leftOf(machine string) []string {
	var found []string
	for _, pattern := range []string{
		"/sys/fs/cgroup/hearth/" + machine, "/sys/fs/cgroup/*/hearth/" + machine, "/run/hearth/*/*" + machine + "*",
	} {
		paths, _ := filepath.Glob(pattern)
		found = append(found, paths...)
	}
	ranges, _ := filepath.Glob("/run/hearth/*/u*s/*") // uids, users
	for _, r := range ranges {
		if owner, err := os.Readlink(r); err == nil && owner == machine {
			found = append(found, r)
		}
	}
	for pid, line := range processes() {
		if strings.Contains(line, machine) {
			found = append(found, fmt.Sprintf("process %d: %s", pid, line))
		}
	}
	return found
}

func checkMachines(t *testing.T, machines []string) {
	t.Helper()
	for _, m := range machines {
		for _, left := range leftOf(m) {
			t.Errorf("left behind of machine %s: %s", m, left)
		}
	}
}

// processes returns the command lines of all processes by pid.
func processes() map[int]string {
	all := map[int]string{}
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range paths {
		raw, err := os.ReadFile(p)
		pid, numErr := strconv.Atoi(filepath.Base(filepath.Dir(p)))
		if err == nil && numErr == nil && len(raw) > 0 {
			all[pid] = string(bytes.ReplaceAll(raw, []byte{0}, []byte{' '}))
		}
	}
	return all
}

// statusField reads a field of /proc/PID/status.
func statusField(t *testing.T, pid int, name string) []string {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.Fields(v)
		}
	}
	t.Fatalf("/proc/%d/status has no %s", pid, name)
	return nil
}

// resident returns the memory a process has in use, in MiB.
func resident(t *testing.T, pid int) int {
	t.Helper()
	kib, err := strconv.Atoi(statusField(t, pid, "VmRSS")[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib >> 10
}

// logged reports whether one line of the server's log has all of the words.
func (s *server) logged(words ...string) bool {
	raw, _ := os.ReadFile(filepath.Join(s.data, "hearth.log"))
	for line := range strings.Lines(string(raw)) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			return true
		}
	}
	return false
}

// status asks for a sandbox and returns the status alone.
func (s *server) status(t *testing.T, sandbox string) int {
	t.Helper()
	code, _ := s.call(t, "GET", "/sandboxes/"+sandbox, "")
	return code
}

// discard reads a body to its end and closes it.
func discard(body io.ReadCloser) {
	_, _ = io.Copy(io.Discard, io.LimitReader(body, 1<<20))
	_ = body.Close()
}
