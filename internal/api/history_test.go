package api

import (
	"net/http"
	"testing"

	"hearth/internal/control/wish"
)

func TestHistoryOfACreate(t *testing.T) {
	for _, tc := range []struct {
		name, body, header string
		want               int64
		refused            string
	}{
		{name: "none"},
		{name: "the default", body: `,"history":{}`, want: wish.DefaultHistory},
		{name: "a budget", body: `,"history":{"maxBytes":67108864}`, want: wish.LeastHistory},
		{name: "too little", body: `,"history":{"maxBytes":67108863}`, refused: "history.maxBytes must be at least 67108864"},
		{name: "too much", body: `,"history":{"maxBytes":1099511627777}`, refused: "history.maxBytes must be at most 1099511627776"},
		{name: "no object", body: `,"history":true`, refused: "history must be an object"},
		{name: "header", header: "on", want: wish.DefaultHistory},
		{name: "budget in the header", header: "67108864", want: wish.LeastHistory},
		{name: "too little in the header", header: "1", refused: "X-Hearth-History must be within 67108864 and 1099511627776 bytes"},
		{name: "nothing in the header", header: "0", refused: "X-Hearth-History must be within"},
		{name: "too much in the header", header: "9999999999999", refused: "X-Hearth-History must be within"},
		{name: "nonsense in the header", header: "yes", refused: "X-Hearth-History must be on, or a number of bytes"},
		{name: "both", body: `,"history":{}`, header: "on", refused: "ask for one"},
	} {
		for _, path := range []string{"/sandboxes", "/v2/sandboxes"} {
			t.Run(tc.name+path, func(t *testing.T) {
				f := newFixture(t)
				var header []string
				if tc.header != "" {
					header = []string{"X-Hearth-History", tc.header}
				}
				w := f.do("POST", path, `{"templateID":"base","metadata":{"a":"b"}`+tc.body+`}`, header...)
				if tc.refused != "" {
					want(t, w, http.StatusBadRequest, tc.refused)
					return
				}
				want(t, w, http.StatusCreated)
				if got := f.control.last; got.Lifecycle.History != tc.want || len(got.Metadata) != 1 {
					t.Errorf("the control plane was asked for %+v, want %d", got, tc.want)
				}
			})
		}
	}
}
