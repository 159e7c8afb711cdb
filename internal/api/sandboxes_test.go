package api

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"hearth/internal/api/describe"
	"hearth/internal/control"
	"hearth/internal/hearth"
)

func TestCreateAnswer(t *testing.T) {
	tests := []struct {
		name, path, body, want string
		domain                 string
	}{
		{
			name: "v2 with nothing but a template", path: "/v2/sandboxes", body: `{"templateID":"base"}`,
			want: `{"alias":"base","clientID":"6532622b","domain":null,"envdAccessToken":"access-i00000000000000000001","envdVersion":"0.6.13","sandboxID":"i00000000000000000001","templateID":"tpl00000000000000000"}`,
		},
		{
			name: "v1 is secured unless told otherwise", path: "/sandboxes", body: `{"templateID":"base"}`, domain: "e2b.test:8443",
			want: `{"alias":"base","clientID":"6532622b","domain":"e2b.test:8443","envdAccessToken":"access-i00000000000000000001","envdVersion":"0.6.13","sandboxID":"i00000000000000000001","templateID":"tpl00000000000000000"}`,
		},
		{
			name: "v1 open", path: "/sandboxes", body: `{"templateID":"base","secure":false}`,
			want: `{"alias":"base","clientID":"6532622b","domain":null,"envdVersion":"0.6.13","sandboxID":"i00000000000000000001","templateID":"tpl00000000000000000"}`,
		},
		{
			name: "private ports", path: "/v2/sandboxes", body: `{"templateID":"base","network":{"allowPublicTraffic":false}}`,
			want: `{"alias":"base","clientID":"6532622b","domain":null,"envdAccessToken":"access-i00000000000000000001","envdVersion":"0.6.13","sandboxID":"i00000000000000000001","templateID":"tpl00000000000000000","trafficAccessToken":"traffic-i00000000000000000001"}`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, func(d *Deps) { d.Domain = tt.domain })
			w := f.do("POST", tt.path, tt.body)
			want(t, w, http.StatusCreated)
			if diff := cmp.Diff(tt.want, strings.TrimSpace(w.Body.String())); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestCreateRequest(t *testing.T) {
	yes, no := true, false
	tests := []struct {
		name, path, body string
		want             control.CreateRequest
	}{
		{"v1 defaults", "/sandboxes", `{"templateID":"base"}`,
			control.CreateRequest{Team: "team1", Template: "base", Timeout: 15 * time.Second, OnTimeout: "kill"}},
		{"v2 defaults", "/v2/sandboxes", `{"templateID":"base","mcp":null}`,
			control.CreateRequest{Team: "team1", Template: "base", Timeout: 300 * time.Second, OnTimeout: "kill"}},
		{"what e2b 2.45 sends", "/sandboxes", `{"templateID":"base","timeout":300,"secure":true,"autoPause":false,"allow_internet_access":true}`,
			control.CreateRequest{Team: "team1", Template: "base", Timeout: 300 * time.Second, OnTimeout: "kill", Network: hearth.Network{AllowInternet: &yes}}},
		{"everything", "/v2/sandboxes", `{"templateID":" First/Base:default ","timeout":60,"autoPause":true,"autoPauseMemory":true,"autoResume":{"enabled":true},
			"allow_internet_access":false,"metadata":{"user":"1"},"envVars":{"A":"b"},"mcp":{"x":{"y":1}},"iam":{},"volumeMounts":[],
			"network":{"allowOut":["8.8.8.8","1.0.0.0/24"],"denyOut":["0.0.0.0/0"],"allowPublicTraffic":false,"maskRequestHost":"localhost:${PORT}","rules":{}},
			"somethingNew":{"a":[1]}}`,
			control.CreateRequest{Team: "team1", Template: "base", Timeout: time.Minute, OnTimeout: "pause", AutoResume: true,
				Env: map[string]string{"A": "b"}, Metadata: map[string]string{"user": "1"},
				Network: hearth.Network{AllowInternet: &no, AllowOut: []string{"8.8.8.8", "1.0.0.0/24"},
					DenyOut: []string{"0.0.0.0/0"}, PrivateIngress: true, MaskRequestHost: "localhost:${PORT}"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			want(t, f.do("POST", tt.path, tt.body), http.StatusCreated)
			if diff := cmp.Diff(tt.want, f.control.last); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestCreateRefused(t *testing.T) {
	tests := []struct {
		name, body, message string
		status              int
	}{
		{"unknown template", `{"templateID":"nope"}`, "template 'nope' not found", 404},
		{"unknown tag", `{"templateID":"base:v1"}`, "tag 'v1' does not exist", 404},
		{"bad name", `{"templateID":"a b"}`, "Invalid template reference", 400},
		{"dots", `{"templateID":"../../etc"}`, "Invalid template reference", 400},
		{"timeout zero", `{"templateID":"base","timeout":0}`, "Timeout must be greater than 0", 400},
		{"memory without pause", `{"templateID":"base","autoPauseMemory":false}`, "autoPauseMemory=false only applies when autoPause is true.", 400},
		{"iam", `{"templateID":"base","iam":{"tokens":{"a":{"audience":"b","tokenType":"JWT-SVID"}}}}`, "iam is not supported", 400},
		{"volumes", `{"templateID":"base","volumeMounts":[{"name":"v","path":"/v"}]}`, "volumeMounts is not supported", 400},
		{"rules", `{"templateID":"base","network":{"rules":{"a.com":[]}}}`, "network.rules is not supported", 400},
		{"proxy", `{"templateID":"base","network":{"egressProxy":{"address":"a:1"}}}`, "network.egressProxy is not supported", 400},
		{"https ports", `{"templateID":"base","network":{"httpsPorts":[8443]}}`, "network.httpsPorts is not supported", 400},
		{"dns servers", `{"templateID":"base","network":{"dnsServers":[]}}`, "network.dnsServers is not supported", 400},
		{"denied name", `{"templateID":"base","network":{"denyOut":["example.com"]}}`, "invalid denied CIDR example.com", 400},
		{"denied unspecified", `{"templateID":"base","network":{"denyOut":["::/0"]}}`, "invalid denied CIDR ::/0", 400},
		{"allowed junk", `{"templateID":"base","network":{"allowOut":["http://x"]}}`, "invalid allowed destination http://x", 400},
		{"allowed broken address", `{"templateID":"base","network":{"allowOut":["1.2.3"]}}`, "invalid allowed destination 1.2.3", 400},
		{"domain without deny", `{"templateID":"base","network":{"allowOut":["example.com"]}}`, "'ALL_TRAFFIC'", 400},
		{"domain", `{"templateID":"base","network":{"allowOut":["example.com"],"denyOut":["0.0.0.0/0"]}}`, "supports addresses and CIDRs only", 400},
		{"mask", `{"templateID":"base","network":{"maskRequestHost":"a\r\nb"}}`, "invalid maskRequestHost", 400},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			want(t, f.do("POST", "/v2/sandboxes", tt.body), tt.status, tt.message)
			if f.control.made != 0 {
				t.Error("a sandbox was made")
			}
		})
	}
	t.Run("private and open", func(t *testing.T) {
		want(t, newFixture(t).do("POST", "/sandboxes", `{"templateID":"base","secure":false,"network":{"allowPublicTraffic":false}}`), 400, "secure=true")
	})
}

func TestDetailGolden(t *testing.T) {
	f := newFixture(t, func(d *Deps) { d.Domain = "e2b.test" })
	id := f.create(`{"templateID":"base","timeout":60,"metadata":{"a":"b"},"autoPause":true,"allow_internet_access":false,"network":{"denyOut":["0.0.0.0/0"]}}`)
	golden := `{
		"templateID":"tpl00000000000000000","alias":"base","sandboxID":"i00000000000000000001","clientID":"6532622b",
		"startedAt":"2026-11-22T10:00:01Z","endAt":"2026-11-22T10:01:01Z","envdVersion":"0.6.13",
		"envdAccessToken":"access-i00000000000000000001","allowInternetAccess":false,"domain":"e2b.test",
		"cpuCount":2,"memoryMB":512,"diskSizeMB":1024,"metadata":{"a":"b"},"state":"running",
		"network":{"allowPublicTraffic":true,"denyOut":["0.0.0.0/0"]},"lifecycle":{"autoResume":false,"onTimeout":"pause"},"timeout":60}`
	w := f.do("GET", "/sandboxes/"+id+"-6532622b", "")
	want(t, w, 200)
	sameJSON(t, golden, w.Body.String())

	want(t, f.do("POST", "/sandboxes/"+id+"/pause", ""), 204)
	golden = strings.Replace(golden, `"domain":"e2b.test"`, `"domain":null`, 1)
	golden = strings.Replace(golden, `"running"`, `"paused"`, 1)
	sameJSON(t, golden, f.do("GET", "/sandboxes/"+id, "").Body.String())
}

func sameJSON(t *testing.T, want, got string) {
	t.Helper()
	var a, b any
	if err := json.Unmarshal([]byte(want), &a); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(got), &b); err != nil {
		t.Fatalf("%v: %s", err, got)
	}
	if diff := cmp.Diff(a, b); diff != "" {
		t.Error(diff)
	}
}

func TestLifeCycle(t *testing.T) {
	f := newFixture(t)
	id := f.create(`{"templateID":"base"}`)
	steps := []struct {
		name, method, path, body string
		status                   int
		fragment                 string
	}{
		{"timeout", "POST", "/timeout", `{"timeout":60}`, 204, ""},
		{"refresh without body", "POST", "/refreshes", ``, 204, ""},
		{"refresh", "POST", "/refreshes", `{"duration":3600}`, 204, ""},
		{"refresh too long", "POST", "/refreshes", `{"duration":3601}`, 400, "duration must be at most 3600"},
		{"network", "PUT", "/network", `{"denyOut":["1.1.1.1/32"]}`, 204, ""},
		{"resume a running one", "POST", "/resume", `{}`, 409, "already running"},
		{"connect to a running one", "POST", "/connect", `{"timeout":30}`, 200, id},
		{"pause with an empty object", "POST", "/pause", `{}`, 204, ""},
		{"pause twice", "POST", "/pause", ``, 409, "already paused"},
		{"network of a paused one", "PUT", "/network", `{}`, 409, "not running"},
		{"connect resumes", "POST", "/connect", `{"timeout":30,"memory":true}`, 201, id},
		{"pause null", "POST", "/pause", `null`, 204, ""},
		{"resume", "POST", "/resume", ``, 201, id},
		{"connect without memory", "POST", "/connect", `{"timeout":30,"memory":false}`, 400, "not supported"},
		{"metrics", "GET", "/metrics?start=1&end=2", ``, 200, `"memUsed":10485760`},
		{"metrics backwards", "GET", "/metrics?start=2&end=1", ``, 400, "start must not be after end"},
		{"kill", "DELETE", "", ``, 204, ""},
		{"kill twice", "DELETE", "", ``, 404, id},
		{"timeout of a dead one", "POST", "/timeout", `{"timeout":60}`, 404, id},
		{"connect to a dead one", "POST", "/connect", `{"timeout":60}`, 404, "doesn't exist or you don't have access to it"},
	}
	for _, s := range steps {
		w := f.do(s.method, "/sandboxes/"+id+s.path, s.body)
		t.Run(s.name, func(t *testing.T) { want(t, w, s.status, s.fragment) })
	}
}

func TestConnectV2NeedsNoBody(t *testing.T) {
	f := newFixture(t)
	id := f.create(`{"templateID":"base"}`)
	want(t, f.do("POST", "/v2/sandboxes/"+id+"/connect", ""), 200, "access-"+id)
	if got := f.control.boxes[hearth.SandboxID(id)]; got.EndsAt.Sub(got.StartedAt) != 300*time.Second {
		t.Errorf("timeout %v, want 300s", got.EndsAt.Sub(got.StartedAt))
	}
	want(t, f.do("POST", "/sandboxes/"+id+"/pause", ""), 204)
	want(t, f.do("POST", "/v2/sandboxes/"+id+"/connect", "{}"), 201, "access-"+id)
}

func TestNetworkKeepsIngress(t *testing.T) {
	f := newFixture(t)
	id := f.create(`{"templateID":"base","network":{"allowPublicTraffic":false,"maskRequestHost":"x","allowOut":["1.1.1.1"]}}`)
	want(t, f.do("PUT", "/sandboxes/"+id+"/network", `{"denyOut":["8.8.8.8"]}`), 204)
	diff := cmp.Diff(hearth.Network{PrivateIngress: true, MaskRequestHost: "x", DenyOut: []string{"8.8.8.8"}}, f.control.boxes[hearth.SandboxID(id)].Network)
	if diff != "" {
		t.Error(diff)
	}
}

// TestKillOnAFullDisk: to kill is never too much, it is the server that cannot.
func TestKillOnAFullDisk(t *testing.T) {
	f := newFixture(t)
	id := f.create(`{"templateID":"base"}`)
	f.control.fail = hearth.Errorf(hearth.ResourceExhausted, "Sandbox 'x' cannot be killed yet: the server's disk is full")
	w := f.do("DELETE", "/sandboxes/"+id, "")
	want(t, w, 503, "cannot be killed yet: the server's disk is full")
	if w.Header().Get("Retry-After") == "" {
		t.Error("it does not say when to try again")
	}
}

func TestOtherTeamSeesNothing(t *testing.T) {
	f := newFixture(t)
	id := f.create(`{"templateID":"base"}`)
	for _, r := range [][3]string{
		{"GET", "", ""}, {"DELETE", "", ""}, {"POST", "/pause", ""}, {"POST", "/timeout", `{"timeout":1}`},
		{"POST", "/connect", `{"timeout":1}`}, {"GET", "/metrics", ""}, {"PUT", "/network", "{}"}, {"POST", "/resume", ""}, {"POST", "/refreshes", ""},
	} {
		want(t, f.do(r[0], "/sandboxes/"+id+r[1], r[2], "X-API-Key", otherKey), 404)
	}
	if w := f.do("GET", "/v2/sandboxes", "", "X-API-Key", otherKey); strings.TrimSpace(w.Body.String()) != "[]" {
		t.Errorf("list: %s", w.Body)
	}
	want(t, f.do("GET", "/sandboxes/"+id, ""), 200)
}

func TestStoppedSandboxIsGone(t *testing.T) {
	f := newFixture(t)
	id := f.create(`{"templateID":"base"}`)
	f.control.boxes[hearth.SandboxID(id)].State = hearth.Stopping
	want(t, f.do("GET", "/sandboxes/"+id, ""), 404)
}

func TestIdempotencyKey(t *testing.T) {
	f := newFixture(t)
	body := `{"templateID":"base","metadata":{"a":"b"}}`
	post := func(body, key string) (int, string) {
		w := f.do("POST", "/v2/sandboxes", body, "Idempotency-Key", key)
		return w.Code, w.Body.String()
	}
	f.control.block = make(chan struct{})
	var wg sync.WaitGroup
	answers := make([]string, 8)
	for i := range answers {
		wg.Go(func() { _, answers[i] = post(body, "key-1") })
	}
	close(f.control.block)
	wg.Wait()
	for _, a := range answers {
		if a != answers[0] || !strings.Contains(a, "sandboxID") {
			t.Errorf("answers differ: %s / %s", answers[0], a)
		}
	}
	if f.control.made != 1 {
		t.Errorf("%d sandboxes were made", f.control.made)
	}
	if status, text := post(`{"templateID":"base"}`, "key-1"); status != 409 {
		t.Errorf("other request: %d %s", status, text)
	}
	if status, _ := post(body, "key-2"); status != 201 || f.control.made != 2 {
		t.Errorf("other key: %d, %d made", status, f.control.made)
	}
	if status, text := post(body, "Key_1"); status != 400 || !strings.Contains(text, "Idempotency-Key must match") {
		t.Errorf("bad key: %d %s", status, text)
	}
	f.control.fail = hearth.Errorf(hearth.Unavailable, "no room")
	if status, _ := post(body, "key-3"); status != 503 {
		t.Errorf("failing: %d", status)
	}
	f.control.fail = nil
	if status, _ := post(body, "key-3"); status != 201 {
		t.Errorf("again after a failure: %d", status)
	}
}

func TestRequestCeiling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.control.block = make(chan struct{}) // never
		start := time.Now()
		w := f.do("POST", "/v2/sandboxes", `{"templateID":"base"}`)
		want(t, w, 504, "took too long")
		if took := time.Since(start); took != describe.Ceiling {
			t.Errorf("took %v, want %v", took, describe.Ceiling)
		}
		if w.Header().Get("Should-Retry") != "false" {
			t.Error("a client would repeat it")
		}
	})
}
