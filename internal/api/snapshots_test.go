package api

import (
	"strings"
	"testing"
)

// TestSnapshotCalls walks through the calls as the SDKs send them.
func TestSnapshotCalls(t *testing.T) {
	f := newFixture(t)
	id := f.create(`{"templateID":"base"}`)
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"POST", "/sandboxes/" + id + "/snapshots", `{}`, 201, `"names":[],"sandboxID":"` + id + `","snapshotID":"s00000000000000000000:default"`},
		{"POST", "/sandboxes/" + id + "/snapshots", ``, 201, `"s00000000000000000001:default"`},
		{"POST", "/sandboxes/" + id + "/snapshots", `{"name":"golden"}`, 201, `{"bytes":7,"createdAt":"`},
		{"POST", "/sandboxes/" + id + "/snapshots", `{"name":"golden:v2"}`, 201, `/golden:v2"`},
		{"POST", "/sandboxes/" + id + "/snapshots", `{"name":"else/golden"}`, 400, "namespace 'else' must match your team"},
		{"POST", "/sandboxes/" + id + "/snapshots", `{"name":"Not A Name!"}`, 400, `"name must be [team/]name[:tag]`},
		{"POST", "/sandboxes/" + id + "/snapshots", `{"name":"../x"}`, 400, "not '../x'"},
		{"GET", "/snapshots?name=..%2Fx", "", 400, `"name must be [team/]name[:tag]`},
		{"GET", "/v2/snapshots/..%2Fx/export", "", 400, `"snapshotID must be [team/]name[:tag]`},
		{"POST", "/v2/sandboxes/" + id + "/rollback", `{"snapshotID":"../x"}`, 400, `"snapshotID must be [team/]name[:tag]`},
		{"POST", "/sandboxes/" + id + "/snapshots", `{"name":7}`, 400, "name"},
		{"POST", "/sandboxes/" + id + "/snapshots", `{"memory":true,"name":"golden:v2"}`, 201, `/golden:v2"`},
		{"POST", "/sandboxes/" + id + "/snapshots", `{"memory":false}`, 400, "memory=false (a snapshot of files alone) is not supported"},
		{"POST", "/sandboxes/inone/snapshots", `{}`, 404, "doesn't exist"},
		{"GET", "/snapshots?sandboxID=" + id, "", 200, `golden:v2`},
		{"GET", "/snapshots?sandboxID=" + id, "", 200, `"names":["first/golden"],"sandboxID":"` + id + `","snapshotID":"first/golden:default"`},
		{"GET", "/snapshots?limit=1", "", 200, `"names":[],"sandboxID":"` + id + `","snapshotID":"s00000000000000000000:default"`},
		{"GET", "/snapshots?limit=0", "", 400, "limit"},
		{"GET", "/snapshots?sandboxID=..%2F", "", 400, "Invalid sandbox ID: it must be 1 to 64 lower-case letters and digits"},
		{"POST", "/sandboxes/" + id + "/fork", `{"count":2,"timeout":60}`, 201, `"error":{"code":429,"message":"no room"}`},
		{"POST", "/sandboxes/" + id + "/fork", `{"count":0}`, 400, "count"},
		{"POST", "/sandboxes/" + id + "/fork", `{"count":101}`, 400, "count"},
		{"POST", "/v2/sandboxes/" + id + "/rollback", `{"snapshotID":"s00000000000000000000:default"}`, 200, `"sandboxID":"` + id},
		{"POST", "/v2/sandboxes/" + id + "/rollback", `{}`, 400, "either snapshotID or step"},
		{"POST", "/v2/sandboxes/" + id + "/rollback", `{"step":3,"snapshotID":"s1"}`, 400, "either snapshotID or step"},
		{"POST", "/v2/sandboxes/" + id + "/rollback", `{"step":0}`, 400, "step must be at least 1"},
		{"POST", "/v2/sandboxes/" + id + "/rollback", `{"step":7}`, 200, `"sandboxID":"` + id},
		{"POST", "/sandboxes/" + id + "/snapshots", `{"step":2,"name":"good"}`, 201, `"first/good:default"`},
		{"GET", "/v2/sandboxes/" + id + "/history", "", 200, `"bytes":9,"head":3,"maxBytes":1073741824,"steps":[{"bytes":7,`},
		{"GET", "/v2/sandboxes/" + id + "/history", "", 200, `"error":"full","kept":false,"label":"dd","parent":1,"step":2}`},
		{"GET", "/v2/sandboxes/inone/history", "", 404, "doesn't exist"},
		{"GET", "/v2/sandboxes/" + id + "/tree", "", 200, `"head":"s00000000000000000000"`},
		{"GET", "/v2/sandboxes/" + id + "/tree", "", 200, `{"addedBytes":0,"bytes":`},
		{"GET", "/v2/sandboxes/" + id + "/tree", "", 200, `"wholeBytes":5}`},
		{"DELETE", "/templates/s00000000000000000000%3Adefault", "", 204, ""},
		{"DELETE", "/templates/s00000000000000000000%3Adefault", "", 404, "not found"},
	} {
		got := f.do(c.method, c.path, c.body)
		if got.Code != c.status || !strings.Contains(got.Body.String(), c.want) {
			t.Errorf("%s %s %s: %d %s; want %d with %s", c.method, c.path, c.body, got.Code, got.Body, c.status, c.want)
		}
		if strings.HasSuffix(c.path, "?limit=1") && got.Header().Get("X-Next-Token") == "" {
			t.Error("a page that is not the last has no X-Next-Token")
		}
	}
}

// TestPauseWithoutMemory: the wish arrives, and what contradicts it is refused.
func TestPauseWithoutMemory(t *testing.T) {
	f := newFixture(t)
	id := f.create(`{"templateID":"base","autoPause":true,"autoPauseMemory":false}`)
	if !f.control.last.Lifecycle.PauseFiles {
		t.Error("autoPauseMemory=false got lost")
	}
	want(t, f.do("POST", "/sandboxes/"+id+"/pause", `{"memory":false}`), 204)
	if !f.control.filesOnly {
		t.Error("memory=false got lost")
	}
	want(t, f.do("POST", "/v2/sandboxes", `{"templateID":"base","autoPause":true,"autoPauseMemory":false,"autoResume":{"enabled":true}}`), 400, "cannot be combined")
}
