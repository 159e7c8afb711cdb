package process

import (
	"bytes"
	"os/user"
	"testing"

	"golang.org/x/sys/unix"

	"hearth/internal/guest/process/account"
	"hearth/internal/guest/process/reap"
)

func TestHidden(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	who, err := account.Lookup(me.Username)
	if err != nil {
		t.Fatal(err)
	}
	r := reap.New(reap.Children)
	defer r.Close()
	var out bytes.Buffer
	h := Hidden{Who: who, Argv: []string{"sh", "-c", "echo $X; echo err >&2; sleep 1000 & exit 3"}, Env: map[string]string{"X": "y"}, Dir: "/", Output: &out}
	p, err := h.Start(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err == nil || err.Error() != "exit status 3" || out.String() != "y\nerr\n" {
		t.Errorf("got %v, %q", err, out.String())
	}
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Errorf("the group's remains: %v", err)
	}
	h.Dir = "/nonexistent"
	if _, err := h.Start(r); err == nil {
		t.Error("started in a missing directory")
	}
}
