package secret_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/node/agent/secret"
)

func TestGiven(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	if got, err := secret.Given(path); got != "" || err != nil {
		t.Errorf("none: %q, %v", got, err)
	}
	good := secret.Key("key").Of("sandbox")
	for text, ok := range map[string]bool{
		good: true, "": false, good + "\n": false, good[:62]: false, strings.Repeat("x", 64): false, strings.Repeat("a", 1<<20): false,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := secret.Given(path); ok != (err == nil) || ok && got != good {
			t.Errorf("%.70q: %q, %v", text, got, err)
		}
	}
}
