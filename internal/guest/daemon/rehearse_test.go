package daemon

import (
	"net/http"
	"strings"
	"testing"

	"hearth/internal/guest"
)

// TestRehearse: whoever asks, it happens while the daemon is nobody's and never
// after, sealed or not.
func TestRehearse(t *testing.T) {
	f := serve(t)
	f.want(204, "POST", guest.RehearsePath, "")
	f.want(204, "POST", guest.RehearsePath, "")
	f.want(204, "POST", "/init", initBody(nil))
	for _, header := range []string{"", "host"} {
		f.want(401, "POST", guest.RehearsePath, "", guest.ControlHeader, header, tokenHeader, "secret")
	}
	f.want(204, "POST", "/quiesce", "{}", guest.ControlHeader, "host")
	f.want(401, "POST", guest.RehearsePath, "", guest.ControlHeader, "host")
	f.want(204, "POST", "/init", initBody(nil), guest.ControlHeader, "host")
	f.want(204, "POST", "/quiesce", `{"forget":true}`, guest.ControlHeader, "host")
	f.want(204, "POST", guest.RehearsePath, "")
	f.want(503, "GET", "/envs", "", tokenHeader, "secret")
}

// TestRehearsalEnds: the command has run, and none runs on.
func TestRehearsalEnds(t *testing.T) {
	f := serve(t)
	f.want(204, "POST", guest.RehearsePath, "")
	f.want(204, "POST", "/init", initBody(nil))
	answer := f.want(http.StatusOK, "POST", "/process.Process/List", "{}", "Content-Type", "application/json", tokenHeader, "secret")
	if strings.Contains(answer, "bash") {
		t.Errorf("the rehearsal's command runs on: %s", answer)
	}
}
