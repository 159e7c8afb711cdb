package e2e

import (
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"testing"
	"time"

	"hearth/client"
)

// TestDashboard signs in as a person does and looks at a sandbox: the pages say
// what isolates it, in the API's words, and nothing before one has signed in.
func TestDashboard(t *testing.T) {
	s := newBaseServer(t)
	const evil = "<script>alert(1)</script>"
	sb := s.sandbox(t, client.CreateOptions{Driver: "gvisor", Metadata: map[string]string{"note": evil}})
	info, err := sb.Info(t.Context())
	must(t, err)
	if info.Isolation != "a kernel in user space; no virtual machine" {
		t.Fatalf("isolation: %q", info.Isolation)
	}
	jar, err := cookiejar.New(nil)
	must(t, err)
	browser := &http.Client{Jar: jar}
	dash := s.key("E2B_API_URL") + "/dash/"
	page := func(resp *http.Response, err error) (where, body string) {
		t.Helper()
		must(t, err)
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		must(t, err)
		return resp.Request.URL.Path, string(raw)
	}
	for _, path := range []string{"", "sandboxes/" + sb.ID} {
		if where, body := page(browser.Get(dash + path)); where != "/dash/sign-in" || strings.Contains(body, sb.ID) {
			t.Errorf("a stranger gets %s:\n%s", where, body)
		}
	}
	if where, body := page(browser.PostForm(dash+"sign-in", url.Values{"key": {s.key("E2B_API_KEY")}})); where != "/dash/" || !strings.Contains(body, sb.ID) || !strings.Contains(body, info.Isolation) {
		t.Errorf("after signing in, %s:\n%s", where, body)
	}
	_, body := page(browser.Get(dash + "sandboxes/" + sb.ID))
	for _, want := range []string{info.Isolation, "gvisor", "&lt;script&gt;"} {
		if !strings.Contains(body, want) {
			t.Errorf("the sandbox's page has no %q:\n%s", want, body)
		}
	}
	if strings.Contains(body, evil) {
		t.Errorf("metadata is not escaped:\n%s", body)
	}
	// A session is nothing to the API.
	resp, err := browser.Get(s.key("E2B_API_URL") + "/sandboxes/" + sb.ID)
	if page(resp, err); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("the API with a session alone: %s", resp.Status)
	}
	// What a sandbox serves on the API's host name is no page of that name.
	resp, err = browser.Get(sb.Files.DownloadURL("/etc/passwd", time.Minute))
	if _, body := page(resp, err); resp.StatusCode != http.StatusOK || !strings.HasPrefix(body, "root:") || resp.Header.Get("Content-Security-Policy") != "sandbox" {
		t.Errorf("a signed URL: %s %v\n%s", resp.Status, resp.Header, body)
	}
	page(browser.PostForm(dash+"sign-out", nil))
	if where, _ := page(browser.Get(dash)); where != "/dash/sign-in" {
		t.Errorf("after signing out: %s", where)
	}
}
