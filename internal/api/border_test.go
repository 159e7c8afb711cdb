package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"hearth/internal/control"
	"hearth/internal/hearth"
)

func TestErrorTable(t *testing.T) {
	secret := errors.New("password=hunter2")
	tests := []struct {
		err             error
		status          int
		message, detail string
	}{
		{hearth.Errorf(hearth.InvalidArgument, "bad"), 400, "bad", ""},
		{hearth.Errorf(hearth.Unauthenticated, "who"), 401, "who", ""},
		{hearth.Errorf(hearth.PermissionDenied, "no"), 403, "no", ""},
		{hearth.Errorf(hearth.NotFound, "none"), 404, "none", ""},
		{hearth.Errorf(hearth.AlreadyExists, "twice"), 409, "twice", ""},
		{hearth.Errorf(hearth.FailedPrecondition, "not now"), 409, "not now", ""},
		{hearth.Errorf(hearth.ResourceExhausted, "full"), 429, "full", ""},
		{hearth.Errorf(hearth.Unimplemented, "never"), 501, "never", ""},
		{hearth.Wrap(hearth.Unavailable, secret, "away"), 503, "away", "sandbox_capacity_unavailable"},
		{hearth.Errorf(hearth.Aborted, "race"), 503, "race", "sandbox_capacity_unavailable"},
		{hearth.Errorf(hearth.DeadlineExceeded, "slow"), 504, "slow", "sandbox_placement_timeout"},
		{hearth.Errorf(hearth.Canceled, "gone"), 499, "gone", ""},
		{fmt.Errorf("wrapped: %w", hearth.Wrap(hearth.NotFound, secret, "none")), 404, "none", ""},
		{fmt.Errorf("create: %w", context.DeadlineExceeded), 504, "took too long", "sandbox_placement_timeout"},
		{context.Canceled, 499, "canceled", ""},
		{secret, 500, "Internal server error (request ", "sandbox_create_failed"},
		{hearth.Wrap(hearth.Internal, secret, "the machine did not start"), 500, "the machine did not start", "sandbox_create_failed"},
	}
	for _, tt := range tests {
		t.Run(tt.err.Error(), func(t *testing.T) {
			f := newFixture(t)
			f.control.fail = tt.err
			w := f.do("POST", "/v2/sandboxes", `{"templateID":"base"}`)
			want(t, w, tt.status, tt.message)
			if strings.Contains(w.Body.String(), "hunter2") {
				t.Error("the cause is shown")
			}
			if code := `"error_code":"` + tt.detail + `"`; tt.detail != "" != strings.Contains(w.Body.String(), code) {
				t.Errorf("error code: %s, want %s", w.Body, tt.detail)
			}
			if retry := w.Header().Get("Retry-After"); (retry == "1") != (tt.status == 429 || tt.status == 503) {
				t.Errorf("Retry-After %q", retry)
			}
			if n := strings.Count(f.log.String(), "\n"); n != 1 || !strings.Contains(f.log.String(), tt.err.Error()) {
				t.Errorf("log has %d lines: %s", n, f.log)
			}
		})
	}
	t.Run("other operations", func(t *testing.T) {
		f := newFixture(t)
		f.control.fail = secret
		want(t, f.do("GET", "/sandboxes/i1", ""), 500)
		if w := f.do("GET", "/sandboxes/i1", ""); !strings.Contains(w.Body.String(), `"error_code":"internal_server_error"`) {
			t.Error(w.Body)
		}
	})
}

type panicking struct{ *fakeControl }

func (panicking) Create(context.Context, control.CreateRequest) (*hearth.Sandbox, error) {
	panic("a bug in a handler")
}

func TestPanicIsAnAnswer(t *testing.T) {
	f := newFixture(t, func(d *Deps) { d.Sandboxes = panicking{&fakeControl{}} })
	w := f.do("POST", "/v2/sandboxes", `{"templateID":"base"}`)
	want(t, w, 500, "Internal server error (request "+w.Header().Get("X-Request-Id")+")")
	if strings.Contains(w.Body.String(), "bug") {
		t.Error("the panic is shown")
	}
	log := f.log.String()
	if strings.Count(log, "level=ERROR") != 1 || !strings.Contains(log, "a bug in a handler") || !strings.Contains(log, w.Header().Get("X-Request-Id")) {
		t.Errorf("log: %s", log)
	}
}

func TestUnknownRoutes(t *testing.T) {
	f := newFixture(t)
	for _, tt := range []struct {
		method, path string
		status       int
		says         string
	}{
		{"GET", "/nope", 404, "This server has no GET /nope"},
		{"POST", "/sandboxes/i1/clone", 404, "This server has no POST /sandboxes/i1/clone"},
		{"GET", "/", 404, "GET /"},
		{"GET", "/sandboxes/../health", 404, "/sandboxes/../health"},
		{"POST", "/sandboxes//pause", 401, ""},
		{"GET", "/a%2Fb%00", 404, "/a%2Fb%00"},
		{"GET", "/" + strings.Repeat("x", 5000), 404, "xxx..."},
		{"PATCH", "/sandboxes", 405, "PATCH is not allowed on /sandboxes, which takes GET, POST"},
		{"GET", "/v2/sandboxes/i1/connect", 405, "which takes POST"},
		{"HEAD", "/health", 405, ""},
		{"BREW", "/health", 405, "which takes GET"},
	} {
		t.Run(tt.method+" "+shown(tt.path), func(t *testing.T) {
			w := f.do(tt.method, tt.path, "", "X-API-Key", "")
			want(t, w, tt.status, tt.says)
			if tt.status == 405 && w.Header().Get("Allow") == "" {
				t.Error("no Allow header")
			}
		})
	}
}

type countingThrottle struct {
	failed map[string]int
	wait   time.Duration
}

func (c *countingThrottle) Wait(client string) time.Duration {
	if c.failed[client] >= 2 {
		return c.wait
	}
	return 0
}

func (c *countingThrottle) Failed(client string) { c.failed[client]++ }

func TestAuthentication(t *testing.T) {
	f := newFixture(t)
	want(t, f.do("GET", "/v2/sandboxes", "", "X-API-Key", ""), 401, "X-API-Key")
	want(t, f.do("GET", "/v2/sandboxes", "", "X-API-Key", "e2b_wrong"), 401, "API key is invalid")
	want(t, f.do("GET", "/v2/sandboxes", "", "X-API-Key", "", "Authorization", "Bearer "+testKey), 200)
	want(t, f.do("GET", "/v2/sandboxes", "", "X-API-Key", "", "Authorization", "Basic "+testKey), 401)
	want(t, f.do("POST", "/v2/sandboxes", "{", "X-API-Key", "e2b_wrong"), 401) // before anything is read
	want(t, f.do("POST", "/sandboxes//pause", ""), 400, "sandboxID must not be empty")
	want(t, f.do("GET", "/health", "", "X-API-Key", ""), 204)
	sameJSON(t, `[{"teamID":"team1","name":"First","apiKey":"`+testKey+`","isDefault":true}]`,
		f.do("GET", "/teams", "", "X-API-Key", "", "Authorization", "bearer "+testKey).Body.String())
	if log := f.log.String(); strings.Contains(log, testKey) || strings.Contains(log, "e2b_wrong") {
		t.Error("a key is in the log")
	}

	down := newFixture(t, func(d *Deps) { d.Keys = fakeKeys{hearth.Errorf(hearth.Unavailable, "database is away")} })
	want(t, down.do("GET", "/v2/sandboxes", ""), 503, "database is away")

	slow := newFixture(t, func(d *Deps) {
		d.Throttle = &countingThrottle{failed: map[string]int{}, wait: 2500 * time.Millisecond}
	})
	want(t, slow.do("GET", "/v2/sandboxes", ""), 200)
	want(t, slow.do("GET", "/v2/sandboxes", "", "X-API-Key", "e2b_1"), 401)
	want(t, slow.do("GET", "/v2/sandboxes", "", "X-API-Key", "e2b_2"), 401)
	w := slow.do("GET", "/v2/sandboxes", "")
	want(t, w, 429, "Rate limit exceeded")
	if w.Header().Get("Retry-After") != "3" {
		t.Errorf("Retry-After %q, want 3", w.Header().Get("Retry-After"))
	}
}

func TestHealth(t *testing.T) {
	draining := newFixture(t, func(d *Deps) { d.Ready = func(context.Context) error { return errors.New("draining") } })
	want(t, draining.do("GET", "/health", ""), 503, "takes no work")
}

func TestCORS(t *testing.T) {
	f := newFixture(t)
	w := f.do("OPTIONS", "/v2/sandboxes", "", "X-API-Key", "", "Origin", "https://a.example",
		"Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "x-api-key,content-type")
	want(t, w, 204)
	h := w.Header()
	if h.Get("Access-Control-Allow-Origin") != "*" || h.Get("Access-Control-Allow-Headers") != "x-api-key,content-type" || !strings.Contains(h.Get("Access-Control-Allow-Methods"), "POST") {
		t.Errorf("%v", h)
	}
	w = f.do("GET", "/v2/sandboxes", "", "Origin", "https://a.example")
	if !strings.Contains(w.Header().Get("Access-Control-Expose-Headers"), "X-Next-Token") {
		t.Errorf("%v", w.Header())
	}
	want(t, f.do("OPTIONS", "/v2/sandboxes", ""), 405) // no preflight
}

func TestNewNeedsItsParts(t *testing.T) {
	if h, err := New(Deps{}); err == nil || h != http.Handler(nil) {
		t.Error("an API without parts")
	}
}
