package console

import (
	"strings"
	"testing"
)

func TestConsoleCannotGrow(t *testing.T) {
	c, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n, err := c.stderr.Write(make([]byte, 2*size)); err == nil || n > size {
		t.Errorf("wrote %d bytes: %v", n, err)
	}
	if _, err := c.stderr.WriteAt([]byte("end"), 0); err != nil {
		t.Fatal(err)
	}
	if got := c.Tail(); !strings.Contains(got, "end") || len(got) > 5*tailBytes {
		t.Errorf("a tail of %d bytes: %.100q", len(got), got)
	}
}

func TestNullDevice(t *testing.T) {
	for _, c := range []*Console{nil, {}} {
		stdout, stderr := c.Output()
		if stdout != nil || stderr != nil || c.Tail() != "" {
			t.Errorf("%v: %v, %v, %q", c, stdout, stderr, c.Tail())
		}
		c.Close()
	}
}
