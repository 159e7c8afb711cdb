package agentclient

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"hearth/internal/guest"
	"hearth/internal/hearth"
)

// TestInventory lets daemons answer all there is to answer.
func TestInventory(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer func(w http.ResponseWriter)
		says   string // empty: a list of one
	}{
		{"a list", func(w http.ResponseWriter) {
			out := guest.NewInventoryWriter(w)
			out.Add(hearth.Entry{Path: "/a", Kind: hearth.RegularFile, Size: 5})
			_ = out.End()
		}, ""},
		{"not all", func(w http.ResponseWriter) {
			out := guest.NewInventoryWriter(w)
			out.Skip()
			_ = out.End()
		}, "more files than the 500000"},
		{"cut short", func(w http.ResponseWriter) { io.WriteString(w, "HRTHFI01f") }, "is not one"},
		{"nonsense", func(w http.ResponseWriter) { io.WriteString(w, strings.Repeat("x", 1<<20)) }, "is not one"},
		{"an old daemon", func(w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) }, "older than this server"},
		{"in use", func(w http.ResponseWriter) { w.WriteHeader(http.StatusConflict) }, "answered 409"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == healthPath {
					w.WriteHeader(http.StatusNoContent)
					return
				}
				if r.Method != http.MethodPost || r.URL.Path != guest.InventoryPath || r.Header.Get(guest.ControlHeader) != "host" {
					t.Errorf("asked %s %s", r.Method, r.URL.Path)
				}
				tc.answer(w)
			}))
			defer srv.Close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			list, err := New(dialTo(srv.Listener.Addr().String()), "host").Inventory(ctx)
			if tc.says == "" {
				if err != nil || len(list) != 1 || list[0].Path != "/a" {
					t.Errorf("%+v, %v", list, err)
				}
			} else if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%+v, %v; want %q", list, err, tc.says)
			}
		})
	}
}
