package code

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The tests in this file run a real ipykernel. They are skipped, by name, when
// there is no Python with ipykernel: HEARTH_TEST_PYTHON names one.

// testPython returns the Python to test with.
func testPython(t *testing.T) string {
	t.Helper()
	candidates := []string{os.Getenv("HEARTH_TEST_PYTHON"), "/opt/hearth/python/bin/python", "/usr/bin/python3"}
	for _, p := range candidates {
		if p != "" && exec.Command(p, "-c", "import ipykernel").Run() == nil {
			return p
		}
	}
	t.Skip("no Python with ipykernel: set HEARTH_TEST_PYTHON to one to run the tests with a real kernel")
	return ""
}

// hostLauncher starts processes on the host, each in its own group.
type hostLauncher struct{ home string }

type hostProcess struct{ cmd *exec.Cmd }

func (l hostLauncher) Launch(_ context.Context, c Command) (Process, error) {
	cmd := exec.Command(c.Argv[0], c.Argv[1:]...) //nolint:gosec // a test's own commands
	cmd.Env = append(os.Environ(), "HOME="+l.home)
	for k, v := range c.Env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.Dir, c.Output, c.Output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return hostProcess{cmd}, nil
}

func (p hostProcess) Pid() int                        { return p.cmd.Process.Pid }
func (p hostProcess) Signal(sig syscall.Signal) error { return syscall.Kill(-p.Pid(), sig) }
func (p hostProcess) Wait() error {
	if err := p.cmd.Wait(); !errors.Is(err, exec.ErrWaitDelay) {
		return err
	}
	return nil
}

// shortDir is a temporary directory whose path is short enough for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "hc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

type rig struct {
	t    *testing.T
	svc  *Service
	url  string
	home string
}

// realRig starts a service with a real kernel and waits until it is warm.
func realRig(t *testing.T, marker Marker) *rig {
	t.Helper()
	marker.Python = testPython(t)
	home := shortDir(t)
	return startRig(t, Options{
		Marker: marker, Launcher: hostLauncher{home}, StateDir: filepath.Join(shortDir(t), "s"), Home: home,
	})
}

func startRig(t *testing.T, opts Options) *rig {
	t.Helper()
	svc, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- svc.Run(ctx) }()
	srv := httptest.NewServer(svc.Handler())
	t.Cleanup(func() {
		srv.CloseClientConnections()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		srv.Close()
	})
	r := &rig{t: t, svc: svc, url: srv.URL, home: opts.Home}
	r.until("the default kernel is warm", func() bool { return svc.Health() == nil })
	return r
}

// until waits for a condition that has no event.
func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(3 * time.Minute); !ok(); {
		if time.Now().After(end) {
			r.t.Fatalf("not within 3 minutes: %s (%v)", what, r.svc.Health())
		}
		<-time.After(20 * time.Millisecond)
	}
}

// result is what an execution produced, put together.
type result struct {
	stdout, stderr, text string
	count                int
	results              []map[string]any
	errName, errValue    string
	trace                string
	ended                bool
	status               int
	body                 string
}

func (r *rig) post(ctx context.Context, path string, body any) *http.Response {
	r.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		r.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url+path, strings.NewReader(string(b)))
	if err != nil {
		r.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp
}

type fields map[string]any

func (r *rig) run(src string, more ...fields) result {
	r.t.Helper()
	body := fields{"code": src}
	for _, m := range more {
		for k, v := range m {
			body[k] = v
		}
	}
	resp := r.post(context.Background(), "/execute", body)
	defer resp.Body.Close()
	return r.collect(resp)
}

func (r *rig) collect(resp *http.Response) result {
	r.t.Helper()
	res := result{status: resp.StatusCode}
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		res.body = string(b)
		return res
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 128<<20)
	for lines.Scan() {
		r.add(&res, lines.Bytes())
	}
	return res
}

func (r *rig) add(res *result, line []byte) {
	r.t.Helper()
	var e map[string]any
	if err := json.Unmarshal(line, &e); err != nil {
		r.t.Fatalf("not JSON: %q", line)
	}
	if res.ended {
		r.t.Fatalf("an event after the end: %s", line)
	}
	switch e["type"] {
	case "stdout":
		res.stdout += e["text"].(string)
	case "stderr":
		res.stderr += e["text"].(string)
	case "result":
		res.results = append(res.results, e)
		if e["is_main_result"] == true {
			res.text = fmt.Sprint(e["text"])
		}
	case "error":
		res.errName, res.errValue, res.trace = e["name"].(string), e["value"].(string), e["traceback"].(string)
	case "number_of_executions":
		res.count = int(e["execution_count"].(float64))
	case "end_of_execution":
		res.ended = true
	}
}

func TestRealCells(t *testing.T) {
	r := realRig(t, Marker{})
	res := r.run("import sys\nprint('héllo 😀')\nprint('x', file=sys.stderr)\n'quoted'")
	if res.stdout != "héllo 😀\n" || res.stderr != "x\n" || res.text != "quoted" || res.count != 1 || !res.ended {
		t.Fatalf("%+v", res)
	}
	res = r.run("def f():\n    1/0\nf()")
	if res.errName != "ZeroDivisionError" || !strings.Contains(res.trace, "1/0") || strings.Contains(res.trace, "\x1b") {
		t.Fatalf("%+v", res)
	}
	if res := r.run("{'a': [1, float('nan')], 'b': None}"); res.results[0]["json"] == nil {
		t.Fatalf("%+v", res)
	}
	if res := r.run("!echo from a shell"); strings.TrimSpace(res.stdout) != "from a shell" {
		t.Fatalf("%+v", res)
	}
	if res := r.run("import os; os.getcwd()"); res.text != r.home {
		t.Fatalf("cwd %q, want %q", res.text, r.home)
	}
	if res := r.run("len(str(list(range(5000))))"); res.text != "28890" {
		t.Fatalf("%+v", res)
	}
	if res := r.run("list(range(5000))"); strings.Count(res.text, ",") != 4999 || strings.Contains(res.text, "...") {
		t.Fatalf("truncated to %d characters", len(res.text))
	}
}

// TestRealRehearsal: of the cells before the first one nothing is left, but that
// what they needed is there.
func TestRealRehearsal(t *testing.T) {
	names := "[n for n in dir() if not n.startswith('_')]"
	untouched := realRig(t, Marker{}).run(names).text
	r := realRig(t, Marker{Preload: []string{"json"}})
	for range 2 {
		if err := r.svc.Rehearse(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if res := r.run("print(repr(_), Out)"); res.stdout != "'' {}\n" || res.count != 1 {
		t.Fatalf("%+v", res)
	}
	if res := r.run(names); res.text != untouched || res.count != 2 {
		t.Fatalf("%+v, want the names %s", res, untouched)
	}
	r.run("20+22")
	if res := r.run("_"); res.text != "42" {
		t.Fatalf("the last result is %q", res.text)
	}
}

func TestRealEnvironment(t *testing.T) {
	r := realRig(t, Marker{})
	r.svc.Reset(map[string]string{"GLOBAL": "one", "BOTH": "global"})
	show := "import os; ' '.join(str(os.environ.get(k)) for k in ('GLOBAL', 'BOTH', 'OWN'))"
	if res := r.run(show, fields{"env_vars": fields{"OWN": "it's", "BOTH": "own"}}); res.text != "one own it's" {
		t.Fatalf("%+v", res)
	}
	if res := r.run(show); res.text != "one global None" {
		t.Fatalf("%+v", res)
	}
	seeded := r.run("import random; random.seed(1); a = random.random(); random.seed(1); a")
	r.svc.Reset(map[string]string{"BOTH": "second"})
	if res := r.run("import random; random.random()"); res.text == seeded.text || res.text == "" {
		t.Fatalf("random numbers of before the reset: %+v", res)
	}
	if res := r.run(show); res.text != "None second None" {
		t.Fatalf("%+v", res)
	}
	in := fields{"context_id": r.context(fields{}).ID}
	if res := r.run(show, in); res.text != "None second None" {
		t.Fatalf("a context made after the reset: %+v", res)
	}
	r.svc.Reset(map[string]string{"GLOBAL": "third"})
	if res := r.run(show, in); res.text != "third None None" {
		t.Fatalf("a context that started with the old environment: %+v", res)
	}
}

func TestRealContexts(t *testing.T) {
	r := realRig(t, Marker{})
	cwd := filepath.Join(r.home, "made here")
	resp := r.post(t.Context(), "/contexts", fields{"cwd": cwd})
	var c struct{ ID, Language, Cwd string }
	if err := json.NewDecoder(resp.Body).Decode(&c); err != nil || c.Cwd != cwd || c.Language != "python" {
		t.Fatalf("%+v %v", c, err)
	}
	resp.Body.Close()
	in := fields{"context_id": c.ID}
	if res := r.run("import os; x = 1; os.getcwd()", in); res.text != cwd {
		t.Fatalf("%+v", res)
	}
	if res := r.run("x"); res.errName != "NameError" {
		t.Fatalf("contexts share names: %+v", res)
	}
	if resp := r.post(t.Context(), "/contexts/"+c.ID+"/restart", nil); resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	if res := r.run("import os; ('x' in dir(), os.getcwd())", in); res.text != fmt.Sprintf("(False, '%s')", cwd) {
		t.Fatalf("%+v", res)
	}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodDelete, r.url+"/contexts/"+c.ID, nil)
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	if res := r.run("1", in); res.status != 404 || res.body != "Context "+c.ID+" not found" {
		t.Fatalf("%+v", res)
	}
}

func TestRealInterruptAndDeath(t *testing.T) {
	r := realRig(t, Marker{})
	r.run("kept = 42")
	ctx, cancel := context.WithCancel(t.Context())
	resp := r.post(ctx, "/execute", fields{"code": "import time\nprint('on', flush=True)\ntime.sleep(600)"})
	line, err := bufio.NewReader(resp.Body).ReadString('\n')
	if err != nil {
		t.Fatal(line, err)
	}
	cancel()
	if res := r.run("kept"); res.text != "42" {
		t.Fatalf("after an interrupt: %+v", res)
	}
	res := r.run("import os, signal\nprint('last words', flush=True)\nimport time; time.sleep(0.2)\nos.kill(os.getpid(), signal.SIGKILL)")
	if res.errName != "UnexpectedEndOfExecution" || res.stdout != "last words\n" || res.trace != "The kernel ended: signal: killed" || !res.ended {
		t.Fatalf("%+v", res)
	}
	if res := r.run("'kept' in dir()"); res.text != "False" || res.count != 1 {
		t.Fatalf("after a death: %+v", res)
	}
	if res := r.run("exit()"); !res.ended {
		t.Fatalf("%+v", res)
	}
	if res := r.run("1+1"); res.text != "2" {
		t.Fatalf("after exit(): %+v", res)
	}
}

func TestRealRestartWhileRunning(t *testing.T) {
	r := realRig(t, Marker{})
	resp := r.post(t.Context(), "/execute", fields{"code": "print('on', flush=True)\nwhile True: pass"})
	defer resp.Body.Close()
	in := bufio.NewReader(resp.Body)
	for line := ""; !strings.Contains(line, "stdout"); {
		var err error
		if line, err = in.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	again := r.post(t.Context(), "/contexts/default/restart", nil)
	if again.StatusCode != 200 {
		t.Fatal(again.Status)
	}
	rest, _ := io.ReadAll(in)
	if !strings.Contains(string(rest), "ContextRestarting") || !strings.HasSuffix(string(rest), "{\"type\":\"end_of_execution\"}\n") {
		t.Fatalf("%s", rest)
	}
}

func TestRealBackPressure(t *testing.T) {
	r := realRig(t, Marker{})
	resp := r.post(t.Context(), "/execute", fields{"code": "import os\n" +
		"def rss(): return int(open('/proc/self/statm').read().split()[1]) * 4096\n" +
		"before, most = rss(), 0\n" +
		"for i in range(50): print('x' * (1 << 20)); most = max(most, rss())\n" +
		"print('grew', (most - before) >> 20)"})
	defer resp.Body.Close()
	in := bufio.NewReader(resp.Body)
	if _, err := in.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	<-time.After(time.Second) // a client that does not read
	var total, last int
	var grew string
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			break
		}
		var e struct{ Type, Text string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if e.Type == "stdout" {
			total += len(e.Text)
			if at := strings.LastIndex(e.Text, "grew "); at >= 0 {
				grew = strings.TrimSpace(e.Text[at+5:])
			}
		}
		last = len(line)
	}
	if want := 50*(1<<20+1) + len("grew \n") + len(grew); total != want {
		t.Fatalf("%d characters arrived, %d were printed; last line %d", total, want, last)
	}
	var mib int
	if _, err := fmt.Sscan(grew, &mib); err != nil || mib > 30 {
		t.Fatalf("the kernel grew by %q MiB for 50 MiB of output", grew)
	}
	t.Logf("kernel grew by %d MiB for 50 MiB of output with a slow client", mib)
}

func TestRealOtherLanguage(t *testing.T) {
	r := realRig(t, Marker{KernelDirs: []string{filepath.Join(filepath.Dir(testPython(t)), "../share/jupyter/kernels")}})
	res := r.run("echo $X $Y", fields{"language": "bash", "env_vars": fields{"X": "it's"}})
	if res.status == 500 && strings.Contains(res.body, "no kernel") {
		t.Skip("no bash kernel in the test environment")
	}
	if strings.TrimSpace(res.stdout) != "it's" {
		t.Fatalf("%+v", res)
	}
	r.svc.Reset(map[string]string{"Y": "new"})
	if res := r.run("echo $X $Y", fields{"language": "bash"}); strings.TrimSpace(res.stdout) != "new" {
		t.Fatalf("%+v", res)
	}
	if res := r.run("false", fields{"language": "bash"}); !res.ended {
		t.Fatalf("%+v", res)
	}
}

func TestRealRich(t *testing.T) {
	r := realRig(t, Marker{Preload: []string{"numpy", "pandas", "matplotlib.pyplot", "not_there"}})
	res := r.run("import matplotlib.pyplot as plt\nplt.plot([1, 2, 3], [4, 5, 7], label='a'); plt.xlabel('t (s)')\nplt.show()")
	if len(res.results) != 1 || res.results[0]["png"] == nil || res.results[0]["chart"] == nil {
		t.Skipf("no matplotlib in the test environment? %+v", res)
	}
	if chart := res.results[0]["chart"].(map[string]any); chart["type"] != "line" || chart["x_unit"] != "s" {
		t.Fatalf("%+v", chart)
	}
	if res.count != 1 {
		t.Fatalf("the warm-up is counted: %+v", res.count)
	}
	res = r.run("import pandas as pd\npd.DataFrame({'a': [1, 2], 'when': pd.to_datetime(['2020-01-01', None])})")
	data, _ := json.Marshal(res.results[0]["data"])
	if string(data) != `{"a":[1,2],"when":["2020-01-01T00:00:00",null]}` || res.results[0]["html"] == nil {
		t.Fatalf("%s %+v", data, res)
	}
	if res := r.run("sorted(n for n in dir() if not n.startswith('_'))"); strings.Contains(res.text, "_f") {
		t.Fatalf("%+v", res)
	}
}

func TestRealJupyterServer(t *testing.T) {
	r := realRig(t, Marker{JupyterServer: true})
	if exec.Command(testPython(t), "-c", "import jupyter_server").Run() != nil {
		t.Skip("no jupyter_server in the test environment")
	}
	lab := httptest.NewServer(r.svc.JupyterHandler())
	defer lab.Close()
	for _, path := range []string{"/api", "/api/kernels", "/api/contents"} {
		resp, err := http.Get(lab.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Fatalf("%s: %s %s", path, resp.Status, b)
		}
		t.Logf("%s %s", path, b)
	}
}

func TestRealPython(t *testing.T) {
	python := testPython(t)
	if exec.Command(python, "-c", "import pandas, matplotlib").Run() != nil {
		t.Skip("no pandas and matplotlib in the test environment")
	}
	cmd := exec.Command(python, "testdata/charts_test.py", "python")
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
