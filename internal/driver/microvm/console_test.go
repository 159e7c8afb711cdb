package microvm

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// endless is a guest that writes to its console as fast as it is read.
type endless struct{ read, left int }

func (e *endless) Read(p []byte) (int, error) {
	if e.read >= e.left {
		return 0, io.EOF
	}
	e.read += len(p)
	return copy(p, strings.Repeat("x", len(p))), nil
}

func TestConsoleIsReadNoFasterThanItMay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c Console
		flood := &endless{left: 64 << 20}
		began := time.Now()
		if err := c.Follow(flood); err != nil {
			t.Error(err)
		}
		if most, took := 64<<20/consolePiece*consolePause, time.Since(began); took < most-consolePause || took > most+consolePause {
			t.Errorf("64 MiB were read in %s, want about %s", took, most)
		}
	})
}

func TestConsoleEndsWithWhatItReads(t *testing.T) {
	var c Console
	broken := errors.New("broken")
	if err := c.Follow(io.MultiReader(strings.NewReader("last words\n"), errReader{broken})); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	if c.Tail(100) != "last words\n" {
		t.Errorf("%q", c.Tail(100))
	}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }
