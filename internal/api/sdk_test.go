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
		})
	}
	if python != "" {
		t.Run("python", func(t *testing.T) { runSDK(t, "PYTHONUNBUFFERED=1", python, "testdata/sdk.py") })
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
