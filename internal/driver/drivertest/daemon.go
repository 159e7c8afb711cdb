package drivertest

import (
	"context"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"hearth/internal/driver"
	"hearth/internal/guest"
	"hearth/internal/guest/agentclient"
	"hearth/internal/hearth"
)

// daemonPath is the guest daemon's in the machines' images.
const daemonPath = "/.guest/hearth-guest"

// life is one machine with the guest daemon in it, and what the host tells it.
type life struct {
	machine driver.Machine
	control string
	init    guest.InitRequest
}

// newLife makes what the host would say to the machine of the sandbox called name.
func newLife(m driver.Machine, name string) *life {
	return &life{machine: m, control: "control of " + name, init: guest.InitRequest{
		Now: time.Now(), Seed: []byte("the entropy of " + name + ", at least 32 bytes of it"), Control: "control of " + name,
		Token: "token of " + name, SandboxID: name, TemplateID: "template",
		Env: map[string]string{"OWNER": name, "ONLY_" + strings.ToUpper(name): "yes"}, User: "root",
	}}
}

// client speaks for the host, with the secret that the daemon knows it by.
func (l *life) client(control string) *agentclient.Client {
	return agentclient.New(l.machine.Dial, control)
}

// tell makes the daemon l's. The host is known by control.
func (l *life) tell(t *testing.T, control string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	l.init.Now = time.Now()
	ok(t, "Init of "+l.init.SandboxID, l.client(control).Init(ctx, l.init))
}

// status is what the daemon answers a user's request for the environment with.
func (l *life) status(t *testing.T, token string) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return l.machine.Dial(ctx, guest.Port) }
	client := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://guest/envs", nil)
	ok(t, "NewRequest", err)
	req.Header.Set("X-Access-Token", token)
	resp, err := client.Do(req)
	ok(t, "GET /envs", err)
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode
}

// environment is what a process has that the daemon starts for whoever has the token.
func (l *life) environment(t *testing.T, token string) ([]string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var lines []string
	_, err := agentclient.NewUser(l.machine.Dial, token).Run(ctx, agentclient.RunRequest{Cmd: "environment"},
		func(_, line string) { lines = append(lines, line) })
	return lines, err
}

// daemons: the guest daemon of a machine that was started from another's checkpoint
// serves nobody before it was told whose it is, and then that one alone.
func daemons(t *testing.T, env Env) {
	spec := env.Spec(t)
	spec.Hostname = "parent"
	m := start(t, env.Driver(t), spec)
	Open(m).post(t, "/start", "arg", daemonPath, "arg", "-machine")
	parent := newLife(m, "parent")
	parent.tell(t, "")
	t.Run("EveryProcessHasTheEnvironment", func(t *testing.T) { parent.wantEnvironment(t) })
	id := parent.file(t, "/etc/machine-id")
	ok(t, "Quiesce", parent.client(parent.control).Quiesce(t.Context(), guest.QuiesceRequest{}))
	c := take(t, m)
	ok(t, "Thaw", m.Thaw(t.Context()))
	parent.init.GoesOn = true
	parent.tell(t, parent.control)

	another := func(name string) *life {
		spec := env.Spec(t)
		spec.From, spec.Hostname = c, name
		return newLife(start(t, env.Driver(t), spec), name)
	}
	fork, resumed := another("fork"), another("parent")
	for name, l := range map[string]*life{"Fork": fork, "Resumed": resumed} {
		t.Run("Sealed"+name+"ServesNobody", func(t *testing.T) { l.wantSealed(t, parent) })
		l.tell(t, parent.control) // which is what the checkpoint knows the host by
		t.Run(name+"HasItsOwnTokens", func(t *testing.T) { l.wantTokens(t, parent, fork) })
		t.Run(name+"HasItsOwnEnvironment", func(t *testing.T) { l.wantEnvironment(t) })
		t.Run(name+"HasItsOwnIdentity", func(t *testing.T) { l.wantNames(t) })
	}
	if got := resumed.file(t, "/etc/machine-id"); got != id {
		t.Errorf("the machine-id is %q after a pause and was %q", got, id)
	}
	if got := fork.file(t, "/etc/machine-id"); got == id {
		t.Errorf("a fork has its parent's machine-id, %q", got)
	}
	t.Run("ParentIsStillItself", func(t *testing.T) {
		parent.wantTokens(t, parent, fork)
		parent.wantEnvironment(t)
		parent.wantNames(t)
	})
}

// wantSealed fails if the daemon serves anybody, or lets itself be unsealed
// without fresh entropy or by one who is not the host.
func (l *life) wantSealed(t *testing.T, parent *life) {
	t.Helper()
	unseeded := l.init
	unseeded.Seed = unseeded.Seed[:31]
	wantKind(t, "Init without enough entropy", l.client(parent.control).Init(t.Context(), unseeded), hearth.InvalidArgument)
	stranger := l.init
	stranger.Control = "control of nobody"
	wantKind(t, "Init by a stranger", l.client(stranger.Control).Init(t.Context(), stranger), hearth.Unauthenticated)
	for _, token := range []string{"", parent.init.Token, l.init.Token} {
		if got := l.status(t, token); got != http.StatusServiceUnavailable {
			t.Errorf("with the token %q a sealed daemon answers %d", token, got)
		}
		if _, err := l.environment(t, token); hearth.KindOf(err) != hearth.Unavailable {
			t.Errorf("with the token %q a sealed daemon starts a process: %v", token, err)
		}
	}
}

// wantTokens fails unless l's own token opens the daemon, and no other's.
func (l *life) wantTokens(t *testing.T, all ...*life) {
	t.Helper()
	for _, other := range append(all, newLife(l.machine, "stranger")) {
		want := http.StatusUnauthorized
		if other.init.Token == l.init.Token {
			want = http.StatusOK
		}
		if got := l.status(t, other.init.Token); got != want {
			t.Errorf("%s answers %d to the token of %s", l.init.SandboxID, got, other.init.SandboxID)
		}
	}
	if got := l.status(t, ""); got != http.StatusUnauthorized {
		t.Errorf("%s answers %d without a token", l.init.SandboxID, got)
	}
}

// wantEnvironment fails unless two processes have what Init said, and nothing of
// what an earlier one did.
func (l *life) wantEnvironment(t *testing.T) {
	t.Helper()
	for range 2 {
		got, err := l.environment(t, l.init.Token)
		ok(t, "a process of "+l.init.SandboxID, err)
		want := []string{"E2B_SANDBOX=true", "E2B_SANDBOX_ID=" + l.init.SandboxID, "E2B_TEMPLATE_ID=template"}
		for name, value := range l.init.Env {
			want = append(want, name+"="+value)
		}
		for _, w := range want {
			if !slices.Contains(got, w) {
				t.Errorf("a process of %s lacks %s: %q", l.init.SandboxID, w, got)
			}
		}
		for _, g := range got {
			if strings.HasPrefix(g, "ONLY_") && !slices.Contains(want, g) {
				t.Errorf("a process of %s has %s", l.init.SandboxID, g)
			}
		}
	}
}

// wantNames fails unless everything that says who the machine is names l.
func (l *life) wantNames(t *testing.T) {
	t.Helper()
	name, _, _ := strings.Cut(Open(l.machine).get(t, "/identity"), "\n")
	for what, got := range map[string]string{
		"host name": name, "/etc/hostname": l.file(t, "/etc/hostname"), "mark": l.file(t, "/run/e2b/.E2B_SANDBOX_ID"),
	} {
		if got != l.init.SandboxID {
			t.Errorf("the %s of %s is %q", what, l.init.SandboxID, got)
		}
	}
	if id := l.file(t, "/etc/machine-id"); len(id) != 32 {
		t.Errorf("the machine-id of %s is %q", l.init.SandboxID, id)
	}
	if hosts := l.file(t, "/etc/hosts"); !strings.Contains(hosts, "\t"+l.init.SandboxID+" ") {
		t.Errorf("%s does not know its own name: %q", l.init.SandboxID, hosts)
	}
}

// file is what the machine has at path, without the end of the line.
func (l *life) file(t *testing.T, path string) string {
	t.Helper()
	return strings.TrimSpace(Open(l.machine).get(t, "/file", "path", path))
}
