package e2e

import (
	"cmp"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hearth/client"
)

// tried is a driver that the official SDKs' core cases run on.
type tried struct {
	name      string
	isolation string // in the words that sandboxes tell
	cell      string // template for a code cell; empty: it would take minutes
}

// TestEveryDriver runs the core cases of the official SDKs once per driver that
// can run on this host; those that cannot are skipped, by name, with the reason.
// QEMU emulates where there is no KVM, so its template is small and runs no cell.
func TestEveryDriver(t *testing.T) {
	js, py := os.Getenv("HEARTH_TEST_JS"), os.Getenv("HEARTH_TEST_PYTHON_SDK")
	bin := binary(t)
	if js == "" && py == "" {
		t.Skip("neither HEARTH_TEST_JS nor HEARTH_TEST_PYTHON_SDK is set; run `make test`")
	}
	able := ableDrivers(t, bin)
	drivers := []tried{{"gvisor", "a kernel in user space; no virtual machine", "code-interpreter-v1"}}
	for _, name := range []string{"qemu", "firecracker"} {
		if words, ok := strings.CutPrefix(able[name], "isolation: "); ok {
			drivers = append(drivers, tried{name: name, isolation: words})
			continue
		}
		t.Run(name, func(t *testing.T) { t.Skip(cmp.Or(able[name], "not in this build")) })
	}
	s := newServer(t, "HEARTH_CONFIG="+driversConfig(t, drivers))
	for _, d := range drivers {
		env := []string{
			"HEARTH_TEST_DRIVER=" + d.name, "HEARTH_TEST_ISOLATION=" + d.isolation, "HEARTH_TEST_TEMPLATE=small-" + d.name, "HEARTH_TEST_CELL=" + d.cell,
		}
		t.Run(d.name, func(t *testing.T) {
			if dir, _, _ := strings.Cut(js, ":"); dir != "" {
				t.Run("js", func(t *testing.T) {
					s.with(env).run(t, 10*time.Minute, dir, "node", "--test", "--test-force-exit", "--test-reporter=spec", "core.mjs")
				})
			}
			if py != "" {
				t.Run("python", func(t *testing.T) { s.with(env).run(t, 10*time.Minute, "py", py, "-m", "unittest", "-v", "core") })
			}
			t.Run("boot", func(t *testing.T) { bootsWithoutSnapshot(t, s, d) })
			t.Run("files", func(t *testing.T) { keepsFilesAlone(t, s, d) })
			t.Run("line", func(t *testing.T) { goesBack(t, s, d) })
		})
	}
	t.Run("outlive", func(t *testing.T) { outliveTheServer(t, s, drivers) })
}

// bootsWithoutSnapshot makes a sandbox of a template that is warm on gvisor
// alone: it begins in the same state, its start command running.
func bootsWithoutSnapshot(t *testing.T, s *server, d tried) {
	sb := s.sandbox(t, client.CreateOptions{Template: "small-gvisor", Driver: d.name})
	if got := sh(t, sb, "cat /tmp/started; pgrep -c -f 'sleep 12345$'"); got != "started\n1\n" {
		t.Errorf("the start command left %q", got)
	}
	info, err := sb.Info(t.Context())
	if err != nil || info.Driver != d.name || info.Isolation != d.isolation {
		t.Errorf("%+v, %v", info, err)
	}
}

// keepsFilesAlone pauses a sandbox without its memory: it boots, and has its files.
func keepsFilesAlone(t *testing.T, s *server, d tried) {
	const state = "cat /root/kept; cat /proc/sys/kernel/random/boot_id"
	sb := s.sandbox(t, client.CreateOptions{Template: "small-" + d.name, Driver: d.name})
	before := sh(t, sb, "echo kept >/root/kept; "+state)
	must(t, s.client(t).PauseFiles(t.Context(), sb.ID))
	again, err := s.client(t).Connect(t.Context(), sb.ID, time.Minute)
	must(t, err)
	after := sh(t, again, state)
	if !strings.HasPrefix(after, "kept\n") || after == before {
		t.Errorf("it had %q, and after a pause without memory %q", before, after)
	}
}

// outliveTheServer kills the server by SIGKILL while a sandbox runs on each driver.
// The next server finds them as they were, and sees the end of their machines.
func outliveTheServer(t *testing.T, s *server, drivers []tried) {
	const state = "cat /proc/sys/kernel/random/boot_id; pgrep -f 'sleep 12345$'"
	sandboxes, before := map[string]*client.Sandbox{}, map[string]string{}
	for _, d := range drivers {
		sandboxes[d.name] = s.sandbox(t, client.CreateOptions{Template: "small-" + d.name, Driver: d.name})
		before[d.name] = sh(t, sandboxes[d.name], state)
	}
	pid := s.pid(t)
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	eventually(t, "the server is gone", func() bool { return syscall.Kill(pid, 0) != nil })
	s.up(t)
	for _, d := range drivers {
		sb := sandboxes[d.name]
		if after := sh(t, sb, state); after != before[d.name] || strings.Count(after, "\n") != 2 {
			t.Errorf("%s: it had %q, and under the next server %q", d.name, before[d.name], after)
		}
		machine := s.machineOf(t, sb.ID)
		must(t, syscall.Kill(s.machineProcess(t, sb.ID), syscall.SIGKILL))
		eventually(t, d.name+": the sandbox is gone", func() bool { return s.status(t, sb.ID) == http.StatusNotFound })
		eventually(t, d.name+": nothing of the machine is left", func() bool { return len(leftOf(machine)) == 0 })
	}
}

// with is the server with more variables for the programs that use it.
func (s *server) with(env []string) *server {
	c := *s
	c.env = append(c.env[:len(c.env):len(c.env)], env...)
	return &c
}

// ableDrivers asks the binary's doctor what each driver can do here.
func ableDrivers(t *testing.T, bin string) map[string]string {
	t.Helper()
	cmd := exec.Command(bin, "doctor", "--json", "--data", t.TempDir())
	cmd.Env = append(os.Environ(), "HEARTH_NODE_QEMU_EMULATE=true", "HEARTH_LISTEN="+freeAddress(t))
	if dir := os.Getenv("HEARTH_TEST_CACHE"); dir != "" {
		cmd.Env = append(cmd.Env, "HEARTH_CACHE="+dir)
	}
	out, err := cmd.Output()
	var lines []struct{ Name, Detail string }
	if jerr := json.Unmarshal(out, &lines); jerr != nil {
		t.Fatalf("doctor: %v, %v\n%s", err, jerr, out)
	}
	able := map[string]string{}
	for _, l := range lines {
		if name, ok := strings.CutPrefix(l.Name, "driver "); ok {
			able[name] = l.Detail
		}
	}
	return able
}

// driversConfig offers the drivers, with a small template for all of them and
// the code interpreter for those that run a cell.
func driversConfig(t *testing.T, drivers []tried) string {
	t.Helper()
	text := "builtin: [code-interpreter-v1]\nnode:\n  driver: gvisor\n  qemu: {emulate: true}\n"
	text += "templates:\n"
	for _, d := range drivers {
		text += "  - {name: small-" + d.name + ", debian: [bash], memory_mib: 256, disk_mib: 128, driver: " + d.name +
			", start: 'echo started >/tmp/started; exec sleep 12345', ready: 'test -f /tmp/started'}\n"
	}
	path := filepath.Join(t.TempDir(), "hearth.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
