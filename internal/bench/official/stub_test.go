package official

import (
	"context"
	"strings"
	"testing"
	"time"

	"hearth/client"
)

// TestStub holds the stub's hand-written messages against a real client.
func TestStub(t *testing.T) {
	s, err := NewStub()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c, err := client.New(client.Options{APIKey: "e2b_" + strings.Repeat("0", 40), APIURL: s.URL, SandboxURL: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	sb, err := c.Create(ctx, client.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	res, err := sb.Commands.Run(ctx, "echo 42", client.RunOptions{})
	if err != nil || res.Stdout != "42\n" || res.ExitCode != 0 {
		t.Errorf("got %+v, %v", res, err)
	}
	if err := sb.Kill(ctx); err != nil {
		t.Error(err)
	}
}
