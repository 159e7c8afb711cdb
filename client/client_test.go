package client_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hearth/client"
	"hearth/internal/guest"
	"hearth/internal/guest/daemon"
	"hearth/internal/guest/process/reap"
)

const (
	key   = "e2b_0123456789abcdef0123456789abcdef01234567"
	token = "access-token"
)

// server is a control plane of one sandbox whose inside is a real guest daemon
// in this process, and an interpreter that says what it is told to.
type server struct {
	t      *testing.T
	daemon http.Handler
	events string // lines that /execute answers
	mu     sync.Mutex
	seen   []string // control-plane requests
	killed bool
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("E2b-Sandbox-Id") == "" && r.URL.Query().Get("signature") == "" {
		s.control(w, r)
		return
	}
	s.mu.Lock()
	gone := s.killed
	s.mu.Unlock()
	switch port := r.Header.Get("E2b-Sandbox-Port"); {
	case gone:
		w.WriteHeader(http.StatusBadGateway)
		_, _ = io.WriteString(w, `{"sandboxId":"i1","message":"The sandbox was not found","code":502}`)
	case port == "49999":
		s.interpreter(w, r)
	case port == "" || port == "49983":
		s.daemon.ServeHTTP(w, r)
	default:
		fmt.Fprintf(w, "port %s %s", port, r.URL)
	}
}

func (s *server) control(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, r.Method+" "+r.URL.RequestURI()+" "+string(body))
	if r.Header.Get("X-API-Key") != key {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"code":401,"message":"API key is invalid"}`)
		return
	}
	sandbox := `{"sandboxID":"i1","templateID":"t1","alias":"base","clientID":"x","envdVersion":"0.6.13","envdAccessToken":"` + token + `","domain":null}`
	info := `{"sandboxID":"i1","templateID":"t1","alias":"base","state":"running","startedAt":"2026-11-22T10:00:00Z","endAt":"2026-11-22T10:05:00Z","cpuCount":2,"memoryMB":512,"diskSizeMB":1024,"metadata":{"a":"b"}}`
	switch r.Method + " " + r.URL.Path {
	case "GET /health", "POST /sandboxes/i1/timeout", "POST /sandboxes/i1/pause":
		w.WriteHeader(http.StatusNoContent)
	case "POST /v2/sandboxes", "POST /v2/sandboxes/i1/connect":
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, sandbox)
	case "GET /sandboxes/i1":
		_, _ = io.WriteString(w, info)
	case "GET /v2/sandboxes":
		if r.URL.Query().Get("nextToken") == "" {
			w.Header().Set("X-Next-Token", "2")
		}
		_, _ = io.WriteString(w, "["+info+"]")
	case "DELETE /sandboxes/i1":
		if s.killed {
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"code":404,"message":"no such sandbox"}`)
			return
		}
		s.killed = true
		w.WriteHeader(http.StatusNoContent)
	default:
		w.Header().Set("Retry-After", "3")
		w.WriteHeader(http.StatusTooManyRequests)
		_, _ = io.WriteString(w, `{"code":429,"message":"slow down"}`)
	}
}

func (s *server) interpreter(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("X-Access-Token") != token {
		s.t.Error("the interpreter was called without a token")
	}
	switch r.Method + " " + r.URL.Path {
	case "POST /execute":
		_, _ = io.WriteString(w, s.events)
	case "POST /contexts":
		_, _ = io.WriteString(w, `{"id":"c1","language":"python","cwd":"/home/user"}`)
	case "GET /contexts":
		_, _ = io.WriteString(w, `[{"id":"c1","language":"python","cwd":"/home/user"}]`)
	case "POST /contexts/c1/restart", "DELETE /contexts/c1":
		_, _ = io.WriteString(w, `null`)
	default:
		http.Error(w, "Context not found", http.StatusNotFound)
	}
}

// start returns a client of a new server and its sandbox.
func start(t *testing.T) (*server, *client.Client, *client.Sandbox) {
	t.Helper()
	d := daemon.New(daemon.Options{Reaper: reap.New(reap.Children), Log: slog.New(slog.DiscardHandler)})
	init, _ := json.Marshal(guest.InitRequest{
		Now: time.Now(), Seed: bytes.Repeat([]byte{1}, 32), Control: "control", Token: token, SandboxID: "i1",
		User: "root", Workdir: t.TempDir(), Env: map[string]string{"GREETING": "hello"},
	})
	w := httptest.NewRecorder()
	d.Handler().ServeHTTP(w, httptest.NewRequest("POST", guest.InitPath, bytes.NewReader(init)))
	if w.Code != http.StatusNoContent {
		t.Fatalf("init: %d %s", w.Code, w.Body)
	}
	s := &server{t: t, daemon: d.Handler()}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	c, err := client.New(client.Options{APIKey: key, APIURL: srv.URL + "/", SandboxURL: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	sb, err := c.Create(t.Context(), client.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s, c, sb
}

func TestNew(t *testing.T) {
	for _, name := range []string{"E2B_API_KEY", "E2B_API_URL", "E2B_SANDBOX_URL", "E2B_DOMAIN"} {
		t.Setenv(name, "")
	}
	if _, err := client.New(client.Options{}); err == nil || !strings.Contains(err.Error(), "E2B_API_KEY") {
		t.Errorf("no key: %v", err)
	}
	if _, err := client.New(client.Options{APIKey: key, APIURL: "localhost:3000"}); err == nil {
		t.Error("a URL without a scheme")
	}
	t.Setenv("E2B_API_KEY", key)
	t.Setenv("E2B_DOMAIN", "e2b.test")
	if _, err := client.New(client.Options{}); err != nil {
		t.Error(err)
	}
}

func TestControlPlane(t *testing.T) {
	s, c, sb := start(t)
	ctx := t.Context()
	if sb.ID != "i1" || sb.AccessToken != token {
		t.Errorf("%+v", sb)
	}
	if sb.Host(8080) != "8080-i1.e2b.app" {
		t.Errorf("host %s", sb.Host(8080))
	}
	if _, err := c.Create(ctx, client.CreateOptions{
		Template: "x", Timeout: 1500 * time.Millisecond, Metadata: map[string]string{"a": "b"}, Env: map[string]string{"C": "d"},
		AutoPause: true, AutoResume: true, NoInternet: true, Network: &client.Network{AllowOut: []string{"1.1.1.1"}},
	}); err != nil {
		t.Error(err)
	}
	want := `POST /v2/sandboxes {"allow_internet_access":false,"autoPause":true,"autoResume":{"enabled":true},"envVars":{"C":"d"},"metadata":{"a":"b"},"network":{"allowOut":["1.1.1.1"]},"templateID":"x","timeout":2}`
	if got := s.seen[len(s.seen)-1]; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if _, err := c.Create(ctx, client.CreateOptions{AutoPause: true, FilesOnly: true}); err != nil {
		t.Error(err)
	}
	want = `POST /v2/sandboxes {"autoPause":true,"autoPauseMemory":false,"templateID":"base"}`
	if got := s.seen[len(s.seen)-1]; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	n := 0
	for i, err := range c.List(ctx, client.ListOptions{Metadata: map[string]string{"a b": "ü&"}, States: []string{"running", "paused"}, Template: "base"}) {
		if err != nil || i.ID != "i1" || i.Metadata["a"] != "b" {
			t.Errorf("%+v %v", i, err)
		}
		n++
	}
	if n != 2 || !strings.Contains(s.seen[len(s.seen)-2], "metadata=a%252520b%3D%2525C3%2525BC%2526&state=running%2Cpaused&template=base") {
		t.Errorf("%d listed: %s", n, s.seen[len(s.seen)-2])
	}
	info, err := sb.Info(ctx)
	if err != nil || info.State != "running" || info.EndAt.Sub(info.StartedAt) != 5*time.Minute {
		t.Errorf("%+v %v", info, err)
	}
	if _, err := c.Connect(ctx, "i1", time.Minute); err != nil {
		t.Error(err)
	}
	_, err = c.Templates(ctx)
	var e *client.Error
	if !errors.As(err, &e) || e.Status != 429 || e.RetryAfter != 3*time.Second || e.Error() != "429: slow down" {
		t.Errorf("%v", err)
	}
	if err := errors.Join(c.Health(ctx), sb.SetTimeout(ctx, time.Minute), sb.Pause(ctx)); err != nil {
		t.Error(err)
	}
	if up, err := sb.Running(ctx); !up || err != nil {
		t.Errorf("running: %v %v", up, err)
	}
	if err := sb.Kill(ctx); err != nil {
		t.Error(err)
	}
	if err := sb.Kill(ctx); !client.NotFound(err) {
		t.Errorf("killed twice: %v", err)
	}
	if up, err := sb.Running(ctx); up || err != nil {
		t.Errorf("running after kill: %v %v", up, err)
	}
}

func TestRun(t *testing.T) {
	_, _, sb := start(t)
	dir := t.TempDir()
	tests := []struct {
		name, line string
		o          client.RunOptions
		want       client.Result
	}{
		{"both streams", "echo out; echo err >&2", client.RunOptions{}, client.Result{Stdout: "out\n", Stderr: "err\n"}},
		{"exit status", "exit 3", client.RunOptions{}, client.Result{ExitCode: 3, Error: "exit status 3"}},
		{"signal", "kill -9 $$", client.RunOptions{}, client.Result{ExitCode: -1, Error: "signal: killed"}},
		{"environment", "echo $GREETING $A", client.RunOptions{Env: map[string]string{"A": "b"}}, client.Result{Stdout: "hello b\n"}},
		{"directory and user", "pwd; id -un", client.RunOptions{Dir: dir, User: "root"}, client.Result{Stdout: dir + "\nroot\n"}},
		{"no stdin", "cat; echo end", client.RunOptions{}, client.Result{Stdout: "end\n"}},
		{"input", "wc -c", client.RunOptions{Input: bytes.Repeat([]byte("x"), 300_000)}, client.Result{Stdout: "300000\n"}},
		{"input that nobody reads", "true", client.RunOptions{Input: bytes.Repeat([]byte("x"), 300_000)}, client.Result{}},
		{"cut", "head -c 100 /dev/zero | tr '\\0' x", client.RunOptions{MaxOutput: 10}, client.Result{Stdout: "xxxxxxxxxx", Truncated: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := sb.Commands.Run(t.Context(), tt.line, tt.o)
			if err != nil || *got != tt.want {
				t.Errorf("%+v %v, want %+v", got, err, tt.want)
			}
		})
	}
	if _, err := sb.Commands.Run(t.Context(), "true", client.RunOptions{Dir: "/no/such/dir"}); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("missing directory: %v", err)
	}
}

func TestRunIsKilledWithItsContext(t *testing.T) {
	_, _, sb := start(t)
	mark := filepath.Join(t.TempDir(), "mark")
	ctx, cancel := context.WithCancel(t.Context())
	out := writerFunc(func(b []byte) { cancel() }) // as soon as it runs
	_, err := sb.Commands.Run(ctx, "echo started; sleep 60; touch "+mark, client.RunOptions{Stdout: out})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	list, err := sb.Commands.List(t.Context())
	if err != nil || slices.ContainsFunc(list, func(p client.ProcessInfo) bool { return strings.Contains(strings.Join(p.Args, " "), mark) }) {
		t.Errorf("still there: %+v %v", list, err)
	}
}

type writerFunc func([]byte)

func (f writerFunc) Write(b []byte) (int, error) { f(b); return len(b), nil }

func TestBackgroundProcess(t *testing.T) {
	_, _, sb := start(t)
	ctx := t.Context()
	var out bytes.Buffer
	p, err := sb.Commands.Start(ctx, "while read line; do echo got $line; done", client.RunOptions{Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	list, err := sb.Commands.List(ctx)
	if err != nil || !slices.ContainsFunc(list, func(i client.ProcessInfo) bool { return i.PID == p.PID && i.Cmd == "/bin/bash" }) {
		t.Errorf("%+v %v", list, err)
	}
	if err := errors.Join(p.SendStdin(ctx, []byte("a\nb\n")), p.CloseStdin(ctx)); err != nil {
		t.Error(err)
	}
	res, err := p.Wait()
	if err != nil || res.ExitCode != 0 && res.ExitCode != 1 || out.String() != "got a\ngot b\n" {
		t.Errorf("%+v %v %q", res, err, out.String())
	}

	p, err = sb.Commands.Start(ctx, "exec sleep 60", client.RunOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p.Detach()
	again, err := sb.Commands.Connect(ctx, p.PID, client.RunOptions{})
	if err != nil || again.PID != p.PID {
		t.Fatalf("%+v %v", again, err)
	}
	if err := again.Kill(ctx); err != nil {
		t.Error(err)
	}
	if res, err := again.Wait(); err != nil || res.ExitCode != -1 {
		t.Errorf("%+v %v", res, err)
	}
	if err := sb.Commands.Kill(ctx, 1<<30); !client.NotFound(err) {
		t.Errorf("killed nothing: %v", err)
	}
	if _, err := sb.Commands.Connect(ctx, 1<<30, client.RunOptions{}); !client.NotFound(err) {
		t.Errorf("connected to nothing: %v", err)
	}
}

func TestTerminal(t *testing.T) {
	_, _, sb := start(t)
	ctx := t.Context()
	var out bytes.Buffer
	term, err := sb.Pty.Start(ctx, client.PtyOptions{Cols: 100, Rows: 30, Output: &out, Env: map[string]string{"PS1": ""}})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(term.Resize(ctx, 120, 40), term.Send(ctx, []byte("stty size; echo $TERM; exit 4\n"))); err != nil {
		t.Error(err)
	}
	res, err := term.Wait()
	if err != nil || res.ExitCode != 4 || !strings.Contains(out.String(), "40 120") || !strings.Contains(out.String(), "xterm-256color") {
		t.Errorf("%+v %v %q", res, err, out.String())
	}
}

func TestFiles(t *testing.T) {
	_, _, sb := start(t)
	ctx, dir := t.Context(), t.TempDir()
	file := filepath.Join(dir, "deep", "a b&ü.txt")
	where, err := sb.Files.Write(ctx, file, strings.NewReader("content"))
	if err != nil || where != file {
		t.Fatalf("%q %v", where, err)
	}
	got, err := sb.Files.Read(ctx, file)
	if err != nil || string(got) != "content" {
		t.Errorf("%q %v", got, err)
	}
	e, err := sb.Files.Stat(ctx, file)
	if err != nil || e.Type != client.File || e.Size != 7 || e.Owner != "root" || e.ModifiedAt.IsZero() {
		t.Errorf("%+v %v", e, err)
	}
	if err := sb.Files.MakeDir(ctx, filepath.Join(dir, "d")); err != nil {
		t.Error(err)
	}
	if err := sb.Files.MakeDir(ctx, filepath.Join(dir, "d")); !client.Conflict(err) {
		t.Errorf("made twice: %v", err)
	}
	if e, err := sb.Files.Rename(ctx, file, filepath.Join(dir, "d", "new")); err != nil || e.Name != "new" {
		t.Errorf("%+v %v", e, err)
	}
	list, err := sb.Files.List(ctx, dir, 2)
	var names []string
	for _, e := range list {
		names = append(names, e.Name+":"+string(e.Type))
	}
	if err != nil || strings.Join(names, " ") != "d:dir new:file deep:dir" {
		t.Errorf("%v %v", names, err)
	}
	if err := errors.Join(sb.Files.Remove(ctx, filepath.Join(dir, "d")), sb.Files.Remove(ctx, filepath.Join(dir, "d"))); err != nil {
		t.Error(err)
	}
	if there, err := sb.Files.Exists(ctx, filepath.Join(dir, "d", "new")); there || err != nil {
		t.Errorf("%v %v", there, err)
	}
	if _, err := sb.Files.Read(ctx, file); !client.NotFound(err) {
		t.Errorf("read nothing: %v", err)
	}
}

func TestSignedURLs(t *testing.T) {
	_, _, sb := start(t)
	file := filepath.Join(t.TempDir(), "x y")
	resp, err := http.Post(sb.Files.UploadURL(file, time.Minute), "application/octet-stream", strings.NewReader("hi"))
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v %v", resp, err)
	}
	resp.Body.Close()
	for url, status := range map[string]int{
		sb.Files.DownloadURL(file, 0):           200,
		sb.Files.DownloadURL(file, time.Minute): 200,
		sb.Files.UploadURL(file, time.Minute):   401,
	} {
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != status {
			t.Errorf("%s: %d, want %d", url, resp.StatusCode, status)
		}
	}
}

func TestWatch(t *testing.T) {
	_, _, sb := start(t)
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changes, err := sb.Files.Watch(ctx, dir, client.WatchOptions{Recursive: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "new"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for c, err := range changes {
		if err != nil || c.Name != "new" || c.Type != "create" {
			t.Errorf("%+v %v", c, err)
		}
		break
	}
	if _, err := sb.Files.Watch(ctx, filepath.Join(dir, "none"), client.WatchOptions{}); !client.NotFound(err) {
		t.Errorf("watched nothing: %v", err)
	}
}

func TestCode(t *testing.T) {
	s, _, sb := start(t)
	ctx := t.Context()
	s.events = `{"type":"number_of_executions","execution_count":7}
{"type":"stdout","text":"hi\n","timestamp":"x"}
{"type":"stderr","text":"oh\n"}
{"type":"result","text":"shown","png":"aGk=","is_main_result":false}
{"type":"keepalive"}
{"type":"result","text":"42","json":{"a":1},"is_main_result":true}
{"type":"error","name":"ValueError","value":"no","traceback":"..."}
{"type":"end_of_execution"}
`
	var live []string
	e, err := sb.Code.Run(ctx, "code", client.CodeOptions{
		OnOutput: func(stream, text string) { live = append(live, stream+" "+text) },
		OnResult: func(r client.CodeResult) { live = append(live, r.Text) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if e.Text() != "42" || e.Count != 7 || e.Error.Name != "ValueError" || e.Stdout[0] != "hi\n" || e.Stderr[0] != "oh\n" || e.Results[0].PNG != "aGk=" {
		t.Errorf("%+v", e)
	}
	if got := strings.Join(live, "|"); got != "stdout hi\n|stderr oh\n|shown|42" {
		t.Errorf("%q", got)
	}
	e, err = sb.Code.Run(ctx, "code", client.CodeOptions{MaxOutput: 5})
	if err != nil || !e.Truncated || len(e.Stdout) != 1 || len(e.Stderr) != 0 || len(e.Results) != 0 || e.Error == nil {
		t.Errorf("%+v %v", e, err)
	}
	for _, broken := range []string{"", "{}\n", "junk\n", `{"type":"result","text":7}` + "\n"} {
		s.events = broken
		if e, err := sb.Code.Run(ctx, "code", client.CodeOptions{}); err == nil {
			t.Errorf("%q gave %+v", broken, e)
		}
	}
	c, err := sb.Code.CreateContext(ctx, "python", "")
	if err != nil || c.ID != "c1" {
		t.Errorf("%+v %v", c, err)
	}
	list, err := sb.Code.Contexts(ctx)
	if err != nil || len(list) != 1 {
		t.Errorf("%+v %v", list, err)
	}
	if err := errors.Join(sb.Code.RestartContext(ctx, "c1"), sb.Code.RemoveContext(ctx, "c1")); err != nil {
		t.Error(err)
	}
	if err := sb.Code.RemoveContext(ctx, "../c2"); !client.NotFound(err) || !strings.Contains(err.Error(), "Context not found") {
		t.Errorf("%v", err)
	}
}

func TestRequest(t *testing.T) {
	_, _, sb := start(t)
	resp, err := sb.Request(t.Context(), "GET", 8080, "/a?b=c", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); string(text) != "port 8080 /a?b=c" {
		t.Errorf("%q", text)
	}
}
