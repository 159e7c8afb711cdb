package dash

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/auth"
	"hearth/internal/hearth"
	"hearth/internal/node"
	"hearth/internal/store"
	"hearth/internal/store/memstore"
)

const (
	ourKey   = "e2b_0123456789abcdef0123456789abcdef01234567"
	theirKey = "e2b_ffffffffffffffffffffffffffffffffffffffff"
)

// house is a control plane over a store in memory, with two teams, and the
// dashboard before it.
type house struct {
	*memstore.Store
	http.Handler
	site    *site
	samples []node.Usage
	fail    error // of every call when set
	broken  error // of every look at keys when set
	gone    bool  // the keys were removed
	logged  *strings.Builder
}

func newHouse(tb testing.TB) *house {
	tb.Helper()
	h := &house{Store: memstore.New(), logged: &strings.Builder{}}
	for team, key := range map[string]string{"ours": ourKey, "theirs": theirKey} {
		must(tb, h.CreateTeam(tb.Context(), &hearth.Team{ID: hearth.TeamID(team), Name: "The <b>" + team, Slug: team}))
		must(tb, h.CreateAPIKey(tb.Context(), auth.KeyRow(key, hearth.TeamID(team), "k", time.Now())))
	}
	keys := auth.NewKeys(h, time.Now)
	handler, err := New(Deps{Sandboxes: h, Keys: keys, Hash: auth.HashKey, Throttle: keys, Log: slog.New(slog.NewTextHandler(h.logged, nil))})
	must(tb, err)
	h.Handler, h.site = handler, handler.(*site)
	return h
}

func (h *house) TeamByKeyHash(ctx context.Context, hash string) (*hearth.Team, error) {
	if h.broken != nil {
		return nil, h.broken
	}
	if h.gone {
		return nil, hearth.Errorf(hearth.NotFound, "no key")
	}
	return h.Store.TeamByKeyHash(ctx, hash)
}

func (h *house) List(ctx context.Context, f store.SandboxFilter, p store.Page) ([]*hearth.Sandbox, string, error) {
	if h.fail != nil {
		return nil, "", h.fail
	}
	return h.ListSandboxes(ctx, f, p)
}

func (h *house) Count(ctx context.Context, f store.SandboxFilter) (int, error) {
	return h.CountSandboxes(ctx, f)
}

func (h *house) Sandbox(ctx context.Context, team hearth.TeamID, id hearth.SandboxID) (*hearth.Sandbox, error) {
	sb, err := h.Store.Sandbox(ctx, id)
	if err != nil || sb.Team != team {
		return nil, hearth.Errorf(hearth.NotFound, "Sandbox %q doesn't exist or you don't have access to it", id)
	}
	return sb, nil
}

func (h *house) Metrics(ctx context.Context, team hearth.TeamID, id hearth.SandboxID, _, _ time.Time) ([]node.Usage, error) {
	if _, err := h.Sandbox(ctx, team, id); err != nil {
		return nil, err
	}
	return h.samples, nil
}

func (h *house) Snapshots(ctx context.Context, f store.SnapshotFilter, p store.Page) ([]*hearth.Snapshot, string, error) {
	return h.FindSnapshots(ctx, f, p)
}

// add makes the n-th sandbox of a team.
func (h *house) add(tb testing.TB, team string, n int, edit func(*hearth.Sandbox)) hearth.SandboxID {
	tb.Helper()
	at := time.Date(2026, 11, 22, 10, 0, n, 0, time.UTC)
	sb := &hearth.Sandbox{
		ID: hearth.SandboxID(fmt.Sprintf("i%s%03d", team, n)), Team: hearth.TeamID(team), Template: "tpl", Alias: "base", Generation: 1,
		State: hearth.Running, Driver: "gvisor", Isolation: hearth.UserKernel, Resources: hearth.Resources{VCPUs: 2, MemoryMiB: 512, DiskMiB: 1024},
		CreatedAt: at, StartedAt: at, EndsAt: at.Add(time.Hour),
	}
	if edit != nil {
		edit(sb)
	}
	must(tb, h.CreateSandbox(tb.Context(), sb))
	return sb.ID
}

// ask sends a request as a browser on another machine does.
func (h *house) ask(method, path, cookie string, edit func(*http.Request)) *http.Response {
	r := httptest.NewRequest(method, "http://hearth.test"+path, nil)
	r.RemoteAddr = "192.0.2.1:1234"
	if cookie != "" {
		r.AddCookie(&http.Cookie{Name: cookieName, Value: cookie})
	}
	if edit != nil {
		edit(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

// form is ask with a form from the dashboard's own page.
func (h *house) form(page, cookie string, fields url.Values, edit func(*http.Request)) *http.Response {
	r := httptest.NewRequest("POST", "http://hearth.test"+Root+page, strings.NewReader(fields.Encode()))
	r.RemoteAddr = "192.0.2.1:1234"
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	r.Header.Set("Sec-Fetch-Dest", "document")
	if cookie != "" {
		r.AddCookie(&http.Cookie{Name: cookieName, Value: cookie})
	}
	if edit != nil {
		edit(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func (h *house) enter(tb testing.TB, key string) (token string) {
	tb.Helper()
	resp := h.form("sign-in", "", url.Values{"key": {key}}, nil)
	if resp.StatusCode != http.StatusSeeOther || resp.Header.Get("Location") != Root || len(resp.Cookies()) != 1 {
		tb.Fatalf("signing in: %d %v %s", resp.StatusCode, resp.Header, text(resp))
	}
	return resp.Cookies()[0].Value
}

func text(resp *http.Response) string {
	var b strings.Builder
	_ = resp.Write(&b)
	_, body, _ := strings.Cut(b.String(), "\r\n\r\n")
	return body
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func TestSignIn(t *testing.T) {
	for _, test := range []struct {
		name, key string
		edit      func(*http.Request)
		status    int
		says      string
	}{
		{"good", ourKey, nil, 303, ""},
		{"good, with spaces around", " " + ourKey + "\n", nil, 303, ""},
		{"wrong", strings.Replace(ourKey, "0", "1", 1), nil, 401, "There is no such API key."},
		{"no key at all", "<script>alert(1)</script>", nil, 401, "There is no such API key."},
		{"empty", "", nil, 400, "Enter an API key."},
		{"long", strings.Repeat("a", formBytes), nil, 400, "at most 4096 bytes"},
		{"another form", ourKey, func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }, 400, "Enter an API key."},
		{"key in the address", "", func(r *http.Request) { r.URL.RawQuery = "key=" + ourKey }, 400, "Enter an API key."},
		{"another site", ourKey, func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }, 403, "another site"},
		{"a sandbox beside it", ourKey, func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-site") }, 403, "another site"},
		{"another origin", ourKey, origin("http://evil.test"), 403, "another site"},
		{"no origin", ourKey, origin("null"), 403, "another site"},
		{"own origin", ourKey, origin("http://hearth.test"), 303, ""},
		{"a frame", ourKey, func(r *http.Request) { r.Header.Set("Sec-Fetch-Dest", "iframe") }, 403, "window"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHouse(t)
			resp := h.form("sign-in", "", url.Values{"key": {test.key}}, test.edit)
			body := text(resp)
			if resp.StatusCode != test.status || !strings.Contains(body, test.says) {
				t.Errorf("%d, want %d and %q:\n%s", resp.StatusCode, test.status, test.says, body)
			}
			if got := len(resp.Cookies()); (got == 1) != (test.status == 303) {
				t.Errorf("%d cookies", got)
			}
			if strings.Contains(body+h.logged.String(), ourKey) {
				t.Error("the key is shown or logged")
			}
		})
	}
}

func origin(o string) func(*http.Request) {
	return func(r *http.Request) {
		r.Header.Del("Sec-Fetch-Site") // plain HTTP, other than from this host
		r.Header.Set("Origin", o)
	}
}

func TestCookie(t *testing.T) {
	for o, secure := range map[string]bool{"http://hearth.test": false, "https://hearth.test": true} {
		h := newHouse(t)
		c := h.form("sign-in", "", url.Values{"key": {ourKey}}, func(r *http.Request) { r.Header.Set("Origin", o) }).Cookies()[0]
		if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != Root || c.Domain != "" || c.MaxAge != 12*3600 || c.Secure != secure {
			t.Errorf("%s: %v", o, c)
		}
		for _, one := range h.site.sessions.open {
			if one.key != auth.HashKey(ourKey) {
				t.Errorf("kept of the key: %q", one.key)
			}
		}
	}
}

// TestWrongKeysAreLimited counts with the API's limiter: 20 at once.
func TestWrongKeysAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		wrong := url.Values{"key": {strings.Replace(ourKey, "0", "1", 1)}}
		for range 20 {
			if resp := h.form("sign-in", "", wrong, nil); resp.StatusCode != 401 {
				t.Fatal(resp.StatusCode)
			}
		}
		resp := h.form("sign-in", "", url.Values{"key": {ourKey}}, nil)
		if resp.StatusCode != 429 || resp.Header.Get("Retry-After") == "" || len(resp.Cookies()) != 0 {
			t.Errorf("with the right key after 20 wrong ones: %d %v", resp.StatusCode, resp.Header)
		}
		time.Sleep(time.Minute)
		h.enter(t, ourKey)
	})
}

func TestSessionsEnd(t *testing.T) {
	for name, end := range map[string]func(h *house, token string){
		"by age":         func(*house, string) { time.Sleep(time.Hour) },
		"by signing out": func(h *house, token string) { h.form("sign-out", token, nil, nil) },
		"with their key": func(h *house, _ string) { h.gone = true; time.Sleep(time.Minute) },
		"with a new one": func(h *house, token string) { h.form("sign-in", token, url.Values{"key": {ourKey}}, nil) },
		"by their number": func(h *house, _ string) {
			time.Sleep(time.Second) // it is the oldest
			for range teamSessions {
				h.site.sessions.begin("ours", "hash")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t)
				token := h.enter(t, ourKey)
				time.Sleep(sessionAge - time.Hour)
				if resp := h.ask("GET", Root, token, nil); resp.StatusCode != 200 {
					t.Fatalf("before: %d", resp.StatusCode)
				}
				end(h, token)
				resp := h.ask("GET", Root, token, nil)
				if resp.StatusCode != 303 || resp.Header.Get("Location") != Root+"sign-in" {
					t.Errorf("after: %d %v", resp.StatusCode, resp.Header)
				}
			})
		})
	}
}

// TestForeignSignOut: no other site ends a session.
func TestForeignSignOut(t *testing.T) {
	h := newHouse(t)
	token := h.enter(t, ourKey)
	resp := h.form("sign-out", token, nil, func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") })
	if after := h.ask("GET", Root, token, nil); resp.StatusCode != 403 || after.StatusCode != 200 {
		t.Errorf("%d, then %d", resp.StatusCode, after.StatusCode)
	}
}

// TestOldSessionsAreForgotten, although nobody asks for them any more.
func TestOldSessionsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSessions()
		s.begin("ours", "hash")
		time.Sleep(sessionAge)
		if s.begin("theirs", "hash"); len(s.open) != 1 {
			t.Errorf("%d sessions", len(s.open))
		}
	})
}

func TestSessionsAreBounded(t *testing.T) {
	s := newSessions()
	for i := range 2 * allSessions {
		s.begin(hearth.TeamID(fmt.Sprint("team", i/8)), "hash")
	}
	if len(s.open) != allSessions {
		t.Errorf("%d sessions", len(s.open))
	}
	token := s.begin("mine", "hash")
	for range 2 * teamSessions { // another team's do not push ours out while there is room for theirs
		s.begin("theirs", "hash")
	}
	if _, ok := s.find(token); !ok {
		t.Error("sessions of one team have ended another's")
	}
}

func TestNothingOfAnotherTeam(t *testing.T) {
	h := newHouse(t)
	mine, other := h.add(t, "ours", 1, nil), h.add(t, "theirs", 2, nil)
	token := h.enter(t, theirKey)
	list := text(h.ask("GET", Root, token, nil))
	if strings.Contains(list, string(mine)) || !strings.Contains(list, string(other)) || !strings.Contains(list, "1 running") {
		t.Error(list)
	}
	none := h.ask("GET", Root+"sandboxes/inobody", token, nil)
	resp := h.ask("GET", Root+"sandboxes/"+string(mine), token, nil)
	if resp.StatusCode != 404 || none.StatusCode != 404 {
		t.Errorf("%d; of none %d", resp.StatusCode, none.StatusCode)
	}
}

func TestPages(t *testing.T) {
	h := newHouse(t)
	no := false
	id := h.add(t, "ours", 1, func(sb *hearth.Sandbox) {
		sb.Driver, sb.Isolation, sb.State = "qemu", hearth.EmulatedVM, hearth.Paused
		sb.Env = map[string]string{"PASSWORD": "in-the-environment"}
		sb.Metadata = map[string]string{"owner": "me"}
		sb.Network = hearth.Network{AllowInternet: &no, AllowOut: []string{"1.1.1.1/32"}}
		sb.OnTimeout, sb.AutoResume = hearth.PauseOnTimeout, true
		sb.Lifecycle = hearth.Lifecycle{Idle: time.Minute, History: 64 << 20, Steps: 3}
	})
	h.samples = []node.Usage{{VCPUs: 2, CPUPct: 12.34, Memory: 3 << 20, MemoryMax: 512 << 20}}
	must(t, h.CreateSnapshot(t.Context(), &hearth.Snapshot{ID: "skept", Team: "ours", Sandbox: id, Kind: hearth.KeptSnapshot, Alias: "good", Tag: "v1", Files: []hearth.File{{Bytes: 2 << 20}}}))
	token := h.enter(t, ourKey)
	words := hearth.EmulatedVM.Words()
	for path, wants := range map[string][]string{
		Root: {string(id), "base", "paused since 2026-11-22 11:00:01 UTC", "qemu", words, "512 MiB", "0 running", "The &lt;b&gt;ours"},
		Root + "sandboxes/" + string(id): {
			words, "qemu", "2 CPUs, 512 MiB memory, 1024 MiB disk", "owner", "refused", "1.1.1.1/32", "after 1m0s", "64.0 MiB; 3 steps",
			"12.3 %", "3.0 MiB of 512.0 MiB", "good:v1", "2.0 MiB",
		},
		Root + "sandboxes/" + string(id) + "-client": {string(id)},
	} {
		resp := h.ask("GET", path, token, nil)
		body := text(resp)
		for _, want := range wants {
			if resp.StatusCode != 200 || !strings.Contains(body, want) {
				t.Errorf("%s: %d, without %q:\n%s", path, resp.StatusCode, want, body)
			}
		}
		if strings.Contains(body, "in-the-environment") {
			t.Errorf("%s shows the environment", path)
		}
	}
}

// TestHostileText: what users and sandboxes wrote stays text.
func TestHostileText(t *testing.T) {
	h := newHouse(t)
	const evil = `"><script>alert(1)</script><img src=x onerror=alert(1)>{{.}}'` + "\u202e"
	id := h.add(t, "ours", 1, func(sb *hearth.Sandbox) {
		sb.Alias, sb.Driver, sb.Metadata = evil, evil, map[string]string{evil: evil}
		sb.Network.AllowOut, sb.Network.DenyOut = []string{evil}, []string{evil}
	})
	must(t, h.CreateSnapshot(t.Context(), &hearth.Snapshot{ID: "skept", Team: "ours", Sandbox: id, Alias: evil, Tag: evil}))
	token := h.enter(t, ourKey)
	for _, path := range []string{Root, Root + "sandboxes/" + string(id), Root + "sandboxes/" + url.PathEscape(evil), Root + "?next=" + url.QueryEscape(evil), Root + url.PathEscape(evil)} {
		body := text(h.ask("GET", path, token, nil))
		for _, bad := range []string{"<script", "<img", "onerror=alert(1)>"} {
			if strings.Contains(body, bad) {
				t.Errorf("%s has %q:\n%s", path, bad, body)
			}
		}
	}
}

func TestHeaders(t *testing.T) {
	h := newHouse(t)
	token := h.enter(t, ourKey)
	for path, status := range map[string]int{Root: 200, Root + "sign-in": 303, Root + "style.css": 200, Root + "nothing": 404, Root + "sandboxes/x": 404, "/dash": 303} {
		resp := h.ask("GET", path, token, nil)
		if resp.StatusCode != status {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, status)
		}
		for name, want := range map[string]string{
			"Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
			"X-Content-Type-Options":  "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "same-origin", "Cache-Control": "no-store",
			"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin", "Access-Control-Allow-Origin": "",
		} {
			if got := resp.Header.Get(name); got != want {
				t.Errorf("%s: %s is %q", path, name, got)
			}
		}
		if got := resp.Header.Get("Content-Type"); !strings.HasSuffix(got, "; charset=utf-8") {
			t.Errorf("%s: %q", path, got)
		}
	}
}

func TestMethods(t *testing.T) {
	h := newHouse(t)
	token := h.enter(t, ourKey)
	for _, test := range []struct{ method, path, allow string }{
		{"POST", Root, "GET, HEAD"},
		{"DELETE", Root + "sandboxes/i1", "GET, HEAD"},
		{"OPTIONS", Root, "GET, HEAD"},
		{"PUT", Root + "sign-in", "GET, HEAD"},
		{"GET", Root + "sign-out", "POST"},
		{"POST", Root + "style.css", "GET, HEAD"},
	} {
		resp := h.ask(test.method, test.path, token, nil)
		if resp.StatusCode != 405 || resp.Header.Get("Allow") != test.allow {
			t.Errorf("%s %s: %d %v", test.method, test.path, resp.StatusCode, resp.Header)
		}
	}
	if resp := h.ask("HEAD", Root, token, nil); resp.StatusCode != 200 {
		t.Errorf("HEAD: %d", resp.StatusCode)
	}
}

// TestOnlyWindows: a page of the same origin, should a sandbox ever get there,
// reads nothing by a script or in a frame.
func TestOnlyWindows(t *testing.T) {
	h := newHouse(t)
	token := h.enter(t, ourKey)
	for dest, status := range map[string]int{"": 200, "document": 200, "empty": 403, "iframe": 403, "style": 403, "script": 403, "nonsense": 403} {
		resp := h.ask("GET", Root, token, func(r *http.Request) {
			if dest != "" {
				r.Header.Set("Sec-Fetch-Dest", dest)
			}
		})
		if resp.StatusCode != status {
			t.Errorf("%q: %d", dest, resp.StatusCode)
		}
	}
	if resp := h.ask("GET", Root+"style.css", "", func(r *http.Request) { r.Header.Set("Sec-Fetch-Dest", "style") }); resp.StatusCode != 200 {
		t.Errorf("the stylesheet: %d", resp.StatusCode)
	}
}

func TestPaging(t *testing.T) {
	h := newHouse(t)
	const all = 2*pageSize + 3
	for n := range all {
		h.add(t, "ours", n, nil)
		h.add(t, "theirs", n, nil)
	}
	h.add(t, "ours", all, func(sb *hearth.Sandbox) { sb.State = hearth.Stopped })
	token := h.enter(t, ourKey)
	seen := map[string]bool{}
	path := Root
	for pages := 1; path != ""; pages++ {
		body := text(h.ask("GET", path, token, nil))
		_, rest, more := strings.Cut(body, `href="`+Root+`?next=`)
		for part := range strings.SplitSeq(body, Root+"sandboxes/") {
			if id, _, ok := strings.Cut(part, `"`); ok && strings.HasPrefix(id, "iours") {
				seen[id] = true
			}
		}
		if more != (pages < 3) || strings.Contains(body, "itheirs") {
			t.Fatalf("page %d:\n%s", pages, body)
		}
		path = ""
		if next, _, _ := strings.Cut(rest, `"`); more {
			path = Root + "?next=" + next
		}
	}
	if len(seen) != all {
		t.Errorf("%d sandboxes", len(seen))
	}
}

func TestErrors(t *testing.T) {
	for _, test := range []struct {
		path   string
		fail   error
		status int
		says   string
	}{
		{Root, errors.New("/var/lib/hearth.db: no such table"), 500, "Internal Server Error"},
		{Root, hearth.Wrap(hearth.Internal, errors.New("/var/lib/hearth.db"), "secret place /var/lib"), 500, "Internal Server Error"},
		{Root, hearth.Wrap(hearth.Unavailable, errors.New("/var/lib/hearth.db"), "The store is busy"), 503, "The store is busy"},
		{Root, context.DeadlineExceeded, 504, "Gateway Timeout"},
		{Root + "?next=a", nil, 400, "Invalid next token"},
		{Root + "?next=%zz", nil, 400, "next must be a token"},
		{Root + "?next=a&next=b", nil, 400, "next must be a token"},
		{Root + "?next=" + strings.Repeat("a", 301), nil, 400, "next must be a token"},
		{Root + "sandboxes/", nil, 400, "Invalid sandbox ID"},
		{Root + "sandboxes/..%2f..", nil, 400, "Invalid sandbox ID"},
		{Root + "nothing", nil, 404, "There is no such page"},
	} {
		h := newHouse(t)
		token := h.enter(t, ourKey)
		h.fail = test.fail
		resp := h.ask("GET", test.path, token, nil)
		body := text(resp)
		if resp.StatusCode != test.status || !strings.Contains(body, test.says) || strings.Contains(body, "/var/lib") {
			t.Errorf("%s, %v: %d\n%s", test.path, test.fail, resp.StatusCode, body)
		}
	}
	t.Run("a store that fails does not end a session", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := newHouse(t)
			token := h.enter(t, ourKey)
			time.Sleep(time.Hour) // no key is remembered for so long
			h.broken = errors.New("disk")
			broken := h.ask("GET", Root, token, nil).StatusCode
			h.broken = nil
			if after := h.ask("GET", Root, token, nil).StatusCode; broken != 500 || after != 200 {
				t.Errorf("%d, then %d", broken, after)
			}
		})
	})
	t.Run("panic", func(t *testing.T) {
		h := newHouse(t)
		token := h.enter(t, ourKey)
		h.site.Sandboxes = nil
		resp := h.ask("GET", Root, token, nil)
		if body := text(resp); resp.StatusCode != 500 || strings.Contains(body, "goroutine") || !strings.Contains(h.logged.String(), "panic") {
			t.Errorf("%d\n%s", resp.StatusCode, body)
		}
	})
}

func TestNewAsksForItsParts(t *testing.T) {
	if _, err := New(Deps{}); err == nil {
		t.Error("nothing is missing")
	}
}

// FuzzCookie: no cookie but one that was handed out is a session.
func FuzzCookie(f *testing.F) {
	h := newHouse(f)
	h.site.Log = slog.New(slog.DiscardHandler)
	token := h.enter(f, ourKey)
	f.Add(cookieName + "=" + token[:len(token)-1])
	f.Add(cookieName + `="` + strings.Repeat("A", 43) + `"; ` + cookieName + "=;;=")
	f.Add(strings.Repeat(cookieName+"="+strings.Repeat("_", 43)+"; ", 20))
	f.Fuzz(func(t *testing.T, cookie string) {
		set := func(r *http.Request) { r.Header["Cookie"] = []string{cookie} }
		resp := h.ask("GET", Root, "", set)
		if resp.StatusCode != 303 && !strings.Contains(cookie, token) {
			t.Errorf("%q: %d", cookie, resp.StatusCode)
		}
	})
}

// FuzzNext: a page's address is a page or a mistake of the caller's.
func FuzzNext(f *testing.F) {
	h := newHouse(f)
	h.site.Log = slog.New(slog.DiscardHandler)
	for n := range pageSize + 1 {
		h.add(f, "ours", n, nil)
	}
	token := h.enter(f, ourKey)
	f.Add("next=" + store.Position{At: time.Unix(1, 0), ID: "i1"}.Cursor())
	f.Add("next=" + store.Position{At: time.Unix(1, 0), ID: "i1", Asc: true}.Cursor())
	f.Add("next=%00&next")
	f.Add("a;b")
	f.Fuzz(func(t *testing.T, query string) {
		resp := h.ask("GET", Root, token, func(r *http.Request) { r.URL.RawQuery = query })
		if resp.StatusCode != 200 && resp.StatusCode != 400 {
			t.Errorf("%q: %d", query, resp.StatusCode)
		}
	})
}
