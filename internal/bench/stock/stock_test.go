package stock

import (
	"strings"
	"testing"
)

func TestQuietSaysWhatWasWrong(t *testing.T) {
	err := Quiet(t.Context(), "sh", "-c", "echo no such luck >&2; exit 3")
	if err == nil || !strings.Contains(err.Error(), "no such luck") || !strings.Contains(err.Error(), "3") {
		t.Errorf("got %v", err)
	}
	if err := Quiet(t.Context(), "true"); err != nil {
		t.Error(err)
	}
}
