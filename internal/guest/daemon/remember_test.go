package daemon

import (
	"errors"
	"log/slog"
	"testing"

	"hearth/internal/guest"
	"hearth/internal/guest/process/reap"
)

// note is a Memory in this process.
type note struct {
	body []byte
	err  error
}

func (n *note) Save(b []byte) error {
	if n.body = nil; n.err == nil {
		n.body = b
	}
	return n.err
}
func (n *note) Load() ([]byte, error) { return n.body, nil }
func (n *note) Forget() error         { n.body = nil; return nil }

// reborn replaces the fixture's daemon as a keeper does.
func (f *fixture) reborn(m Memory) *fixture {
	f.Helper()
	return serveWith(f.T, Options{Reaper: f.reaper, Log: slog.New(slog.DiscardHandler), Memory: m})
}

// TestReborn: a daemon that was killed is the same to its users and to its host
// when it has been started again, sealed if it was sealed, and nobody's if it was.
func TestReborn(t *testing.T) {
	m := &note{}
	reaper := reap.New(reap.Children)
	t.Cleanup(reaper.Close)
	f := serveWith(t, Options{Reaper: reaper, Log: slog.New(slog.DiscardHandler), Memory: m}).reborn(m)
	f.want(503, "GET", "/envs", "")
	f.want(204, "POST", "/init", initBody(nil))
	f = f.reborn(m)
	f.want(401, "GET", "/envs", "")
	if got := f.want(200, "GET", "/envs", "", tokenHeader, "secret"); got != `{"A":"b","E2B_SANDBOX":"true","E2B_SANDBOX_ID":"i1","E2B_TEMPLATE_ID":"t1"}`+"\n" {
		t.Errorf("the environment is %s", got)
	}
	f.want(401, "POST", "/init", initBody(nil), guest.ControlHeader, "guessed")

	f.want(204, "POST", "/quiesce", `{}`, guest.ControlHeader, "host")
	f = f.reborn(m)
	f.want(503, "GET", "/envs", "", tokenHeader, "secret")
	f.want(401, "POST", "/init", initBody(nil))
	fork := initBody(func(r *guest.InitRequest) { r.Control, r.Token = "other", "forked" })
	f.want(204, "POST", "/init", fork, guest.ControlHeader, "host")
	f = f.reborn(m)
	f.want(401, "GET", "/envs", "", tokenHeader, "secret")
	f.want(200, "GET", "/envs", "", tokenHeader, "forked")

	f.want(204, "POST", "/quiesce", `{"forget":true}`, guest.ControlHeader, "other")
	if m.body != nil {
		t.Errorf("after Forget it still says %s", m.body)
	}
	f = f.reborn(m)
	f.want(204, "POST", "/init", initBody(nil)) // nobody has claimed it
}

// TestNothingRemembered: what could not be saved is not what was before.
func TestNothingRemembered(t *testing.T) {
	m := &note{}
	reaper := reap.New(reap.Children)
	t.Cleanup(reaper.Close)
	f := serveWith(t, Options{Reaper: reaper, Log: slog.New(slog.DiscardHandler), Memory: m})
	f.want(204, "POST", "/init", initBody(nil))
	m.err = errors.New("no memory")
	f.want(204, "POST", "/quiesce", `{}`, guest.ControlHeader, "host")
	f.want(204, "POST", "/init", initBody(func(r *guest.InitRequest) { r.Token = "forked" }), guest.ControlHeader, "host")
	f.want(200, "GET", "/envs", "", tokenHeader, "forked")
	f = f.reborn(m)
	f.want(503, "GET", "/envs", "", tokenHeader, "secret")
	m.body = []byte(`{"control":`)
	f = f.reborn(m)
	f.want(503, "GET", "/envs", "", tokenHeader, "secret")
}
