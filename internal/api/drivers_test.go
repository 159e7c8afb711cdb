package api

import (
	"net/http"
	"strings"
	"testing"

	"hearth/internal/hearth"
)

func TestDriverOfACreate(t *testing.T) {
	for _, tc := range []struct {
		name, body, header, want string
		refused                  string
	}{
		{name: "none"},
		{name: "field", body: `,"driver":"qemu"`, want: "qemu"},
		{name: "header", header: "qemu", want: "qemu"},
		{name: "both, the same", body: `,"driver":"qemu"`, header: "qemu", want: "qemu"},
		{name: "both, different", body: `,"driver":"qemu"`, header: "gvisor", refused: "X-Hearth-Driver"},
		{name: "not a string", body: `,"driver":7`, refused: "driver"},
		{name: "not a name", body: `,"driver":"../x"`, refused: "driver"},
		{name: "empty", body: `,"driver":""`, refused: "driver"},
		{name: "long", body: `,"driver":"` + strings.Repeat("x", 41) + `"`, refused: "driver"},
		{name: "header that is no name", header: "QEMU", refused: "X-Hearth-Driver"},
	} {
		for _, path := range []string{"/sandboxes", "/v2/sandboxes"} {
			t.Run(tc.name+path, func(t *testing.T) {
				f := newFixture(t)
				var header []string
				if tc.header != "" {
					header = []string{"X-Hearth-Driver", tc.header}
				}
				w := f.do("POST", path, `{"templateID":"base"`+tc.body+`}`, header...)
				if tc.refused != "" {
					want(t, w, http.StatusBadRequest, tc.refused)
					return
				}
				want(t, w, http.StatusCreated)
				if got := f.control.last.Driver; got != tc.want {
					t.Errorf("the control plane was asked for %q, want %q", got, tc.want)
				}
			})
		}
	}
}

// TestIsolationIsTold in the words that the vocabulary has for it.
func TestIsolationIsTold(t *testing.T) {
	f := newFixture(t)
	id := f.create(`{"templateID":"base"}`)
	f.control.boxes[hearth.SandboxID(id)].Driver = "qemu"
	f.control.boxes[hearth.SandboxID(id)].Isolation = hearth.EmulatedVM
	for _, path := range []string{"/sandboxes/" + id, "/v2/sandboxes", "/sandboxes"} {
		want(t, f.do("GET", path, ""), http.StatusOK, `"driver":"qemu"`, `"isolation":"a virtual machine emulated in software; slow"`)
	}
}
