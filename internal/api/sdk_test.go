package api

import (
	"context"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The official SDKs, unmodified, against this package over fakes: what they
// send is understood, and every error becomes the exception it should be.
// HEARTH_TEST_JS lists directories with a node_modules that holds npm e2b,
// HEARTH_TEST_PYTHON_SDK is a Python that can import e2b.
func TestOfficialSDKs(t *testing.T) {
	python := os.Getenv("HEARTH_TEST_PYTHON_SDK")
	dirs := filepath.SplitList(os.Getenv("HEARTH_TEST_JS"))
	if python == "" && len(dirs) == 0 {
		t.Skip("neither HEARTH_TEST_JS nor HEARTH_TEST_PYTHON_SDK is set; run `make test`")
	}
	for _, dir := range dirs {
		t.Run("js "+filepath.Base(dir), func(t *testing.T) {
			runSDK(t, "NODE_PATH="+filepath.Join(dir, "node_modules"), "node", "testdata/sdk.cjs")
			if cli := filepath.Join(dir, "node_modules", "@e2b", "cli", "dist", "index.js"); exists(cli) {
				t.Run("cli", func(t *testing.T) { runCLI(t, cli) })
			}
		})
	}
	if python != "" {
		t.Run("python", func(t *testing.T) { runSDK(t, "PYTHONUNBUFFERED=1", python, "testdata/sdk.py") })
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// runCLI lists, describes and kills with the official command line.
func runCLI(t *testing.T, cli string) {
	f := newFixture(t)
	id := f.create(`{"templateID":"base","metadata":{"a":"b"}}`)
	srv := httptest.NewServer(f.handler)
	defer srv.Close()
	for _, step := range []struct{ args, says string }{
		{"sandbox list", id},
		{"sandbox info " + id, "running"},
		{"sandbox metrics " + id, ""},
		{"template list", "base"},
		{"sandbox pause " + id, ""},
		{"sandbox list --state paused", id},
		{"sandbox resume " + id, ""},
		{"sandbox kill " + id, id},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		cmd := exec.CommandContext(ctx, "node", append([]string{cli}, strings.Fields(step.args)...)...)
		cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "NO_UPDATE_NOTIFIER=1",
			"E2B_API_KEY="+testKey, "E2B_API_URL="+srv.URL, "E2B_SANDBOX_URL="+srv.URL)
		out, err := cmd.CombinedOutput()
		cancel()
		if err != nil || !strings.Contains(string(out), step.says) {
			t.Errorf("%s: %v\n%s", step.args, err, out)
		}
	}
	if len(f.control.boxes) != 0 {
		t.Error("the sandbox is still there")
	}
}

func runSDK(t *testing.T, env string, args ...string) {
	t.Helper()
	f := newFixture(t)
	srv := httptest.NewServer(f.handler)
	defer srv.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env, "E2B_API_KEY="+testKey, "E2B_API_URL="+srv.URL, "E2B_SANDBOX_URL="+srv.URL)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), "ok") {
		t.Errorf("%v\n%s\n%s", err, out, f.log)
	}
}
