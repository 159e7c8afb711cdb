package daemon

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/guest"
	"hearth/internal/guest/files"
	"hearth/internal/guest/process/reap"
	"hearth/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

type fixture struct {
	*testing.T
	daemon *Daemon
	url    string
	hc     *http.Client
	reaper *reap.Reaper
}

func serve(t *testing.T) *fixture {
	t.Helper()
	reaper := reap.New(reap.Children)
	t.Cleanup(reaper.Close)
	return serveWith(t, Options{Reaper: reaper, Log: slog.New(slog.DiscardHandler)})
}

func serveWith(t *testing.T, o Options) *fixture {
	t.Helper()
	d := New(o)
	srv := d.server(d.Handler())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	f := &fixture{T: t, daemon: d, reaper: o.Reaper, url: "http://" + l.Addr().String(), hc: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	t.Cleanup(func() {
		_ = srv.Close()
		<-served
		d.conns.closeForwards()
		d.process.Close()
		d.files.Close()
	})
	return f
}

func (f *fixture) do(method, path, body string, headers ...string) (int, string, http.Header) {
	f.Helper()
	req, err := http.NewRequestWithContext(f.Context(), method, f.url+path, strings.NewReader(body))
	if err != nil {
		f.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := f.hc.Do(req)
	if err != nil {
		f.Fatal(err)
	}
	defer res.Body.Close()
	raw, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(raw), res.Header
}

func (f *fixture) want(status int, method, path, body string, headers ...string) string {
	f.Helper()
	got, answer, _ := f.do(method, path, body, headers...)
	if got != status {
		f.Errorf("%s %s: %d, want %d: %s", method, path, got, status, answer)
	}
	return answer
}

func initBody(change func(*guest.InitRequest)) string {
	req := guest.InitRequest{
		Now: time.Now(), Seed: bytes.Repeat([]byte{1}, 32), Control: "host", Token: "secret", SandboxID: "i1",
		TemplateID: "t1", User: "root", Env: map[string]string{"A": "b", "E2B_SANDBOX_ID": "forged"},
	}
	if change != nil {
		change(&req)
	}
	raw, _ := json.Marshal(req)
	return string(raw)
}

func TestSealed(t *testing.T) {
	f := serve(t)
	f.want(204, "GET", "/health", "")
	for _, path := range []string{"/envs", "/metrics", "/files?path=/etc/hostname", "/nothing", "/forward?port=1"} {
		f.want(503, "GET", path, "", tokenHeader, "secret", guest.ControlHeader, "host")
	}
	f.want(503, "POST", "/process.Process/List", "{}", "Content-Type", "application/json")
	f.want(401, "POST", "/quiesce", "{}")
	f.want(400, "POST", "/init", "{")
	f.want(400, "POST", "/init", initBody(func(r *guest.InitRequest) { r.Control = "" }))
	f.want(400, "POST", "/init", initBody(func(r *guest.InitRequest) { r.Seed = []byte("short") }))
	f.want(400, "POST", "/init", initBody(func(r *guest.InitRequest) { r.SandboxID = "a\nb" }))
	f.want(400, "POST", "/init", `{"token":"`+strings.Repeat("x", maxInit)+`"}`)
	f.want(503, "GET", "/envs", "")
	f.want(204, "POST", "/init", initBody(nil))
	f.want(200, "GET", "/envs", "", tokenHeader, "secret")
}

func TestInitAndQuiesce(t *testing.T) {
	f := serve(t)
	f.want(204, "POST", "/init", initBody(nil))
	f.want(401, "POST", "/init", initBody(nil))
	f.want(401, "POST", "/init", initBody(nil), guest.ControlHeader, "wrong")
	f.want(204, "POST", "/init", initBody(func(r *guest.InitRequest) { r.Env = map[string]string{"C": "d"} }), guest.ControlHeader, "host")
	answer := f.want(200, "GET", "/envs", "", tokenHeader, "secret")
	var env map[string]string
	if err := json.Unmarshal([]byte(answer), &env); err != nil || env["C"] != "d" || env["A"] != "" || env["E2B_SANDBOX_ID"] != "i1" || env["E2B_SANDBOX"] != "true" {
		t.Errorf("env %v", env)
	}
	f.want(401, "POST", "/quiesce", "{}", tokenHeader, "secret")
	f.want(204, "POST", "/quiesce", "{}", guest.ControlHeader, "host")
	f.want(503, "GET", "/envs", "", tokenHeader, "secret")
	f.want(401, "POST", "/init", initBody(nil)) // sealed, but the secret stands
	f.want(204, "POST", "/init", initBody(nil), guest.ControlHeader, "host")
	f.want(204, "POST", "/quiesce", `{"forget":true}`, guest.ControlHeader, "host")
	f.want(401, "POST", "/quiesce", "{}", guest.ControlHeader, "host")
	f.want(204, "POST", "/init", initBody(func(r *guest.InitRequest) { r.Control, r.Token = "other", "" }))
	f.want(200, "GET", "/envs", "") // no token: open
}

func TestTokens(t *testing.T) {
	f := serve(t)
	f.want(204, "POST", "/init", initBody(nil))
	for _, headers := range [][]string{nil, {tokenHeader, "wrong"}, {tokenHeader, ""}, {guest.ControlHeader, "secret"}} {
		answer := f.want(401, "POST", "/process.Process/List", "{}", append(headers, "Content-Type", "application/json")...)
		if want := `{"code":401,"message":"` + unauthorizedText + `"}`; strings.TrimSpace(answer) != want {
			t.Errorf("answer %s", answer)
		}
	}
	f.want(200, "POST", "/process.Process/List", "{}", tokenHeader, "secret", "Content-Type", "application/json")
	f.want(200, "POST", "/process.Process/List", "{}", guest.ControlHeader, "host", "Content-Type", "application/json")
	f.want(401, "POST", "/files/compose", "{}")
	f.want(200, "GET", "/metrics", "", tokenHeader, "secret")
	answer := f.want(404, "GET", "/nothing/here", "", tokenHeader, "secret")
	if !strings.Contains(answer, `"code":404`) || !strings.Contains(answer, "/nothing/here") {
		t.Errorf("answer %s", answer)
	}
	f.want(404, "DELETE", "/envs", "", tokenHeader, "secret")
}

func TestSignatures(t *testing.T) {
	f := serve(t)
	f.want(204, "POST", "/init", initBody(nil))
	path := filepath.Join(t.TempDir(), "a b+c")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	past, future := time.Now().Unix()-10, time.Now().Unix()+60
	for _, c := range []struct {
		name           string
		op             files.Op
		user, token    string
		expires, shown *int64
		header         string
		status         int
		text           string
	}{
		{"forever", files.Read, "", "secret", nil, nil, "", 200, "content"},
		{"with a user", files.Read, "root", "secret", nil, nil, "", 200, "content"},
		{"in time", files.Read, "", "secret", &future, &future, "", 200, "content"},
		{"too late", files.Read, "", "secret", &past, &past, "", 401, "signature is already expired"},
		{"expiry moved", files.Read, "", "secret", &past, &future, "", 401, "invalid signature"},
		{"expiry dropped", files.Read, "", "secret", &past, nil, "", 401, "invalid signature"},
		{"for writing", files.Write, "", "secret", nil, nil, "", 401, "invalid signature"},
		{"another's token", files.Read, "", "other", nil, nil, "", 401, "invalid signature"},
		{"header wins", files.Read, "", "secret", nil, nil, "wrong", 401, "access token present in header but does not match"},
		{"good header", files.Read, "", "other", nil, nil, "secret", 200, "content"},
	} {
		q := url.Values{"path": {path}, "signature": {Sign(c.op, path, c.user, c.token, c.expires)}}
		if c.user != "" {
			q.Set("username", c.user)
		}
		if c.shown != nil {
			q.Set("signature_expiration", strconv.FormatInt(*c.shown, 10))
		}
		status, answer, _ := f.do("GET", "/files?"+q.Encode(), "", tokenHeader, c.header)
		if status != c.status || !strings.Contains(answer, c.text) {
			t.Errorf("%s: %d %s", c.name, status, answer)
		}
	}
	if answer := f.want(401, "GET", "/files?path=/etc/passwd", ""); !strings.Contains(answer, "missing signature query parameter") {
		t.Errorf("answer %s", answer)
	}
	q := url.Values{"path": {path}, "signature": {Sign(files.Write, path, "", "secret", nil)}}
	f.want(200, "POST", "/files?"+q.Encode(), "new", "Content-Type", "application/octet-stream")
}

func FuzzVerify(f *testing.F) {
	f.Add("path=/a&signature=v1_x", int64(0))
	f.Add("path=/a&signature=v1_x&signature_expiration=99999999999999999999", int64(1))
	f.Fuzz(func(t *testing.T, query string, exp int64) {
		r := httptest.NewRequest("GET", "/files", nil)
		r.URL.RawQuery = query
		if err := verify(r, files.Read, "a token that no fuzzer knows", time.Unix(1000, 0)); err == nil {
			t.Errorf("%q is accepted", query)
		}
		q := r.URL.Query()
		q.Set("signature", Sign(files.Read, q.Get("path"), q.Get("username"), "k", &exp))
		q.Set("signature_expiration", strconv.FormatInt(exp, 10))
		r.URL.RawQuery = q.Encode()
		if err := verify(r, files.Read, "k", time.Unix(1000, 0)); (err == nil) != (exp >= 1000) {
			t.Errorf("expires at %d: %v", exp, err)
		}
	})
}

func TestCORS(t *testing.T) {
	f := serve(t)
	status, _, h := f.do("OPTIONS", "/process.Process/Start", "", "Origin", "https://x.example", "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "x-access-token")
	if status != 204 || h.Get("Access-Control-Allow-Origin") != "*" || h.Get("Access-Control-Allow-Headers") != "x-access-token" || h.Get("Access-Control-Max-Age") != "7200" {
		t.Errorf("%d %v", status, h)
	}
	status, _, h = f.do("GET", "/health", "", "Origin", "https://x.example")
	if status != 204 || h.Get("Access-Control-Allow-Origin") != "*" || h.Get("Cache-Control") != "no-store" || !strings.Contains(h.Get("Access-Control-Expose-Headers"), "Location") {
		t.Errorf("%d %v", status, h)
	}
}

func TestTimeoutZeroIsNone(t *testing.T) {
	f := serve(t)
	f.want(204, "POST", "/init", initBody(nil))
	f.want(200, "POST", "/process.Process/List", "{}", tokenHeader, "secret", "Content-Type", "application/json", "Connect-Timeout-Ms", "0")
	f.want(400, "POST", "/process.Process/List", "{}", tokenHeader, "secret", "Content-Type", "application/json", "Connect-Timeout-Ms", "soon")
}

func TestForward(t *testing.T) {
	f := serve(t)
	f.want(204, "POST", "/init", initBody(nil))
	f.want(401, "GET", "/forward?port=80", "", tokenHeader, "secret")
	for _, port := range []string{"", "0", "65536", "x", "-1"} {
		f.want(400, "GET", "/forward?port="+port, "", guest.ControlHeader, "host")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err == nil {
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		}
	}()
	conn, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	// Data that comes along with the request must not be lost.
	_, _ = io.WriteString(conn, "GET /forward?port="+port+" HTTP/1.1\r\nHost: x\r\n"+guest.ControlHeader+": host\r\nConnection: Upgrade\r\nUpgrade: hearth-forward\r\n\r\nearly ")
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(res, err)
	}
	_, _ = io.WriteString(conn, "late")
	_ = conn.(*net.TCPConn).CloseWrite()
	if raw, err := io.ReadAll(r); err != nil || string(raw) != "early late" {
		t.Errorf("got %q, %v", raw, err)
	}
}

// TestCloneCutsConnections: a connection of the life before another identity ends.
func TestCloneCutsConnections(t *testing.T) {
	f := serve(t)
	f.want(204, "POST", "/init", initBody(nil))
	conn, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
	r := bufio.NewReader(conn)
	if _, err := http.ReadResponse(r, nil); err != nil {
		t.Fatal(err)
	}
	f.want(204, "POST", "/quiesce", "{}", guest.ControlHeader, "host")
	f.want(204, "POST", "/init", initBody(func(r *guest.InitRequest) { r.SandboxID = "i2" }), guest.ControlHeader, "host")
	if _, err := r.ReadByte(); err == nil {
		t.Error("the connection lives on")
	}
}

// TestHeldRequests: what arrives while a snapshot is taken is served after it.
func TestHeldRequests(t *testing.T) {
	f := serve(t)
	f.want(204, "POST", "/init", initBody(nil))
	for range 3 {
		f.want(204, "POST", "/quiesce", `{"hold":true}`, guest.ControlHeader, "host")
		done := make(chan struct{})
		go func() {
			defer close(done)
			f.want(200, "GET", "/envs", "", tokenHeader, "secret")
		}()
		f.want(204, "GET", "/health", "")
		f.want(204, "POST", "/init", initBody(func(r *guest.InitRequest) { r.GoesOn = true }), guest.ControlHeader, "host")
		<-done
	}
	f.want(204, "POST", "/quiesce", `{}`, guest.ControlHeader, "host")
	f.want(503, "GET", "/envs", "", tokenHeader, "secret")
}

// TestHold: who waited is served in the machine that goes on, and in no other.
func TestHold(t *testing.T) {
	if (*hold)(nil).over(t.Context()) {
		t.Error("without a hold nobody waits")
	}
	for name, lift := range map[string]func(h *hold, cancel func()){
		"goes on":      func(h *hold, _ func()) { h.goesOn = true; close(h.lifted) },
		"another one":  func(h *hold, _ func()) { close(h.lifted) },
		"gone":         func(_ *hold, cancel func()) { cancel() },
		"never lifted": func(*hold, func()) { time.Sleep(maxHold) },
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			h := &hold{lifted: make(chan struct{})}
			over := make(chan bool)
			go func() { over <- h.over(ctx) }()
			synctest.Wait()
			lift(h, cancel)
			if got := <-over; got != (name == "goes on") {
				t.Errorf("%s: %t", name, got)
			}
		})
	}
}

func TestMetrics(t *testing.T) {
	m := newMeter()
	if u := m.read(); u.CPUCount < 1 || u.MemTotal == 0 || u.MemUsed > u.MemTotal || u.DiskTotal == 0 || u.CPUUsedPct < 0 || u.CPUUsedPct > 100 {
		t.Errorf("%+v", u)
	}
}
