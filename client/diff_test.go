package client

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestDiffLimit: what the caller asks for is asked of the server, who refuses what
// cannot be; only 0 leaves it to the server.
func TestDiffLimit(t *testing.T) {
	var asked string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.Query().Get("limit")
		if _, err := w.Write([]byte(`{}`)); err != nil {
			t.Error(err)
		}
	}))
	defer srv.Close()
	c, err := New(Options{APIKey: "e2b_0", APIURL: srv.URL, SandboxURL: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	for limit, want := range map[int]string{0: "", 5: "5", -1: "-1"} {
		if _, err := c.Diff(t.Context(), "a", "b", limit); err != nil || asked != want {
			t.Errorf("limit %d: asked for %q, %v", limit, asked, err)
		}
	}
}
