package edge

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"hearth/internal/guest"
	"hearth/internal/hearth"
)

const (
	alpha = "ialpha000000000000001"
	beta  = "ibeta0000000000000002"
)

// town is some sandboxes: servers by sandbox and port.
type town struct {
	mu     sync.Mutex
	routes map[hearth.SandboxID]Route
	ports  map[string]string // "id:port" to the address of a server
	dials  atomic.Int64
	served atomic.Int64 // requests that did not pass in the lane
	wrap   func(net.Conn) net.Conn
	late   map[string]int // connections refused before a port opens
	wake   func(hearth.SandboxID, Knock) (Route, error)
	sign   func(SignedURL) (hearth.SandboxID, error)
	step   func(ctx context.Context, id hearth.SandboxID, label string) error
}

func newTown() *town {
	t := &town{routes: make(map[hearth.SandboxID]Route), ports: make(map[string]string), late: make(map[string]int)}
	for _, id := range []hearth.SandboxID{alpha, beta} {
		t.routes[id] = Route{Sandbox: id, State: hearth.Running, Life: 1}
	}
	return t
}

func (t *town) Resolve(_ context.Context, id hearth.SandboxID) (Route, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.routes[id]
	if !ok {
		return Route{}, hearth.Errorf(hearth.NotFound, "no sandbox %s", id)
	}
	return r, nil
}

func (t *town) change(id hearth.SandboxID, edit func(*Route)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.routes[id]
	edit(&r)
	t.routes[id] = r
}

func (t *town) DialSandbox(_ context.Context, id hearth.SandboxID, port uint16) (net.Conn, error) {
	t.dials.Add(1)
	key := fmt.Sprintf("%s:%d", id, port)
	t.mu.Lock()
	addr, open := t.ports[key]
	if t.late[key] > 0 {
		t.late[key]--
		open = false
	}
	t.mu.Unlock()
	if !open {
		return nil, fmt.Errorf("dialing: %w", syscall.ECONNREFUSED)
	}
	c, err := net.Dial("tcp", addr)
	if err == nil && t.wrap != nil {
		c = t.wrap(c)
	}
	return c, err
}

func (t *town) Wake(_ context.Context, id hearth.SandboxID, k Knock) (Route, error) {
	return t.wake(id, k)
}

func (t *town) FindSigned(_ context.Context, u SignedURL) (hearth.SandboxID, error) { return t.sign(u) }

func (t *town) Step(ctx context.Context, id hearth.SandboxID, label string) error {
	return t.step(ctx, id, label)
}

// serve starts a server inside a sandbox.
func (t *town) serve(tb testing.TB, id hearth.SandboxID, port int, h http.Handler) {
	tb.Helper()
	s := httptest.NewServer(h)
	tb.Cleanup(s.Close)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ports[fmt.Sprintf("%s:%d", id, port)] = s.Listener.Addr().String()
}

// open starts an edge before the town, with HTTP/1.1 and unencrypted HTTP/2.
func (t *town) open(tb testing.TB, cfg Config) (*Edge, *httptest.Server) {
	tb.Helper()
	deps := Deps{Resolver: t, Dialer: t}
	if t.wake != nil {
		deps.Waker = t
	}
	if t.sign != nil {
		deps.Signed = t
	}
	if t.step != nil {
		deps.Stepper = t
	}
	e := New(cfg, deps)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.served.Add(1)
		e.ServeHTTP(w, r)
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	lane := e.NewLane(s.Listener, LaneTimes{Head: time.Minute, Idle: time.Minute})
	lane.Attach(s.Config)
	s.Listener = lane
	s.Start()
	tb.Cleanup(func() {
		e.Close()
		s.CloseClientConnections()
		s.Close()
		gone, cancel := context.WithCancel(context.Background())
		cancel()
		lane.Drain(gone)
	})
	return e, s
}

// ask sends a request with routing headers, unless id is empty.
func ask(tb testing.TB, s *httptest.Server, id string, port int, edit func(*http.Request)) (int, string, http.Header) {
	tb.Helper()
	r, err := http.NewRequest("GET", s.URL+"/", nil)
	must(tb, err)
	if id != "" {
		r.Header.Set(SandboxHeader, id)
		r.Header.Set(PortHeader, fmt.Sprint(port))
	}
	if edit != nil {
		edit(r)
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	must(tb, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must(tb, err)
	return resp.StatusCode, string(body), resp.Header
}

func say(text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) })
}

// mirror answers with the request as it arrived.
func mirror() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		json.NewEncoder(w).Encode(map[string]any{"method": r.Method, "uri": r.RequestURI, "host": r.Host, "header": r.Header, "body": string(body)})
	})
}

func TestRouting(t *testing.T) {
	town := newTown()
	town.serve(t, alpha, 3000, say("alpha 3000"))
	town.serve(t, beta, 3000, say("beta 3000"))
	town.serve(t, beta, guest.Port, say("beta daemon"))
	_, s := town.open(t, Config{Domain: "box.test:8443"})
	const badID = "Invalid sandbox ID: it must be 1 to 64 lower-case letters and digits, alone or followed by - and anything\n"
	for _, test := range []struct {
		host, id, port string
		code           int
		body           string
	}{
		{"", alpha, "3000", 200, "alpha 3000"},
		{"", alpha + "-6532622b", "3000", 200, "alpha 3000"},
		{"localhost:1", beta, "49983", 200, "beta daemon"},
		{"3000-" + alpha + ".box.test:8443", "", "", 200, "alpha 3000"},
		{"3000-" + strings.ToUpper(alpha) + ".Box.Test", "", "", 200, "alpha 3000"},
		{"3000-" + alpha + "-6532622b.box.test.", "", "", 200, "alpha 3000"},
		{"3000-" + alpha + ".box.test", beta, "3000", 200, "alpha 3000"}, // its own name beats headers
		{"sandbox.box.test", beta, "3000", 200, "beta 3000"},
		{"sandbox.box.test", "", "", 400, "missing header\n"},
		{"", alpha, "", 400, "missing header\n"},
		{"", "", "3000", 400, "missing header\n"},
		{"", alpha, "0", 400, "Invalid sandbox port\n"},
		{"", alpha, "65536", 400, "Invalid sandbox port\n"},
		{"", alpha, "+80", 400, "Invalid sandbox port\n"},
		{"", "../x", "80", 400, badID},
		{"nodash.box.test", "", "", 400, "Invalid host\n"},
		{"80-x", "", "", 400, "Invalid host\n"},
		{"1.2.3.4", "", "", 400, "Invalid host\n"},
		{"[::1]:80", "", "", 400, "Invalid host\n"},
		{"80-" + alpha + ".other.test", "", "", 400, "Invalid host\n"},
		{"x-" + alpha + ".box.test", "", "", 400, "Invalid sandbox port\n"},
		{"80-.box.test", "", "", 400, badID},
		{"80-a_b.box.test", "", "", 400, badID},
	} {
		code, body, _ := ask(t, s, "", 0, func(r *http.Request) {
			if test.host != "" {
				r.Host = test.host
			}
			if test.id != "" {
				r.Header.Set(SandboxHeader, test.id)
			}
			if test.port != "" {
				r.Header.Set(PortHeader, test.port)
			}
		})
		if code != test.code || body != test.body {
			t.Errorf("%q %q %q: %d %q, want %d %q", test.host, test.id, test.port, code, body, test.code, test.body)
		}
	}
}

func TestMatches(t *testing.T) {
	town := newTown()
	town.sign = func(SignedURL) (hearth.SandboxID, error) { return alpha, nil }
	with, without := New(Config{Domain: "box.test"}, Deps{Signed: town}), New(Config{}, Deps{})
	for _, test := range []struct {
		url, header   string
		with, without bool
	}{
		{"http://127.0.0.1:3000/health", "", false, false},
		{"http://127.0.0.1:3000/health", SandboxHeader, true, true},
		{"http://127.0.0.1:3000/health", PortHeader, true, true},
		{"http://api.box.test/health", "", false, false},
		{"http://box.test/", "", false, false},
		{"http://80-x.box.test/", "", true, false},
		{"http://whatever.box.test/", "", true, false},
		{"http://3000-tunnel.example.com/", "", false, false},
		{"http://127.0.0.1:3000/files?path=a&signature=v1_x", "", true, false},
		{"http://127.0.0.1:3000/files?path=a", "", false, false},
		{"http://127.0.0.1:3000/filesystem?signature=a", "", false, false},
	} {
		r := httptest.NewRequest("GET", test.url, nil)
		if test.header != "" {
			r.Header.Set(test.header, "1")
		}
		if got := with.Matches(r); got != test.with {
			t.Errorf("%s %s: with a domain %v", test.url, test.header, got)
		}
		if got := without.Matches(r); got != test.without {
			t.Errorf("%s %s: without a domain %v", test.url, test.header, got)
		}
	}
}

func TestGuestSeesTheClientsRequest(t *testing.T) {
	town := newTown()
	town.serve(t, alpha, 3000, mirror())
	_, s := town.open(t, Config{})
	_, body, _ := ask(t, s, alpha, 3000, func(r *http.Request) {
		r.Method, r.Body = "PATCH", io.NopCloser(strings.NewReader("a body"))
		r.URL.Opaque = "/a/%2e./b%20c;x?q=1;2&z=%zz" // as is
		r.Host = "front.example.com"
		r.Header.Set("X-Forwarded-For", "6.6.6.6")
		r.Header.Set(guest.ControlHeader, "stolen")
		r.Header.Set("x-hearth-control", "stolen")
		r.Header.Set(TokenHeader, "secret")
		r.Header.Set("Connection", "X-Hop")
		r.Header.Set("X-Hop", "1")
		r.Header.Set("X-Own", "kept")
		r.Header.Set("User-Agent", "")
	})
	var got struct {
		Method, URI, Host, Body string
		Header                  http.Header
	}
	must(t, json.Unmarshal([]byte(body), &got))
	if got.Method != "PATCH" || got.Host != "front.example.com" || got.Body != "a body" {
		t.Errorf("%s", body)
	}
	if !strings.HasSuffix(got.URI, "/a/%2e./b%20c;x?q=1;2&z=%zz") {
		t.Errorf("uri %q", got.URI)
	}
	for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", guest.ControlHeader, TokenHeader, "X-Hop", "Via", "Accept-Encoding-x"} {
		if v, ok := got.Header[http.CanonicalHeaderKey(name)]; ok {
			t.Errorf("the guest got %s: %v", name, v)
		}
	}
	if got.Header.Get("X-Own") != "kept" {
		t.Error("a header was lost")
	}
}

func TestMaskedHost(t *testing.T) {
	town := newTown()
	town.change(alpha, func(r *Route) { r.MaskRequestHost = "localhost:${PORT}" })
	town.serve(t, alpha, 3000, mirror())
	town.serve(t, alpha, guest.Port, mirror())
	_, s := town.open(t, Config{})
	_, body, _ := ask(t, s, alpha, 3000, func(r *http.Request) { r.Host = "front.example.com" })
	if !strings.Contains(body, `"host":"localhost:3000"`) || !strings.Contains(body, `"X-Forwarded-Host":["front.example.com"]`) {
		t.Error(body)
	}
	_, body, _ = ask(t, s, alpha, guest.Port, func(r *http.Request) { r.Host = "front.example.com" })
	if !strings.Contains(body, `"host":"front.example.com"`) || strings.Contains(body, "Forwarded") {
		t.Error(body)
	}
}

func TestErrorAnswers(t *testing.T) {
	town := newTown()
	town.serve(t, alpha, 3000, say("in"))
	for id, state := range map[hearth.SandboxID]hearth.State{"ipaused": hearth.Paused, "ipausing": hearth.Pausing, "idead": hearth.Stopped, "inew": hearth.Creating, "iback": hearth.Reverting} {
		town.routes[id] = Route{Sandbox: id, State: state}
	}
	town.change(beta, func(r *Route) { r.PrivateIngress, r.TrafficToken = true, "tok" })
	town.serve(t, beta, 3000, say("private"))
	town.serve(t, beta, guest.Port, say("daemon"))
	_, s := town.open(t, Config{})
	for _, test := range []struct {
		id    string
		port  int
		token string
		code  int
		body  string
	}{
		{"iunknown", 80, "", 502, `{"sandboxId":"iunknown","message":"The sandbox was not found","code":502}`},
		{"ipaused", 80, "", 502, `{"sandboxId":"ipaused","message":"The sandbox was not found","code":502}`},
		{"idead", 80, "", 502, `{"sandboxId":"idead","message":"The sandbox was not found","code":502}`},
		{"ipausing", 80, "", 409, `{"sandboxId":"ipausing","message":"The sandbox is still transitioning. Try again in a moment.","code":409}`},
		{"iback", 80, "", 409, `{"sandboxId":"iback","message":"The sandbox is still transitioning. Try again in a moment.","code":409}`},
		{"inew", 80, "", 409, `{"sandboxId":"inew","message":"The sandbox is still transitioning. Try again in a moment.","code":409}`},
		{alpha, 81, "", 502, `{"sandboxId":"` + alpha + `","message":"The sandbox is running but port is not open","port":81,"code":502}`},
		{beta, 3000, "", 403, `{"sandboxId":"` + beta + `","message":"Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing","code":403}`},
		{beta, 3000, "bad", 403, `{"sandboxId":"` + beta + `","message":"Sandbox is secured with traffic access token. Provided token in header 'e2b-traffic-access-token' is invalid","code":403}`},
		{beta, 3000, "tok", 200, "private"},
		{beta, guest.Port, "", 200, "daemon"},
	} {
		code, body, header := ask(t, s, test.id, test.port, func(r *http.Request) {
			if test.token != "" {
				r.Header.Set(TokenHeader, test.token)
			}
		})
		if code != test.code || strings.TrimSpace(body) != test.body {
			t.Errorf("%s:%d: %d %s", test.id, test.port, code, body)
		}
		if code != 200 && header.Get("Content-Type") != "application/json; charset=utf-8" {
			t.Errorf("%s:%d: %s", test.id, test.port, header.Get("Content-Type"))
		}
	}
}

func TestBrowsersGetAPage(t *testing.T) {
	town := newTown()
	_, s := town.open(t, Config{})
	const firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
	for _, test := range []struct {
		header string
		page   bool
	}{
		{"User-Agent: " + firefox, true},
		{"User-Agent: " + firefox + "\nAccept: text/html,application/json", true},
		{"User-Agent: " + firefox + "\nSec-Fetch-Mode: navigate", true},
		{"User-Agent: " + firefox + "\nAccept: application/json", false},
		{"User-Agent: " + firefox + "\nSec-Fetch-Mode: cors", false},
		{"User-Agent: " + firefox + "\nX-Requested-With: XMLHttpRequest", false},
		{"User-Agent: curl/8", false},
	} {
		_, body, header := ask(t, s, "iunknown", 80, func(r *http.Request) {
			for line := range strings.SplitSeq(test.header, "\n") {
				name, value, _ := strings.Cut(line, ": ")
				r.Header.Set(name, value)
			}
		})
		if page := strings.HasPrefix(header.Get("Content-Type"), "text/html"); page != test.page || page && !strings.Contains(body, "iunknown") {
			t.Errorf("%q: %s", test.header, body)
		}
	}
}

func TestReservedEndpoints(t *testing.T) {
	town := newTown()
	town.serve(t, alpha, guest.Port, say("daemon"))
	town.serve(t, alpha, 3000, say("user's own"))
	_, s := town.open(t, Config{})
	get := func(port int, target string) string {
		t.Helper()
		conn, err := net.Dial("tcp", s.Listener.Addr().String())
		must(t, err)
		defer conn.Close()
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: h\r\n%s: %s\r\n%s: %d\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", target, SandboxHeader, alpha, PortHeader, port)
		all, err := io.ReadAll(conn)
		must(t, err)
		return string(all)
	}
	for _, path := range []string{"/init", "/quiesce", "/forward", "/rehearse", "/inventory", "/freeze", "/unfreeze", "/fsfreeze", "/fsthaw", "/collapse", "/upgrade"} {
		for _, form := range []string{"%s", "/%s", "/.%s", "/a/..%s", "%s/", "%s//", "%s/x", "%s?port=1", "%s;a=b", "/%%2f%s", "http://evil%s", "%s/../%[1]s", "/..%s", `/\%s`} {
			target := fmt.Sprintf(form, path)
			if i := strings.Index(target, "%!"); i >= 0 {
				target = target[:i]
			}
			if got := get(guest.Port, target); strings.Contains(got, "daemon") {
				t.Errorf("%s got through", target)
			}
		}
		encoded := "/%" + fmt.Sprintf("%x", path[1]) + path[2:]
		for _, target := range []string{encoded, "/%25" + encoded[2:], "/%2e" + path, strings.ToUpper(path), "%2f" + path[1:]} {
			if got := get(guest.Port, target); strings.Contains(got, "daemon") {
				t.Errorf("%s got through", target)
			}
		}
		if got := get(3000, path); !strings.Contains(got, "user's own") {
			t.Errorf("%s of a user's server: %s", path, got)
		}
	}
	if got := get(guest.Port, "/initial"); !strings.Contains(got, "daemon") {
		t.Errorf("/initial: %s", got)
	}
	if got := get(guest.Port, "//init"); !strings.Contains(got, "404") || !strings.Contains(got, `"path":"//init","code":404`) {
		t.Errorf("//init: %s", got)
	}
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	must(t, err)
	defer conn.Close()
	fmt.Fprintf(conn, "CONNECT h:80 HTTP/1.1\r\nHost: h\r\n%s: %s\r\n%s: %d\r\n\r\n", SandboxHeader, alpha, PortHeader, guest.Port)
	if line, _ := bufio.NewReader(conn).ReadString('\n'); !strings.Contains(line, "405") {
		t.Errorf("CONNECT: %q", line)
	}
}

func TestSignedFiles(t *testing.T) {
	town := newTown()
	long := strings.Repeat("a", 40)
	asked := 0
	town.sign = func(u SignedURL) (hearth.SandboxID, error) {
		asked++
		if u.Signature != "v1_"+long+"+b/" || u.Path != "a b" || u.User != "root" || u.Expiration != "7" {
			return "", hearth.Errorf(hearth.NotFound, "no")
		}
		if u.Operation == "write" {
			return beta, nil
		}
		return alpha, nil
	}
	town.serve(t, alpha, guest.Port, say("alpha's file"))
	town.serve(t, beta, guest.Port, say("beta takes it"))
	_, s := town.open(t, Config{})
	const refused = `{"message":"invalid signature","code":401}`
	good := "path=a+b&username=root&signature_expiration=7&signature=v1_" + long + "%2Bb%2F"
	for _, test := range []struct{ method, query, preflight, want string }{
		{"GET", good, "", "alpha's file"},
		{"POST", good, "", "beta takes it"},
		{"OPTIONS", good, "POST", "beta takes it"},
		{"GET", strings.Replace(good, "a+b", "a+c", 1), "", refused},
		// What nobody can have signed costs no search among all sandboxes.
		{"GET", good + "x", "", refused},
		{"GET", strings.Replace(good, "v1_", "v2_", 1), "", refused},
		{"GET", strings.Replace(good, "a+b", strings.Repeat("a", 4097), 1), "", refused},
		{"GET", strings.Replace(good, "root", strings.Repeat("a", 257), 1), "", refused},
		{"GET", strings.Replace(good, "=7", "="+strings.Repeat("7", 21), 1), "", refused},
	} {
		_, body, _ := ask(t, s, "", 0, func(r *http.Request) {
			r.Method, r.URL.Path, r.URL.RawQuery = test.method, "/files", test.query
			if test.preflight != "" {
				r.Header.Set("Access-Control-Request-Method", test.preflight)
			}
		})
		if strings.TrimSpace(body) != test.want {
			t.Errorf("%s %s: %s", test.method, test.query, body)
		}
	}
	if asked != 4 {
		t.Errorf("the signer was looked for %d times, want 4", asked)
	}
}

func TestWake(t *testing.T) {
	town := newTown()
	town.serve(t, alpha, 3000, say("awake"))
	town.change(alpha, func(r *Route) { r.State = hearth.Paused })
	var fail error
	town.wake = func(id hearth.SandboxID, k Knock) (Route, error) {
		if fail != nil {
			return Route{}, fail
		}
		if k != (Knock{Port: 3000, Token: "t"}) {
			t.Errorf("knock %+v", k)
		}
		return Route{Sandbox: id, State: hearth.Running, Life: 2}, nil
	}
	_, s := town.open(t, Config{})
	for _, state := range []hearth.State{hearth.Pausing, hearth.Paused, hearth.Resuming} {
		town.change(alpha, func(r *Route) { r.State = state })
		if code, body, _ := ask(t, s, alpha, 3000, func(r *http.Request) { r.Header.Set(TokenHeader, "t") }); code != 200 || body != "awake" {
			t.Errorf("%s: %d %s", state, code, body)
		}
	}
	for _, test := range []struct {
		err  error
		code int
		want string
	}{
		{hearth.Errorf(hearth.NotFound, "x"), 502, "not found"},
		{hearth.Errorf(hearth.PermissionDenied, "x"), 403, "This sandbox can't be resumed with the credentials provided. "},
		{hearth.Errorf(hearth.ResourceExhausted, ""), 429, "Sandbox limit reached"},
		{hearth.Errorf(hearth.ResourceExhausted, "20 sandboxes run"), 429, "20 sandboxes run"},
		{hearth.Errorf(hearth.Aborted, "x"), 409, "transitioning"},
		{hearth.Errorf(hearth.FailedPrecondition, "x"), 409, "transitioning"},
		{hearth.Errorf(hearth.Unavailable, "the node is away"), 503, "could not be resumed: the node is away"},
	} {
		fail = test.err
		code, body, _ := ask(t, s, alpha, 3000, func(r *http.Request) { r.Header.Set(TokenHeader, "t") })
		if code != test.code || !strings.Contains(body, test.want) {
			t.Errorf("%v: %d %s", test.err, code, body)
		}
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
