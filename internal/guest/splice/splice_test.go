package splice

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"hearth/internal/leaktest"
	"hearth/internal/tcptest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// TestJoin: what was read early comes first, and one way may end before the other.
func TestJoin(t *testing.T) {
	left, a := tcptest.Pair(t)
	right, b := tcptest.Pair(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		Join(End{a, io.MultiReader(strings.NewReader("early "), a)}, End{b, b})
	}()
	io.WriteString(left, "late")
	left.CloseWrite()
	if got, err := io.ReadAll(right); string(got) != "early late" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	io.WriteString(right, "answer")
	right.CloseWrite()
	if got, err := io.ReadAll(left); string(got) != "answer" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	<-done
}

// TestFailure: a way that fails ends the other.
func TestFailure(t *testing.T) {
	left, a := tcptest.Pair(t)
	right, b := tcptest.Pair(t)
	Join(End{a, failing{}}, End{b, b})
	for name, c := range map[string]net.Conn{"left": left, "right": right} {
		if _, err := io.ReadAll(c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("gone") }
