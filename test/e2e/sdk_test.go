package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestOfficialSDKs runs the scripts in js/ and py/ against one server.
func TestOfficialSDKs(t *testing.T) {
	js := os.Getenv("HEARTH_TEST_JS")
	py := os.Getenv("HEARTH_TEST_PYTHON_SDK")
	binary(t)
	if js == "" && py == "" {
		t.Skip("neither HEARTH_TEST_JS nor HEARTH_TEST_PYTHON_SDK is set; run `make test`")
	}
	s := newServer(t)
	for dir := range strings.SplitSeq(js, ":") {
		scripts, _ := filepath.Glob(filepath.Join(dir, "*.test.mjs"))
		if len(scripts) == 0 {
			t.Errorf("no scripts in %s", dir)
		}
		for _, script := range scripts {
			t.Run(filepath.Base(dir)+"/"+strings.TrimSuffix(filepath.Base(script), ".test.mjs"), func(t *testing.T) {
				s.run(t, 10*time.Minute, dir, "node", "--test", "--test-force-exit", "--test-reporter=spec", filepath.Base(script))
			})
		}
	}
	scripts, _ := filepath.Glob("py/test_*.py")
	for _, script := range scripts {
		t.Run("python/"+strings.TrimSuffix(strings.TrimPrefix(filepath.Base(script), "test_"), ".py"), func(t *testing.T) {
			if py == "" {
				t.Skip("HEARTH_TEST_PYTHON_SDK is not set")
			}
			s.run(t, 10*time.Minute, "py", py, "-m", "unittest", "-v", strings.TrimSuffix(filepath.Base(script), ".py"))
		})
	}
}
