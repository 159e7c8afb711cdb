package e2e

import (
	_ "embed"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hearth/client"
)

//go:embed testdata/inside/probe.py
var probeScript string

// forbidden are addresses of the world that no sandbox may reach.
func forbidden() []string {
	return []string{"10.1.2.3", "100.64.0.9", "100.100.100.200", "168.63.129.16", "169.254.169.254",
		"169.254.170.2", "172.16.5.5", "172.31.255.254", "192.0.0.192", "192.168.7.7"}
}

// metadata is the address at which clouds give away credentials, as programs may
// spell it, and its kin of version 6.
func metadata() []string {
	return []string{"169.254.169.254", "0xa9fea9fe", "0xa9.0xfe.0xa9.0xfe", "2852039166", "0251.0376.0251.0376", "169.254.43518",
		"::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "64:ff9b::a9fe:a9fe", "fd00:ec2::254"}
}

// attempt is the outcome of one connection tried from inside.
type attempt struct {
	target, outcome string
}

// probe tries targets, "tcp HOST PORT" or "udp HOST PORT", from inside, as root.
func probe(t *testing.T, sb *client.Sandbox, targets []string) []attempt {
	t.Helper()
	if _, err := sb.Files.Write(t.Context(), "/tmp/probe.py", strings.NewReader(probeScript)); err != nil {
		t.Fatal(err)
	}
	res, err := sb.Commands.Run(t.Context(), "cat > /tmp/targets; python3 /tmp/probe.py < /tmp/targets",
		client.RunOptions{User: "root", Input: []byte(strings.Join(targets, "\n") + "\n")})
	if err != nil || res.ExitCode != 0 {
		t.Fatalf("probe: %v %+v", err, res)
	}
	var all []attempt
	for line := range strings.Lines(res.Stdout) {
		target, outcome, _ := strings.Cut(strings.TrimSpace(line), " -> ")
		all = append(all, attempt{target, outcome})
	}
	if len(all) != len(targets) {
		t.Fatalf("%d targets, but:\n%s", len(targets), res.Stdout)
	}
	return all
}

// refused fails the test for every target that was reached, or left without an
// answer. UDP may go unanswered: the kernel limits how often it says that a port is
// closed, to six times in a row and once a second.
func refused(t *testing.T, sb *client.Sandbox, targets []string) {
	t.Helper()
	for _, a := range probe(t, sb, targets) {
		if a.outcome == "silent" && strings.HasPrefix(a.target, "udp ") {
			continue
		}
		switch a.outcome {
		case "ECONNREFUSED", "ENETUNREACH", "EHOSTUNREACH", "EACCES", "EPERM", "ECONNRESET", "EADDRNOTAVAIL":
		default:
			t.Errorf("%s: %s, want a refusal", a.target, a.outcome)
		}
	}
}

// TestIsolation tries, from inside sandboxes, to reach what is not theirs.
func TestIsolation(t *testing.T) {
	s := newBaseServer(t) // first: a world may be in the way of making templates
	w := newWorld(t, append(forbidden(), worldPublic)...)
	a := s.sandbox(t, client.CreateOptions{})
	b := s.sandbox(t, client.CreateOptions{NoInternet: true})
	t.Run("network", func(t *testing.T) { s.tryNetwork(t, w, a, b) })
	t.Run("host facts", func(t *testing.T) { s.tryHostFacts(t, a, b) })
	t.Run("process", func(t *testing.T) { s.checkProcess(t, a) })
	t.Run("tokens", func(t *testing.T) { s.tryTokens(t, a, b) })
}

func (s *server) tryNetwork(t *testing.T, w *world, a, b *client.Sandbox) {
	own := func(sb *client.Sandbox) string {
		return strings.Fields(sh(t, sb, `python3 -c "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('`+worldPublic+`', 9)); print(s.getsockname()[0])"`))[0]
	}
	gateway := func(guest string) string {
		ip := net.ParseIP(guest).To4()
		ip[3]--
		return ip.String()
	}
	guestA, guestB := own(a), own(b)

	t.Run("internet", func(t *testing.T) {
		for _, got := range probe(t, a, []string{
			fmt.Sprintf("tcp %s %d", worldPublic, worldTCP), fmt.Sprintf("udp %s %d", worldPublic, worldUDP)}) {
			if got.outcome != "connected" && got.outcome != "answered" {
				t.Errorf("%s: %s", got.target, got.outcome)
			}
		}
		seen := 0 // a connection is there before the world has accepted it
		eventually(t, "the world saw both of them", func() bool { seen += len(w.reached()); return seen == 2 })
	})
	t.Run("forbidden ranges", func(t *testing.T) {
		var targets []string
		for _, addr := range forbidden() {
			targets = append(targets, fmt.Sprintf("tcp %s %d", addr, worldTCP), fmt.Sprintf("udp %s %d", addr, worldUDP))
		}
		for _, addr := range metadata() {
			targets = append(targets, "tcp "+addr+" 80", fmt.Sprintf("tcp %s %d", addr, worldTCP))
		}
		refused(t, a, targets)
		if seen := w.reached(); len(seen) > 0 {
			t.Errorf("the world was reached: %v", seen)
		}
	})
	t.Run("host", func(t *testing.T) { s.tryHost(t, a, gateway(guestA), gateway(guestB)) })
	t.Run("other sandboxes", func(t *testing.T) {
		started, err := b.Commands.Start(t.Context(), "python3 -m http.server 8000", client.RunOptions{User: "root"})
		must(t, err)
		started.Detach()
		eventually(t, "the neighbour serves", func() bool {
			resp, err := b.Request(t.Context(), "GET", 8000, "/", nil)
			if err != nil {
				return false
			}
			discard(resp.Body)
			return resp.StatusCode == 200
		})
		refused(t, a, []string{"tcp " + guestB + " 8000", "tcp " + guestB + " 49983", "udp " + guestB + " 53", "tcp ::ffff:" + guestB + " 8000"})
	})
	t.Run("no internet when told", func(t *testing.T) {
		refused(t, b, []string{fmt.Sprintf("tcp %s %d", worldPublic, worldTCP), fmt.Sprintf("udp %s %d", worldPublic, worldUDP),
			fmt.Sprintf("udp %s 53", worldPublic), "tcp " + guestA + " 49983", "tcp " + gateway(guestB) + " 22"})
		if seen := w.reached(); len(seen) > 0 {
			t.Errorf("the world was reached: %v", seen)
		}
	})
	t.Run("version 6", func(t *testing.T) {
		refused(t, a, []string{"tcp 2001:db8::1 80", "udp 2001:db8::1 53", "tcp fd00::2 80", "tcp fe80::1 80", "tcp ff02::1 80"})
	})
}

// tryHost tries ports that are open on every address of the host.
func (s *server) tryHost(t *testing.T, sb *client.Sandbox, gateways ...string) {
	open, err := net.Listen("tcp", ":0") // all addresses of both versions
	must(t, err)
	defer open.Close()
	reached := make(chan string, 100)
	go func() {
		for {
			conn, err := open.Accept()
			if err != nil {
				return
			}
			reached <- conn.RemoteAddr().String() + " reached " + conn.LocalAddr().String()
			conn.Close()
		}
	}()
	_, port, err := net.SplitHostPort(open.Addr().String())
	must(t, err)
	_, api, err := net.SplitHostPort(s.listen)
	must(t, err)
	addrs, err := net.InterfaceAddrs()
	must(t, err)
	hosts := gateways
	for _, addr := range addrs {
		ip := addr.(*net.IPNet).IP
		if ip.IsLoopback() || ip.IsLinkLocalUnicast() || strings.HasPrefix(ip.String(), "10.213.") {
			continue // the sandbox's own, or tried as gateways
		}
		hosts = append(hosts, ip.String())
	}
	hosts = append(hosts, "::ffff:"+gateways[0])
	var targets []string
	for _, h := range hosts {
		targets = append(targets, "tcp "+h+" "+port, "tcp "+h+" "+api, "udp "+h+" "+port)
	}
	refused(t, sb, append(targets, "tcp 127.0.0.1 "+port, "tcp 127.0.0.1 "+api, "tcp ::1 "+port, "tcp 0.0.0.0 "+api))
	select {
	case who := <-reached:
		t.Error(who)
	default:
	}
}

// tryHostFacts looks for the host from inside.
func (s *server) tryHostFacts(t *testing.T, a, b *client.Sandbox) {
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte("of the host"), 0o644))
	hostname, err := os.Hostname()
	must(t, err)
	for _, tc := range []struct {
		name, line string
		ok         func(out string) bool
	}{
		{"host file", "cat " + secret, func(out string) bool { return strings.Contains(out, "No such file") }},
		{"data directory", "ls " + s.data, func(out string) bool { return strings.Contains(out, "No such file") }},
		{"first process", "tr '\\0' ' ' < /proc/1/cmdline", func(out string) bool { return strings.Contains(out, "hearth-guest") }},
		{"processes", "ls -d /proc/[0-9]* | wc -l", func(out string) bool { return len(strings.TrimSpace(out)) < 3 }},
		{"kernel", "dmesg | head -3; uname -a", func(out string) bool { return strings.Contains(out, "gVisor") }},
		{"host name", "hostname", func(out string) bool { return strings.TrimSpace(out) != hostname }},
		{"mounts", "cat /proc/mounts", func(out string) bool { return !strings.Contains(out, s.data) && !strings.Contains(out, "/dev/vd") }},
		{"devices", "ls /dev", func(out string) bool {
			return !strings.Contains(out, "mem\n") && !strings.Contains(out, "kvm") && !strings.Contains(out, "vd")
		}},
		{"block device", "mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk | wc -c", func(out string) bool { return strings.TrimSpace(out) != "1" }},
		{"kernel memory", "mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem | wc -c", func(out string) bool { return strings.TrimSpace(out) != "1" }},
		{"cgroups", "cat /proc/1/cgroup /proc/self/cgroup", func(out string) bool { return !strings.Contains(out, "hearth/m") }},
		{"tokens in the environment", "cat /proc/*/environ | tr '\\0' '\\n'", func(out string) bool {
			return !strings.Contains(out, a.AccessToken) && !strings.Contains(out, s.key("E2B_API_KEY"))
		}},
		{"tokens in arguments", "cat /proc/*/cmdline | tr '\\0' '\\n'", func(out string) bool { return !strings.Contains(out, a.AccessToken) }},
		{"modules", "insmod /etc/passwd; echo $?", func(out string) bool { return !strings.HasSuffix(strings.TrimSpace(out), "\n0") }},
	} {
		if out := sh(t, a, tc.line); !tc.ok(out) {
			t.Errorf("%s: %s\n%s", tc.name, tc.line, out)
		}
	}
	sh(t, a, "echo mine > /tmp/mine")
	if out := sh(t, b, "ls /tmp/mine"); !strings.Contains(out, "No such file") {
		t.Errorf("another sandbox's file: %s", out)
	}
}

// checkProcess looks at a sandbox's process from the host.
func (s *server) checkProcess(t *testing.T, sb *client.Sandbox) {
	pid := s.machineProcess(t, sb.ID)
	for _, uid := range statusField(t, pid, "Uid") {
		if uid == "0" || len(uid) < 6 {
			t.Errorf("the sandbox runs as host user %s", uid)
		}
	}
	for _, gid := range statusField(t, pid, "Gid") {
		if gid == "0" || len(gid) < 6 {
			t.Errorf("the sandbox runs with host group %s", gid)
		}
	}
	if mode := statusField(t, pid, "Seccomp")[0]; mode != "2" {
		t.Errorf("seccomp mode %s, want 2", mode)
	}
	if v := statusField(t, pid, "NoNewPrivs")[0]; v != "1" {
		t.Errorf("no_new_privs %s, want 1", v)
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", pid))
	must(t, err)
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) != 3 || f[0] == f[1] || f[1] == "0" {
			t.Errorf("uid map %q", line)
		}
	}
	for _, ns := range []string{"net", "mnt", "pid", "ipc", "user", "uts"} {
		mine, err := os.Readlink("/proc/self/ns/" + ns)
		must(t, err)
		its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		must(t, err)
		if mine == its {
			t.Errorf("the sandbox shares the host's %s namespace", ns)
		}
	}
	for _, path := range []string{"etc/passwd", "usr", "home", "root", "boot", "var", "sys", s.data} {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/%s", pid, path)); err == nil {
			t.Errorf("the sandbox's process sees /%s of the host", path)
		}
	}
}

// tryTokens uses one sandbox's credentials on another.
func (s *server) tryTokens(t *testing.T, a, b *client.Sandbox) {
	for name, token := range map[string]string{"other's": b.AccessToken, "none": "", "wrong": "x", "API key": s.key("E2B_API_KEY")} {
		if code, body := s.file(t, made{SandboxID: a.ID, EnvdAccessToken: token}, "/etc/hostname"); code != 401 {
			t.Errorf("%s token: %d %s", name, code, body)
		}
	}
	if code, _ := s.file(t, made{SandboxID: a.ID, EnvdAccessToken: a.AccessToken}, "/etc/hostname"); code != 200 {
		t.Errorf("own token: %d", code)
	}
}
