package stream

import (
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"hearth/internal/hearth"
)

// conn is a connection that notes its deadlines.
type conn struct {
	*httptest.ResponseRecorder
	read, write []time.Time
}

func (c *conn) SetReadDeadline(t time.Time) error  { c.read = append(c.read, t); return nil }
func (c *conn) SetWriteDeadline(t time.Time) error { c.write = append(c.write, t); return nil }

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestReader(t *testing.T) {
	for _, tc := range []struct {
		body string
		most int64
		err  hearth.Kind
	}{{"abcd", 4, ""}, {"abcd", 5, ""}, {"abcd", 3, hearth.InvalidArgument}, {"", 0, ""}} {
		c := &conn{ResponseRecorder: httptest.NewRecorder()}
		got, err := io.ReadAll(NewReader(c, io.NopCloser(strings.NewReader(tc.body)), tc.most))
		if tc.err == "" && (err != nil || string(got) != tc.body) || tc.err != "" && hearth.KindOf(err) != tc.err {
			t.Errorf("%q with at most %d: %q, %v", tc.body, tc.most, got, err)
		}
		if len(c.read) == 0 {
			t.Error("the reads have no deadline")
		}
	}
	c := &conn{ResponseRecorder: httptest.NewRecorder()}
	if _, err := NewReader(c, io.NopCloser(failing{os.ErrDeadlineExceeded}), 9).Read(make([]byte, 1)); hearth.KindOf(err) != hearth.DeadlineExceeded {
		t.Errorf("a stalled body: %v", err)
	}
	other := errors.New("other")
	if _, err := NewReader(c, io.NopCloser(failing{other}), 9).Read(make([]byte, 1)); !errors.Is(err, other) {
		t.Errorf("got %v", err)
	}
}

func TestWriter(t *testing.T) {
	c := &conn{ResponseRecorder: httptest.NewRecorder()}
	w := NewWriter(c, "text/x")
	if w.Begun() || c.Header().Get("Content-Type") != "" {
		t.Error("begun before the first byte")
	}
	for range 2 {
		if _, err := io.WriteString(w, "ab"); err != nil {
			t.Fatal(err)
		}
	}
	w.Done()
	if !w.Begun() || c.Body.String() != "abab" || c.Header().Get("Content-Type") != "text/x" || c.Code != 200 {
		t.Errorf("sent %d %v %q", c.Code, c.Header(), c.Body)
	}
	if len(c.write) != 3 || c.write[0].IsZero() || !c.write[2].IsZero() {
		t.Errorf("deadlines %v", c.write)
	}
}
