package daemon

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestInterpreterWantsTheToken(t *testing.T) {
	ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	d := &Daemon{state: newState(nil)}
	d.state.set(identity{token: "secret"})
	for _, tc := range []struct {
		name, method, target, header, value string
		guard                               func(http.Handler) http.Handler
		want                                int
	}{
		{"code without", "POST", "/execute", "", "", d.cells, 401},
		{"code with a wrong one", "POST", "/execute", tokenHeader, "secre", d.cells, 401},
		{"code with", "POST", "/execute", tokenHeader, "secret", d.cells, 418},
		{"preflight", "OPTIONS", "/execute", "", "", d.cells, 418},
		{"health", "GET", "/health", "", "", d.cells, 418},
		{"notebook without", "GET", "/api", "", "", d.notebook, 401},
		{"notebook, header", "GET", "/api", tokenHeader, "secret", d.notebook, 418},
		{"notebook, query", "GET", "/api?token=secret", "", "", d.notebook, 418},
		{"notebook, wrong query", "GET", "/api?token=x", "", "", d.notebook, 401},
		{"notebook, Jupyter's header", "GET", "/api", "Authorization", "token secret", d.notebook, 418},
		{"notebook, bearer", "GET", "/api", "Authorization", "Bearer secret", d.notebook, 418},
		{"notebook, basic", "GET", "/api", "Authorization", "Basic secret", d.notebook, 401},
		{"notebook, cookie", "GET", "/api", "Cookie", notebookCookie + "=secret", d.notebook, 418},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := httptest.NewRequest(tc.method, tc.target, nil)
			if tc.header != "" {
				r.Header.Set(tc.header, tc.value)
			}
			w := httptest.NewRecorder()
			tc.guard(ok).ServeHTTP(w, r)
			if w.Code != tc.want {
				t.Errorf("got %d, want %d", w.Code, tc.want)
			}
		})
	}
	d.state.set(identity{sealed: true})
	for name, guard := range map[string]func(http.Handler) http.Handler{"cells": d.cells, "notebook": d.notebook} {
		w := httptest.NewRecorder()
		guard(ok).ServeHTTP(w, httptest.NewRequest("GET", "/health", nil))
		if w.Code != http.StatusServiceUnavailable {
			t.Errorf("%s while sealed: got %d, want 503", name, w.Code)
		}
	}
}
