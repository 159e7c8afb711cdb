package api

import (
	"encoding/json"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/hearth"
)

// ids returns the sandboxes of a list answer.
func ids(t *testing.T, w *httptest.ResponseRecorder) []string {
	t.Helper()
	want(t, w, 200)
	var list []struct{ SandboxID, State string }
	if err := json.Unmarshal(w.Body.Bytes(), &list); err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, s := range list {
		out = append(out, s.SandboxID)
	}
	return out
}

func TestListPages(t *testing.T) {
	f := newFixture(t)
	var made []string
	for range 5 {
		made = append(made, f.create(`{"templateID":"base"}`))
	}
	w := f.do("GET", "/v2/sandboxes?limit=2&order=asc", "")
	if diff := cmp.Diff(made[:2], ids(t, w)); diff != "" {
		t.Error(diff)
	}
	if got := w.Header().Get("X-Total-Running"); got != "5" {
		t.Errorf("X-Total-Running %q", got)
	}
	next := w.Header().Get("X-Next-Token")
	w = f.do("GET", "/v2/sandboxes?limit=3&order=asc&nextToken="+next, "")
	if diff := cmp.Diff(made[2:], ids(t, w)); diff != "" {
		t.Error(diff)
	}
	if _, there := w.Header()["X-Next-Token"]; there {
		t.Error("the last page has X-Next-Token")
	}
	if got := ids(t, f.do("GET", "/v2/sandboxes", "")); got[0] != made[4] {
		t.Errorf("newest is not first: %v", got)
	}
	want(t, f.do("GET", "/v2/sandboxes?nextToken=junk", ""), 400, "Invalid next token: it must be the one that came with the page before")
	want(t, f.do("GET", "/v2/sandboxes?nextToken=", ""), 200)
}

func TestListUnpaged(t *testing.T) {
	f := newFixture(t)
	for range pageSize + 3 {
		f.create(`{"templateID":"base"}`)
	}
	if got := len(ids(t, f.do("GET", "/sandboxes", ""))); got != pageSize+3 {
		t.Errorf("%d listed", got)
	}
}

func TestListFilters(t *testing.T) {
	f := newFixture(t)
	a := f.create(`{"templateID":"base","metadata":{"user":"a b&c=d","env":"ü"}}`)
	b := f.create(`{"templateID":"base","metadata":{"user":"b"}}`)
	want(t, f.do("POST", "/sandboxes/"+b+"/pause", ""), 204)
	sdk := func(pairs ...string) string { // as both SDKs encode it
		q := url.Values{}
		for i := 0; i < len(pairs); i += 2 {
			q.Set(url.PathEscape(pairs[i]), strings.ReplaceAll(url.QueryEscape(pairs[i+1]), "+", "%20"))
		}
		return "metadata=" + url.QueryEscape(q.Encode())
	}
	tests := []struct {
		query string
		want  []string
		total string
	}{
		{"", []string{b, a}, "1"},
		{"state=running", []string{a}, "1"},
		{"state=paused", []string{b}, ""},
		{"state=running,paused", []string{b, a}, "1"},
		{sdk("user", "a b&c=d"), []string{a}, "1"},
		{sdk("user", "a b&c=d", "env", "ü"), []string{a}, "1"},
		{sdk("user", "a b&c=d", "env", "u"), []string{}, "0"},
		{"metadata=user%3Db", []string{b}, "0"},
		{"template=base", []string{b, a}, "1"},
		{"template=tpl00000000000000000", []string{b, a}, "1"},
		{"template=first%2Fbase%3Adefault", []string{b, a}, "1"},
		{"template=empty", []string{}, "0"},
		{"template=unknown", []string{}, ""},
		{"template=hidden", []string{}, ""},
		{"startedAfter=" + url.QueryEscape("2026-11-22T11:00:02+01:00"), []string{b}, "0"},
		{"somethingElse=1", []string{b, a}, "1"},
	}
	for _, tt := range tests {
		t.Run(tt.query, func(t *testing.T) {
			w := f.do("GET", "/v2/sandboxes?"+tt.query, "")
			if diff := cmp.Diff(tt.want, ids(t, w)); diff != "" {
				t.Error(diff)
			}
			if got := w.Header().Get("X-Total-Running"); got != tt.total {
				t.Errorf("X-Total-Running %q, want %q", got, tt.total)
			}
		})
	}
}

func TestListedGolden(t *testing.T) {
	f := newFixture(t)
	f.create(`{"templateID":"base"}`)
	golden := `[{"templateID":"tpl00000000000000000","alias":"base","sandboxID":"i00000000000000000001","clientID":"6532622b",
		"startedAt":"2026-11-22T10:00:01Z","endAt":"2026-11-22T10:05:01Z","cpuCount":2,"memoryMB":512,"diskSizeMB":1024,
		"metadata":{},"state":"running","envdVersion":"0.6.13"}]`
	sameJSON(t, golden, f.do("GET", "/v2/sandboxes", "").Body.String())
	sameJSON(t, golden, f.do("GET", "/sandboxes", "").Body.String())
}

func TestLatestMetrics(t *testing.T) {
	f := newFixture(t)
	id := f.create(`{"templateID":"base"}`)
	w := f.do("GET", "/sandboxes/metrics?sandbox_ids="+id+",iunknown", "")
	want(t, w, 200)
	sameJSON(t, `{"sandboxes":{"`+id+`":{"timestamp":"2026-11-22T10:00:05Z","timestampUnix":1795341605,"cpuCount":2,"cpuUsedPct":2.5,
		"memUsed":11534336,"memTotal":536870912,"memCache":0,"diskUsed":1048576,"diskTotal":1073741824}}}`, w.Body.String())
	want(t, f.do("GET", "/sandboxes/metrics", ""), 400, "sandbox_ids is required")
	want(t, f.do("GET", "/sandboxes/metrics?sandbox_ids="+strings.Repeat("a,", 100)+"a", ""), 400, "sandbox_ids must have at most 100 entries")
}

func TestTemplates(t *testing.T) {
	f := newFixture(t)
	golden := `{"templateID":"tpl00000000000000000","buildID":"00000000-0000-4000-8000-000000000000","cpuCount":2,"memoryMB":512,"diskSizeMB":1024,
		"public":false,"aliases":["base"],"names":["first/base"],"createdAt":"2026-11-22T10:00:00Z","updatedAt":"2026-11-22T10:00:00Z",
		"createdBy":null,"lastSpawnedAt":null,"spawnCount":0,"buildCount":1,"envdVersion":"0.6.13","buildStatus":"ready"}`
	var list []json.RawMessage
	w := f.do("GET", "/templates?teamID=team1", "")
	want(t, w, 200)
	if err := json.Unmarshal(w.Body.Bytes(), &list); err != nil || len(list) != 2 {
		t.Fatalf("%v: %s", err, w.Body)
	}
	sameJSON(t, golden, string(list[0]))
	want(t, f.do("GET", "/templates?teamID=team2", ""), 403, "teamID")

	w = f.do("GET", "/v2/templates?limit=1", "")
	want(t, w, 200, `"first/base"`)
	w = f.do("GET", "/v2/templates?limit=1&nextToken="+w.Header().Get("X-Next-Token"), "")
	want(t, w, 200, `"first/empty"`, `"buildStatus":"error"`)
	if _, there := w.Header()["X-Next-Token"]; there {
		t.Error("the last page has X-Next-Token")
	}

	w = f.do("GET", "/templates/first%2Fbase%3Adefault", "")
	want(t, w, 200)
	sameJSON(t, strings.TrimSuffix(golden, "}")+`,"builds":[{"buildID":"00000000-0000-4000-8000-000000000000","status":"ready",
		"createdAt":"2026-11-22T10:00:00Z","updatedAt":"2026-11-22T10:01:00Z","finishedAt":"2026-11-22T10:01:00Z",
		"cpuCount":2,"memoryMB":512,"diskSizeMB":1024,"envdVersion":"0.6.13"}]}`, w.Body.String())
	want(t, f.do("GET", "/templates/base?nextToken=-1", ""), 400, "Invalid next token")
	want(t, f.do("GET", "/templates/shared", ""), 403, "another team")
	want(t, f.do("GET", "/templates/hidden", ""), 404, "template 'hidden' not found")
	want(t, f.do("GET", "/templates/tpl00000000000000003", ""), 404)
}

func TestTemplateAlias(t *testing.T) {
	f := newFixture(t)
	for alias, status := range map[string]int{
		"base": 200, "first%2Fbase": 200, "BASE": 200, "base%3Adefault": 200, "empty": 200, "shared": 200, "tpl00000000000000000": 200,
		"base%3Av2": 404, "nope": 404, "hidden": 404, "second%2Fbase": 404, "a%20b": 400, "%252e%252e": 400, "a%2Fb%2Fc": 400,
	} {
		t.Run(alias, func(t *testing.T) { want(t, f.do("GET", "/templates/aliases/"+alias, ""), status) })
	}
}

func TestDeleteTemplate(t *testing.T) {
	f := newFixture(t)
	id := f.create(`{"templateID":"base"}`)
	want(t, f.do("DELETE", "/templates/base", ""), 400, "running sandboxes using it")
	f.control.boxes[hearth.SandboxID(id)].State = hearth.Paused
	want(t, f.do("DELETE", "/templates/base", ""), 400, "running sandboxes using it")
	want(t, f.do("DELETE", "/sandboxes/"+id, ""), 204)
	want(t, f.do("DELETE", "/templates/shared", ""), 403)
	want(t, f.do("DELETE", "/templates/base", ""), 204)
	want(t, f.do("DELETE", "/templates/base", ""), 404)
}

func TestBuildStatusAndLogs(t *testing.T) {
	f := newFixture(t)
	const path = "/templates/empty/builds/00000000-0000-4000-8000-000000000001"
	sameJSON(t, `{"templateID":"tpl00000000000000001","buildID":"00000000-0000-4000-8000-000000000001","status":"error","logs":[],
		"reason":{"message":"start command failed: exit status 1"},"logEntries":[
		{"timestamp":"2026-11-22T10:00:01Z","level":"debug","step":"base","message":"[base] unpack"},
		{"timestamp":"2026-11-22T10:00:02Z","level":"error","step":"finalize","message":"Build failed"}]}`,
		f.do("GET", path+"/status?logsOffset=1&limit=2", "").Body.String())
	sameJSON(t, `{"logs":[{"timestamp":"2026-11-22T10:00:02Z","level":"error","step":"finalize","message":"Build failed"},
		{"timestamp":"2026-11-22T10:00:00Z","level":"info","message":"Building template"}]}`,
		f.do("GET", path+"/logs?level=info", "").Body.String())
	sameJSON(t, `{"logs":[{"timestamp":"2026-11-22T10:00:01Z","level":"debug","step":"base","message":"[base] unpack"}]}`,
		f.do("GET", path+"/logs?direction=forward&limit=1&cursor=1795341601000", "").Body.String())
	sameJSON(t, `{"logs":[{"timestamp":"2026-11-22T10:00:00Z","level":"info","message":"Building template"}]}`,
		f.do("GET", path+"/logs?cursor=1795341601000", "").Body.String())
	want(t, f.do("GET", path+"/status?limit=0", ""), 200, `"logEntries":[]`)
	want(t, f.do("GET", "/templates/base/builds/00000000-0000-4000-8000-000000000001/status", ""), 400, "not found")
	want(t, f.do("GET", "/templates/base/builds/nope/status", ""), 400, "Build 'nope' not found")
	want(t, f.do("GET", "/templates/hidden/builds/00000000-0000-4000-8000-000000000003/logs", ""), 404)
	want(t, newFixture(t, func(d *Deps) { d.Builds = nil }).do("GET", path+"/status", ""), 200, `"logEntries":[]`)
}

func FuzzMetadataFilter(f *testing.F) {
	for _, s := range []string{"a=b", "a=b&c=d", "a%2520b=%25C3%25BC", "=", "&", "a=b&a=c", "%", "a=%25zz", "a=%2500", ";"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := parseMetadataFilter(s)
		if err != nil {
			if hearth.KindOf(err) != hearth.InvalidArgument {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		q := url.Values{}
		for k, v := range m {
			if !clean(k) || !clean(v) {
				t.Fatalf("%q let %q=%q through", s, k, v)
			}
			q.Set(url.PathEscape(k), url.PathEscape(v))
		}
		again, err := parseMetadataFilter(q.Encode())
		if err != nil || len(again) != len(m) {
			t.Fatalf("%q does not survive its own encoding: %v", s, err)
		}
	})
}

func FuzzTemplateName(f *testing.F) {
	for _, s := range []string{"base", "a/b:c", "A:default", "..", "a//b", ":", "/", "a:b:c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := templateName(&testTeam, s)
		if err != nil {
			return
		}
		again, err := templateName(&testTeam, name)
		if err != nil || again != name {
			t.Fatalf("%q gives %q, which gives %q (%v)", s, name, again, err)
		}
	})
}
