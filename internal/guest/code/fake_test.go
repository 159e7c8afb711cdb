package code

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hearth/internal/guest/code/zmtp"
	"hearth/internal/leaktest"
)

// fakeLauncher starts kernels that are goroutines: they speak the real protocol
// over the real sockets, and do what the code of a cell says, word by word.
type fakeLauncher struct {
	mu      sync.Mutex
	kernels []*fakeKernel
	refuse  error
	mute    bool // kernels never listen, and exit at once
}

type fakeKernel struct {
	codec     codec
	listeners []net.Listener
	shell     *zmtp.Conn
	iopub     *zmtp.Conn
	stop      chan struct{}
	interrupt chan struct{}
	once      sync.Once
	wg        sync.WaitGroup

	mu     sync.Mutex
	orders []orders // of every execution, in order
	codes  []string
	count  int
}

func (l *fakeLauncher) Launch(_ context.Context, c Command) (Process, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refuse != nil {
		return nil, l.refuse
	}
	k := &fakeKernel{stop: make(chan struct{}), interrupt: make(chan struct{}, 8)}
	l.kernels = append(l.kernels, k)
	if l.mute {
		_, _ = c.Output.Write([]byte("Traceback\nModuleNotFoundError: No module named 'ipykernel'\n"))
		k.once.Do(func() { close(k.stop) })
		return k, nil
	}
	b, err := os.ReadFile(c.Argv[len(c.Argv)-1])
	if err != nil {
		return nil, err
	}
	var conn struct{ IP, Key string }
	if err := json.Unmarshal(b, &conn); err != nil {
		return nil, err
	}
	k.codec = codec{key: []byte(conn.Key), session: "fake"}
	return k, k.listen(conn.IP)
}

func (l *fakeLauncher) last() *fakeKernel {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.kernels[len(l.kernels)-1]
}

func (k *fakeKernel) listen(base string) error {
	ready := make(chan *zmtp.Conn, 2)
	for _, ch := range []struct {
		port string
		kind zmtp.SocketType
	}{{"-2", "XPUB"}, {"-1", "ROUTER"}, {"-4", "ROUTER"}} {
		l, err := net.Listen("unix", base+ch.port)
		if err != nil {
			return err
		}
		k.listeners = append(k.listeners, l)
		k.wg.Go(func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c, err := zmtp.New(conn, ch.kind, maxMessage)
			if err != nil {
				return
			}
			k.wg.Go(func() { <-k.stop; _ = c.Close() })
			switch ch.port {
			case "-1":
				k.shell = c
				ready <- c
			case "-2":
				_, _ = c.Recv() // the subscription
				k.iopub = c
				ready <- c
			case "-4":
				k.control(c)
			}
		})
	}
	k.wg.Go(func() {
		for range 2 {
			select {
			case <-ready:
			case <-k.stop:
				return
			}
		}
		k.serve()
	})
	return nil
}

func (k *fakeKernel) control(c *zmtp.Conn) {
	if _, err := c.Recv(); err == nil {
		k.exit() // shutdown_request
	}
}

func (k *fakeKernel) exit() {
	k.once.Do(func() {
		close(k.stop)
		for _, l := range k.listeners {
			_ = l.Close()
		}
	})
}

func (k *fakeKernel) Signal(sig syscall.Signal) error {
	if sig == syscall.SIGINT {
		k.interrupt <- struct{}{}
		return nil
	}
	k.exit()
	return nil
}

func (k *fakeKernel) Wait() error {
	<-k.stop
	k.wg.Wait()
	return errors.New("signal: killed")
}

func (k *fakeKernel) serve() {
	for {
		m, err := k.shell.Recv()
		if err != nil {
			return
		}
		var h struct {
			ID   string `json:"msg_id"`
			Type string `json:"msg_type"`
		}
		var content struct {
			Code   string
			Silent bool
		}
		var metadata struct{ Hearth orders }
		_ = errors.Join(json.Unmarshal(m.Parts[2], &h), json.Unmarshal(m.Parts[5], &content), json.Unmarshal(m.Parts[4], &metadata))
		if h.Type != "execute_request" {
			k.send(k.shell, h.ID, "kernel_info_reply", map[string]any{"status": "ok"})
			k.status(h.ID, "idle")
			continue
		}
		k.mu.Lock()
		k.orders, k.codes = append(k.orders, metadata.Hearth), append(k.codes, content.Code)
		k.mu.Unlock()
		k.status(h.ID, "busy")
		if !content.Silent {
			k.count++
			k.send(k.iopub, h.ID, "execute_input", map[string]any{"execution_count": k.count})
		}
		k.act(h.ID, content.Code)
	}
}

func (k *fakeKernel) status(parent, state string) {
	k.send(k.iopub, parent, "status", map[string]any{"execution_state": state})
}

func (k *fakeKernel) send(c *zmtp.Conn, parent, kind string, content any) {
	_, parts, err := k.codec.encode(kind, content, struct{}{})
	if err != nil {
		return
	}
	parts[3], _ = json.Marshal(header{ID: parent})
	parts[1] = []byte(k.codec.sign(parts[2:6]))
	_ = c.Send(append([][]byte{[]byte("topic")}, parts...)...)
}

// act does one cell: words apart by spaces.
func (k *fakeKernel) act(id, code string) {
	reply := map[string]any{"status": "ok"}
	for _, word := range strings.Fields(code) {
		switch word {
		case "print":
			k.send(k.iopub, id, "stream", map[string]any{"name": "stdout", "text": "out\n"})
		case "forge":
			_ = k.iopub.Send([]byte(delimiter), []byte("00"), []byte("{}"), []byte(`{"msg_id":"`+id+`"}`), []byte("{}"), []byte("{}"))
			_ = k.iopub.Send([]byte("nonsense"))
		case "huge":
			_ = k.iopub.Send(make([]byte, maxMessage), []byte("more"))
		case "block":
			select {
			case <-k.interrupt:
				reply = map[string]any{"status": "error", "ename": "KeyboardInterrupt", "evalue": "", "traceback": []string{}}
			case <-k.stop:
			}
		case "abort":
			k.send(k.shell, id, "execute_reply", map[string]any{"status": "aborted"})
			return
		case "mumble": // no reply, only the end
			k.status(id, "idle")
			return
		case "die":
			k.exit()
			return
		case "rich":
			k.send(k.iopub, id, "execute_result", map[string]any{"data": map[string]any{
				"text/plain": "'quoted'", "text/html": "<b>", "e2b/data": map[string]any{"a": []int{1}}, "x/y": "z", "image/png": nil,
			}})
		case "raise":
			e := map[string]any{"status": "error", "ename": "E", "evalue": "v", "traceback": []string{"a", "b"}}
			k.send(k.iopub, id, "error", e)
			reply = e
		}
	}
	k.send(k.shell, id, "execute_reply", reply)
	k.status(id, "idle")
}

func fakeRig(t *testing.T) (*rig, *fakeLauncher) {
	t.Helper()
	l := &fakeLauncher{}
	home := shortDir(t)
	spec := filepath.Join(home, "kernels", "bash", "kernel.json")
	if err := errors.Join(os.MkdirAll(filepath.Dir(spec), 0o700),
		os.WriteFile(spec, []byte(`{"argv": ["bash", "{connection_file}"], "language": "bash"}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	r := startRig(t, Options{
		Marker:   Marker{Python: "/python", Preload: []string{"numpy"}, KernelDirs: []string{filepath.Join(home, "kernels")}},
		Launcher: l, StateDir: filepath.Join(shortDir(t), "s"), Home: home, Log: slog.New(slog.DiscardHandler),
	})
	return r, l
}

func TestMain(m *testing.M) {
	leaktest.Main(m, goleak.IgnoreTopFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreTopFunction("net/http.(*persistConn).writeLoop"),
		goleak.IgnoreTopFunction("internal/poll.runtime_pollWait"))
}

func TestEvents(t *testing.T) {
	r, l := fakeRig(t)
	first := l.last()
	if got := first.orders[len(first.orders)-1].Preload; len(got) != 1 || got[0] != "numpy" {
		t.Fatalf("warmed with %v", first.orders)
	}
	res := r.run("print forge rich raise")
	if res.stdout != "out\n" || res.text != "quoted" || res.errName != "E" || res.trace != "a\nb" || !res.ended || res.count != 1 {
		t.Fatalf("%+v", res)
	}
	got := res.results[0]
	if got["html"] != "<b>" || got["extra"].(map[string]any)["x/y"] != "z" || got["data"] == nil {
		t.Fatalf("%+v", got)
	}
	if _, there := got["png"]; there {
		t.Fatalf("a null representation came through: %+v", got)
	}
	if res := r.run("huge print"); !strings.Contains(res.stderr, "dropped") || res.stdout != "out\n" || !res.ended {
		t.Fatalf("%+v", res)
	}
	if res := r.run("abort"); res.errName != "ExecutionAborted" || !res.ended {
		t.Fatalf("%+v", res)
	}
	if res := r.run("mumble"); res.errName != "" || !res.ended {
		t.Fatalf("%+v", res)
	}
	if res := r.run("print die"); res.errName != "UnexpectedEndOfExecution" || res.trace != "The kernel ended: signal: killed" || !res.ended {
		t.Fatalf("%+v", res)
	}
	if res := r.run("print"); res.stdout != "out\n" || res.count != 1 || l.last() == first {
		t.Fatalf("no new kernel: %+v", res)
	}
}

func TestResetComesFirst(t *testing.T) {
	r, l := fakeRig(t)
	k := l.last()
	last := func() orders {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.orders[len(k.orders)-1]
	}
	r.svc.Reset(map[string]string{"A": "1"})
	r.run("print", fields{"env_vars": fields{"B": "2"}})
	if o := last(); o.Epoch != 2 || o.Globals["A"] != "1" || o.Env["B"] != "2" {
		t.Fatalf("%+v", o)
	}
	if r.run("print"); last().Epoch != 0 {
		t.Fatalf("sent twice: %+v", last())
	}
	r.svc.Reset(nil)
	r.run("mumble") // an execution that may have been interrupted before it obeyed
	if r.run("print"); last().Epoch != 3 {
		t.Fatalf("not sent again: %+v", last())
	}
}

func TestDialectReset(t *testing.T) {
	r, l := fakeRig(t)
	r.svc.Reset(map[string]string{"A": "it's", "OLD": "x"})
	in := fields{"language": "bash", "env_vars": fields{"B": "2"}}
	r.run("print", in)
	r.svc.Reset(map[string]string{"A": "new"})
	r.run("print", in)
	k := l.last()
	got := func() string {
		k.mu.Lock()
		defer k.mu.Unlock()
		return strings.Join(k.codes, "|")
	}
	want := "cd -- '" + r.home + "'|export B='2'|print|unset B|unset OLD\nexport A='new'\n" +
		"RANDOM=$(od -An -N2 -tu2 /dev/urandom)\nexport B='2'|print|unset B"
	r.until("clean-up after the end", func() bool { return got() == want })
	if got() != want {
		t.Fatalf("got  %q\nwant %q", got(), want)
	}
}

func TestSerialAndDisconnect(t *testing.T) {
	r, _ := fakeRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	resp := r.post(ctx, "/execute", fields{"code": "print block"})
	second := make(chan result)
	go func() { second <- r.run("print") }()
	cancel() // interrupts the first, which lets the second run
	if res := <-second; res.stdout != "out\n" || res.count != 2 {
		t.Fatalf("%+v", res)
	}
	_ = resp.Body.Close()
}

func TestRestartAndDeleteEndExecutions(t *testing.T) {
	for path, want := range map[string]string{"restart": "ContextRestarting", "delete": "UnexpectedEndOfExecution"} {
		t.Run(path, func(t *testing.T) {
			r, _ := fakeRig(t)
			c := r.context(fields{})
			got := make(chan result)
			started := r.post(t.Context(), "/execute", fields{"code": "block", "context_id": c.ID})
			go func() { got <- r.collect(started) }()
			if path == "restart" {
				r.post(t.Context(), "/contexts/"+c.ID+"/restart", nil).Body.Close()
			} else if r.remove(c.ID) != http.StatusOK || r.remove(c.ID) != http.StatusNotFound {
				t.Fatal("delete")
			}
			if res := <-got; res.errName != want || !res.ended {
				t.Fatalf("%+v", res)
			}
		})
	}
}

func (r *rig) context(body fields) contextBody {
	r.t.Helper()
	resp := r.post(r.t.Context(), "/contexts", body)
	defer resp.Body.Close()
	var c contextBody
	if err := json.NewDecoder(resp.Body).Decode(&c); err != nil {
		r.t.Fatal(err)
	}
	return c
}

func (r *rig) remove(id string) int {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodDelete, r.url+"/contexts/"+id, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

func TestBadRequests(t *testing.T) {
	r, l := fakeRig(t)
	long := strings.Repeat("x", 5000)
	for name, tc := range map[string]struct {
		path   string
		body   string
		status int
		text   string
	}{
		"no code":        {"/execute", `{}`, 400, "code is missing"},
		"no body":        {"/execute", ``, 400, "code is missing"},
		"not JSON":       {"/execute", `{`, 400, "the body is not a JSON object"},
		"an array":       {"/execute", `[]`, 400, "the body is not a JSON object"},
		"code type":      {"/execute", `{"code": 1}`, 400, "code must not be a JSON number"},
		"both":           {"/execute", `{"code":"","context_id":"a","language":"b"}`, 400, "Only one of context_id or language can be provided"},
		"no context":     {"/execute", `{"code":"","context_id":"a"}`, 404, "Context a not found"},
		"no language":    {"/execute", `{"code":"","language":"JS"}`, 500, `language "javascript" is not available: the image of this sandbox has no kernel for it (it has bash, python)`},
		"language name":  {"/execute", `{"code":"","language":"../x"}`, 400, `language "../x" is not a name of at most 64 characters`},
		"variable":       {"/execute", `{"code":"","env_vars":{"a=b":"c"}}`, 400, `env_vars: "a=b" is not the name of a variable`},
		"variable value": {"/execute", `{"code":"","env_vars":{"a":"\u0000"}}`, 400, `env_vars: the value of "a" contains NUL`},
		"variable type":  {"/execute", `{"code":"","env_vars":{"a":1}}`, 400, "env_vars must not be a JSON number"},
		"cwd NUL":        {"/contexts", `{"cwd":"a\u0000"}`, 400, "cwd contains NUL"},
		"cwd length":     {"/contexts", `{"cwd":"` + long + `"}`, 400, "cwd is longer than 4096 bytes"},
		"restart":        {"/contexts/none/restart", ``, 404, "Context none not found"},
		"large":          {"/execute", `{"code":"` + strings.Repeat("x", maxBody) + `"}`, 400, "the body is larger than 16777216 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			req := httptest.NewRequest(http.MethodPost, tc.path, strings.NewReader(tc.body))
			w := httptest.NewRecorder()
			r.svc.Handler().ServeHTTP(w, req)
			if w.Code != tc.status || w.Body.String() != tc.text || w.Header().Get("Access-Control-Allow-Origin") != "*" {
				t.Fatalf("%d %q", w.Code, w.Body)
			}
		})
	}
	if len(l.kernels) != 1 {
		t.Fatalf("%d kernels were started for bad requests", len(l.kernels)-1)
	}
}

func TestTooManyContexts(t *testing.T) {
	r, _ := fakeRig(t)
	for range maxContexts - 1 {
		if c := r.context(fields{}); c.Language != python || c.Cwd != r.home {
			t.Fatalf("%+v", c)
		}
	}
	resp := r.post(t.Context(), "/contexts", fields{})
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusInternalServerError {
		t.Fatal(resp.Status)
	}
}

func TestKernelThatDoesNotStart(t *testing.T) {
	l := &fakeLauncher{mute: true}
	svc, err := New(Options{Marker: Marker{Python: "/python"}, Launcher: l, StateDir: filepath.Join(shortDir(t), "s"), Home: "/"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- svc.Run(ctx) }()
	r := &rig{t: t, svc: svc}
	r.until("a reason", func() bool { return strings.Contains(svc.Health().Error(), "No module named 'ipykernel'") })
	w := httptest.NewRecorder()
	svc.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/health", nil))
	if w.Code != http.StatusServiceUnavailable {
		t.Fatal(w.Code)
	}
	w = httptest.NewRecorder()
	svc.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/execute", strings.NewReader(`{"code":"1"}`)))
	if w.Code != http.StatusInternalServerError || !strings.Contains(w.Body.String(), "No module named 'ipykernel'") {
		t.Fatal(w.Code, w.Body)
	}
	w = httptest.NewRecorder()
	svc.JupyterHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/api", nil))
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "no Jupyter Server") {
		t.Fatal(w.Code, w.Body)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	r, _ := fakeRig(t)
	r.context(fields{})
	resp := r.post(t.Context(), "/execute", fields{"code": "block"})
	defer resp.Body.Close()
	r.svc.Close()
	if res := r.collect(resp); !res.ended {
		t.Fatalf("%+v", res)
	}
	for _, dir := range []string{"k", connectionsDir} {
		left, err := os.ReadDir(filepath.Join(r.svc.opts.StateDir, dir))
		if err != nil || len(left) > 0 {
			t.Fatalf("%s: %v %v", dir, left, err)
		}
	}
	if res := r.run("1"); res.status == http.StatusOK {
		t.Fatalf("%+v", res)
	}
}

func TestKeepalive(t *testing.T) {
	if testing.Short() {
		t.Skip("takes as long as a silence")
	}
	r, _ := fakeRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), silenceTime+time.Minute)
	defer cancel()
	resp := r.post(ctx, "/execute", fields{"code": "block"})
	defer resp.Body.Close()
	b := make([]byte, 4096)
	var text string
	for !strings.Contains(text, `{"type":"keepalive"}`) {
		n, err := resp.Body.Read(b)
		if text += string(b[:n]); err != nil {
			t.Fatalf("%q %v", text, err)
		}
	}
}

func FuzzMessage(f *testing.F) {
	c := codec{key: []byte("k"), session: "s"}
	_, parts, err := c.encode("status", map[string]string{"execution_state": "idle"}, struct{}{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(parts[2], parts[3], parts[4], parts[5], "status")
	f.Add([]byte(`{"msg_type":1}`), []byte(`[]`), []byte(`null`), []byte(`{"data":{"text/plain":1,"image/png":{"a":`), "execute_result")
	f.Add([]byte(`{}`), []byte(`{}`), []byte(`{}`), []byte(`{"data":{"text/plain":"\u00e9\ud83d"}}`), "display_data")
	f.Fuzz(func(t *testing.T, h, parent, metadata, content []byte, kind string) {
		parts := [][]byte{[]byte(delimiter), nil, h, parent, metadata, content}
		if _, err := c.decode(parts); err == nil {
			t.Fatal("an unsigned message was accepted")
		}
		parts[1] = []byte(c.sign(parts[2:6]))
		_, _ = c.decode(parts)
		w := httptest.NewRecorder()
		x := &execution{sink: newStream(w)}
		for _, shell := range []bool{true, false} {
			x.handle(message{Type: kind, Content: content, Shell: shell})
		}
		for line := range strings.Lines(w.Body.String()) {
			if !json.Valid([]byte(line)) || strings.ContainsFunc(line, func(r rune) bool { return r > 126 }) {
				t.Fatalf("not a line of ASCII JSON: %q", line)
			}
		}
	})
}
