package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hearth/client"
)

// exchange sends bytes as they are and returns the status of the answer, 0 when
// the server closed the connection instead. It fails the test when neither comes.
func (s *server) exchange(t *testing.T, request string) int {
	t.Helper()
	conn, err := net.Dial("tcp", s.listen)
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	go io.WriteString(conn, request) // the server may hang up before it is through
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Errorf("no answer to %.100q", request)
		}
		return 0
	}
	discard(resp.Body)
	return resp.StatusCode
}

// TestBadInput sends nonsense to every door. The answer is a 4xx, soon, and the
// server and its sandboxes are as before.
func TestBadInput(t *testing.T) {
	s := newBaseServer(t)
	sb := s.sandbox(t, client.CreateOptions{})
	pid := s.pid(t)
	t.Run("bodies", s.badBodies)
	t.Run("paths", func(t *testing.T) { s.badPaths(t, sb) })
	t.Run("snapshots", func(t *testing.T) { s.badSnapshots(t, sb) })
	t.Run("references", func(t *testing.T) { s.badReferences(t, sb) })
	t.Run("parcels", s.badParcels)
	t.Run("at once", s.badAtOnce)
	t.Run("wire", func(t *testing.T) { s.badWire(t, sb) })
	t.Run("files", func(t *testing.T) { s.badFiles(t, sb) })
	t.Run("processes", func(t *testing.T) { s.badProcesses(t, sb) })
	answers(t, sb)
	if s.pid(t) != pid || s.logged("panic") {
		t.Error("the server panicked")
	}
}

func (s *server) badBodies(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	for _, body := range []string{
		``, `null`, `[]`, `"base"`, `{`, `{}`, `{"templateID":1}`, `{"templateID":null}`, `{"templateID":["base"]}`, `{"templateID":""}`,
		`{"templateID":"no-such-template"}`, `{"templateID":"../base"}`, `{"templateID":"base\u0000"}`, "{\"templateID\":\"\xff\xfe\"}",
		`{"templateID":"` + long + `"}`, `{"templateID":"base","timeout":-1}`, `{"templateID":"base","timeout":"60"}`,
		`{"templateID":"base","timeout":1.5}`, `{"templateID":"base","timeout":1e99}`, `{"templateID":"base","timeout":9223372036854775808}`,
		`{"templateID":"base","timeout":999999999}`, `{"templateID":"base","metadata":[]}`, `{"templateID":"base","metadata":{"a":1}}`,
		`{"templateID":"base","envVars":{"A=B":"c"}}`, `{"templateID":"base","envVars":{"A\u0000":"c"}}`, `{"templateID":"base","envVars":{"A":"c\u0000"}}`,
		`{"templateID":"base","envVars":{"":"c"}}`, `{"templateID":"base","metadata":{"k":"` + strings.Repeat("x", 8<<20) + `"}}`,
		`{"templateID":"base","network":{"allowOut":["300.0.0.1/8"]}}`, `{"templateID":"base","network":{"denyOut":["::/0"],"allowOut":[1]}}`,
		`{"templateID":"base","allow_internet_access":"no"}`, `{"templateID":"base"}{"templateID":"base"}`,
		strings.Repeat(`[`, 100_000), `{"templateID":` + strings.Repeat(`{"a":`, 50_000),
	} {
		for _, path := range []string{"/sandboxes", "/v2/sandboxes"} {
			status, raw := s.call(t, "POST", path, body)
			if status < 400 || status > 499 || !strings.Contains(string(raw), `"message"`) {
				t.Errorf("POST %s %.80q: %d %.200s", path, body, status, raw)
			}
		}
	}
	if status, _ := s.call(t, "POST", "/v2/sandboxes", strings.Repeat(" ", 17<<20)); status != 400 && status != 413 {
		t.Errorf("17 MiB of nothing: %d", status)
	}
}

func (s *server) badPaths(t *testing.T, sb *client.Sandbox) {
	for _, id := range []string{"x", "..", "%2e%2e", "%252e%252e", "%00", "%ff", sb.ID + "x", strings.ToUpper(sb.ID), sb.ID + "%00", sb.ID + "%2f..", strings.Repeat("i", 5000)} {
		for _, call := range [][3]string{
			{"GET", "", ""}, {"DELETE", "", ""}, {"POST", "/timeout", `{"timeout":60}`}, {"POST", "/pause", ""},
			{"POST", "/connect", `{"timeout":60}`}, {"GET", "/metrics", ""}, {"POST", "/snapshots", `{"name":"bad"}`}, {"POST", "/fork", `{"count":1}`},
		} {
			s.refused(t, call[0], "/sandboxes/"+id+call[1], call[2])
		}
		for _, call := range [][3]string{
			{"POST", "/rollback", `{"step":1}`}, {"POST", "/rollback", `{"snapshotID":"base"}`}, {"GET", "/history", ""}, {"GET", "/tree", ""},
		} {
			s.refused(t, call[0], "/v2/sandboxes/"+id+call[1], call[2])
		}
	}
	for _, body := range []string{``, `{}`, `{"timeout":-1}`, `{"timeout":"1"}`, `{"timeout":1e300}`, `{"timeout":null}`, `[1]`} {
		if status, raw := s.call(t, "POST", "/sandboxes/"+sb.ID+"/timeout", body); status < 400 || status > 499 {
			t.Errorf("timeout %s: %d %s", body, status, raw)
		}
	}
	for _, query := range []string{"limit=-1", "limit=x", "limit=99999999999999999999", "nextToken=%00", "nextToken=x", "state=dead", "metadata=%zz", "limit=1&limit=2", "%"} {
		if status, raw := s.call(t, "GET", "/v2/sandboxes?"+query, ""); status >= 500 {
			t.Errorf("list %s: %d %s", query, status, raw)
		}
	}
}

// refused makes a call that must be answered with a 4xx, in words of the caller.
func (s *server) refused(t *testing.T, method, path, body string) {
	t.Helper()
	status, raw := s.call(t, method, path, body)
	if status < 400 || status > 499 {
		t.Errorf("%s %.100s %.80q: %d %.200s", method, path, body, status, raw)
	}
	if strings.Contains(string(raw), "internal") || strings.Contains(string(raw), "this node") {
		t.Errorf("%s %.100s %.80q says %.200s", method, path, body, raw)
	}
}

// listed counts the snapshots that a query selects.
func (s *server) listed(t *testing.T, query string) int {
	t.Helper()
	status, raw := s.call(t, "GET", "/snapshots"+query, "")
	if status != 200 {
		t.Errorf("GET /snapshots%s: %d %s", query, status, raw)
	}
	return strings.Count(string(raw), `"snapshotID"`)
}

// badSnapshots sends nonsense to what makes snapshots of a sandbox, and takes it back.
func (s *server) badSnapshots(t *testing.T, sb *client.Sandbox) {
	long := strings.Repeat("x", 257)
	for _, body := range []string{
		`[]`, `"x"`, `{`, `{"name":1}`, `{"name":[]}`, `{"name":""}`, `{"name":"../x"}`, `{"name":"/etc/passwd"}`, `{"name":"a\u0000"}`,
		"{\"name\":\"\xff\"}", `{"name":"a b"}`, `{"name":":v1"}`, `{"name":"a:"}`, `{"name":"a:b:c"}`, `{"name":"%252e%252e"}`,
		`{"name":"else/x"}`, `{"name":"base"}`, `{"name":"s00000000000000000000"}`, `{"name":"` + long + `"}`,
		`{"name":"` + long[:129] + `"}`, `{"name":"a:` + long[:129] + `"}`, `{"memory":"yes"}`, `{"memory":false}`,
		`{"step":0}`, `{"step":-1}`, `{"step":1}`, `{"step":1.5}`, `{"step":"1"}`, `{"step":9223372036854775807}`, `{"step":9223372036854775808}`,
	} {
		s.refused(t, "POST", "/sandboxes/"+sb.ID+"/snapshots", body)
	}
	for _, body := range []string{
		`[]`, `"2"`, `{`, `{"count":0}`, `{"count":-1}`, `{"count":101}`, `{"count":"2"}`, `{"count":1.5}`, `{"count":1e99}`, `{"count":9223372036854775808}`,
		`{"timeout":-1}`, `{"timeout":"60"}`, `{"timeout":2147483648}`, `{"timeout":[]}`,
	} {
		s.refused(t, "POST", "/sandboxes/"+sb.ID+"/fork", body)
	}
	for _, body := range []string{
		``, `null`, `{}`, `[]`, `{`, `{"snapshotID":1}`, `{"snapshotID":""}`, `{"snapshotID":null}`, `{"snapshotID":"no-such"}`, `{"snapshotID":"../x"}`,
		`{"snapshotID":"/etc/passwd"}`, `{"snapshotID":"a\u0000"}`, `{"snapshotID":"%252e%252e"}`, `{"snapshotID":"` + long + `"}`, `{"snapshotID":"base"}`,
		`{"snapshotID":"s00000000000000000000"}`, `{"step":0}`, `{"step":-1}`, `{"step":1}`, `{"step":"1"}`, `{"step":1.5}`, `{"step":9223372036854775808}`,
		`{"snapshotID":"a","step":1}`,
	} {
		s.refused(t, "POST", "/v2/sandboxes/"+sb.ID+"/rollback", body)
	}
	for _, query := range []string{
		"name=", "name=..", "name=../x", "name=/etc/passwd", "name=%00", "name=%ff", "name=%252e%252e", "name=a&name=b", "name=" + long, "name=a:", "name=%zz",
		"sandboxID=", "sandboxID=..", "sandboxID=%00", "sandboxID=%252e", "sandboxID=" + long, "limit=0", "limit=-1", "limit=x", "limit=99999999999999999999",
		"limit=1&limit=2", "nextToken=x", "nextToken=%00", "nextToken=" + strings.Repeat("x", 513),
	} {
		s.refused(t, "GET", "/snapshots?"+query, "")
	}
	if n := s.listed(t, ""); n != 0 {
		t.Errorf("afterwards there are %d snapshots", n)
	}
	answers(t, sb)
}

// badReferences asks for snapshots that cannot be, wherever a path or query names one.
func (s *server) badReferences(t *testing.T, sb *client.Sandbox) {
	snap, err := s.client(t).Snapshot(t.Context(), sb.ID, "kept")
	must(t, err)
	for _, id := range []string{
		"no-such", "..", "%2e%2e", "%2e%2e%2f%2e%2e", "%252e%252e", "%2fetc%2fpasswd", "%00", "kept%00", "%ff", "kept:", ":default", "kept:v9", "else%2Fkept",
		"kept%2f..", "kept%20x", "a%3ab%3ac", "s00000000000000000000", strings.Repeat("s", 257), strings.Repeat("s", 5000),
	} {
		s.refused(t, "GET", "/v2/snapshots/"+id+"/export", "")
		s.refused(t, "GET", "/v2/snapshots/"+id+"/diff?from=kept", "")
		s.refused(t, "GET", "/v2/snapshots/kept/diff?from="+id, "")
		s.refused(t, "DELETE", "/templates/"+id, "")
	}
	for _, query := range []string{"", "from=", "from=kept&from=kept", "from=kept&limit=-1", "from=kept&limit=x", "from=kept&limit=10001", "from=kept&limit=1.5", "from=%zz"} {
		s.refused(t, "GET", "/v2/snapshots/kept/diff?"+query, "")
	}
	if n := s.listed(t, "?name=kept"); n != 1 {
		t.Errorf("of the snapshot there are %d afterwards", n)
	}
	must(t, s.client(t).DeleteSnapshot(t.Context(), snap.ID))
	s.refused(t, "DELETE", "/templates/kept", "")
}

// badParcels sends files that are no snapshots, and a snapshot with one bit flipped.
func (s *server) badParcels(t *testing.T) {
	sb := s.sandbox(t, client.CreateOptions{})
	snap, err := s.client(t).Snapshot(t.Context(), sb.ID, "")
	must(t, err)
	must(t, sb.Kill(t.Context()))
	var whole bytes.Buffer
	must(t, s.client(t).Export(t.Context(), snap.ID, &whole))
	must(t, s.client(t).DeleteSnapshot(t.Context(), snap.ID))
	raw := whole.Bytes()
	bodies := map[string][]byte{
		"nothing": {}, "text": []byte("no snapshot"), "JSON": []byte(`{"snapshotID":"x"}`), "zeros": make([]byte, 1<<20),
		"half": raw[:len(raw)/2], "all but a byte": raw[:len(raw)-1], "more": append(bytes.Clone(raw), "more"...), "twice": append(bytes.Clone(raw), raw...),
	}
	for _, back := range []int{1, 2, 50, 100, len(raw) / 2, len(raw) - 100, len(raw)} {
		b := bytes.Clone(raw)
		b[len(b)-back] ^= 1
		bodies[fmt.Sprintf("a bit flipped %d bytes before its end", back)] = b
	}
	for name, body := range bodies {
		_, err := s.client(t).Import(t.Context(), bytes.NewReader(body))
		if e, ok := errors.AsType[*client.Error](err); !ok || e.Status != 400 {
			t.Errorf("%s: %v, want a 400", name, err)
		}
	}
	if n := s.listed(t, ""); n != 0 {
		t.Errorf("%d snapshots are left", n)
	}
}

// badAtOnce makes the same call many times at once: one name is one snapshot's, and a
// sandbox that ends meanwhile is not this server's fault.
func (s *server) badAtOnce(t *testing.T) {
	sb := s.sandbox(t, client.CreateOptions{})
	many := func(n int, call func(i int)) {
		var all sync.WaitGroup
		for i := range n {
			all.Go(func() { call(i) })
		}
		all.Wait()
	}
	many(6, func(int) {
		if status, raw := s.call(t, "POST", "/sandboxes/"+sb.ID+"/snapshots", `{"name":"same"}`); status >= 500 {
			t.Errorf("snapshot: %d %s", status, raw)
		}
	})
	if n := s.listed(t, "?name=same"); n != 1 {
		t.Errorf("%d snapshots have the name", n)
	}
	many(6, func(int) {
		if status, raw := s.call(t, "POST", "/v2/sandboxes/"+sb.ID+"/rollback", `{"snapshotID":"same"}`); status >= 500 {
			t.Errorf("rollback: %d %s", status, raw)
		}
	})
	answers(t, sb)
	var deleted atomic.Int32
	many(6, func(int) {
		switch status, raw := s.call(t, "DELETE", "/templates/same", ""); {
		case status == 204:
			deleted.Add(1)
		case status != 404:
			t.Errorf("delete: %d %s", status, raw)
		}
	})
	if deleted.Load() == 0 {
		t.Error("nobody has deleted it")
	}
	many(8, func(i int) {
		switch path := "/sandboxes/" + sb.ID; {
		case i < 4:
			status, raw := s.call(t, "POST", path+"/snapshots", "")
			if status >= 500 || strings.Contains(string(raw), "node") {
				t.Errorf("snapshot beside kill: %d %s", status, raw)
			}
		case i < 6:
			if status, raw := s.call(t, "POST", path+"/fork", `{"timeout":1}`); status >= 500 || strings.Contains(string(raw), "node") {
				t.Errorf("fork beside kill: %d %s", status, raw)
			}
		default:
			if status, raw := s.call(t, "DELETE", path, ""); status != 204 && status != 404 {
				t.Errorf("kill: %d %s", status, raw)
			}
		}
	})
}

// badWire speaks to the socket itself, to send what a client would not.
func (s *server) badWire(t *testing.T, sb *client.Sandbox) {
	to := func(id, port string) string {
		return "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\nE2b-Sandbox-Id: " + id + "\r\nE2b-Sandbox-Port: " + port + "\r\n\r\n"
	}
	host := func(h string) string {
		return "GET /files?path=/etc/passwd HTTP/1.1\r\nConnection: close\r\nHost: " + h + "\r\n\r\n"
	}
	for _, request := range []string{
		to("x", "49983"), to("../x", "49983"), to(sb.ID, "0"), to(sb.ID, "-1"), to(sb.ID, "65536"), to(sb.ID, "049983"), to(sb.ID, "x"), to(sb.ID, ""),
		to("", "49983"), to("\xff\xfe", "49983"), to("ix\x00y", "49983"), to(strings.Repeat("i", 30_000), "49983"), to("i00000000000000000000", "49983"),
		host("49983-" + sb.ID), host("[::1]"), host("a\x00b"), host(strings.Repeat("a", 100_000)), host("49983-x.localhost"), host("@:@"),
		"GET / HTTP/1.1\r\n\r\n", "GET / HTTP/9.9\r\nHost: x\r\n\r\n", strings.Repeat("\x00\x01\x02\x03", 10) + "\r\n\r\n", "GET  HTTP/1.1\r\n\r\n",
		"GET /sandboxes HTTP/1.1\r\nHost: x\r\nX-API-Key: " + strings.Repeat("k", 80_000) + "\r\n\r\n",
		"GET /" + strings.Repeat("a", 200_000) + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", 30_000) + "\r\n",
		"POST /sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
		"POST /sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
		"POST /sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
		"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n", "GET http://127.0.0.1:22/ HTTP/1.1\r\nHost: 127.0.0.1:22\r\nConnection: close\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
	} {
		if status := s.exchange(t, request); status >= 500 && status != 502 && status != 505 || status/100 == 2 {
			t.Errorf("%.100q: %d", request, status)
		}
	}
}

// badFiles asks the daemon for odd paths, and for links that lead around.
func (s *server) badFiles(t *testing.T, sb *client.Sandbox) {
	ask := func(method, query, body string) (int, string) {
		resp, err := sb.Request(t.Context(), method, 49983, "/files"+query, strings.NewReader(body))
		must(t, err)
		defer resp.Body.Close()
		raw, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		return resp.StatusCode, string(raw)
	}
	for _, query := range []string{
		"?path=", "?path=%00", "?path=/etc/passwd%00", "?path=%ff%fe", "?path=" + strings.Repeat("a/", 5000), "?path=" + strings.Repeat("a", 300),
		"?path=/etc", "?path=/dev", "?path=/nowhere", "?path=../../../nowhere", "?path=%2e%2e%2fnowhere", "?path=/etc/passwd/x",
		"?path=/etc/passwd&username=nobody-here", "?path=/etc/passwd&username=%00", "?path=x&username=../root", "?path=%zz",
	} {
		if status, raw := ask("GET", query, ""); status < 400 || status > 499 {
			t.Errorf("GET /files%.80s: %d %.100s", query, status, raw)
		}
		if status, raw := ask("POST", query, "not multipart"); status < 400 || status > 499 {
			t.Errorf("POST /files%.80s: %d %.100s", query, status, raw)
		}
	}
	sh(t, sb, `mkdir -p /tmp/links && cd /tmp/links && chmod 777 . && ln -s loop loop && ln -s / root && ln -s /proc/1/root far && mkfifo -m 666 pipe && ln -s /dev/zero zero`)
	for _, path := range []string{"loop", "loop/x", "pipe", "zero"} {
		start := time.Now()
		if status, raw := ask("GET", "?path=/tmp/links/"+path, ""); status < 400 || status > 499 {
			t.Errorf("GET %s: %d %.100s", path, status, raw)
		}
		if took := time.Since(start); took > stalled {
			t.Errorf("GET %s took %s", path, took)
		}
	}
	// However a path is written, it ends inside.
	host, err := os.ReadFile("/etc/machine-id")
	for _, path := range []string{"root/etc/machine-id", "far/etc/machine-id", "../../../../../../etc/machine-id", "root/../../../etc/machine-id"} {
		if _, raw := ask("GET", "?path=/tmp/links/"+path, ""); err == nil && raw == string(host) {
			t.Errorf("GET %s: a file of the host", path)
		}
	}
	c := sb.Files
	for _, path := range []string{"", "\x00", strings.Repeat("a/", 5000), "/proc/1/mem", "/nowhere/at/all"} {
		if _, err := c.Stat(t.Context(), path); err == nil && path != "/proc/1/mem" && path != "" {
			t.Errorf("stat %.40q succeeds", path)
		}
		if err := c.MakeDir(t.Context(), path+"\x00"); err == nil {
			t.Errorf("mkdir %.40q succeeds", path)
		}
		if _, err := c.Rename(t.Context(), path, "\x00"); err == nil {
			t.Errorf("rename %.40q succeeds", path)
		}
	}
	if err := c.Remove(t.Context(), "/"); err == nil {
		t.Error("removing / succeeds")
	}
}

func (s *server) badProcesses(t *testing.T, sb *client.Sandbox) {
	for name, o := range map[string]client.RunOptions{
		"unknown user":         {User: "nobody-here"},
		"user with a NUL":      {User: "a\x00b"},
		"missing directory":    {Dir: "/nowhere"},
		"directory with a NUL": {Dir: "/\x00"},
		"variable with a NUL":  {Env: map[string]string{"A": "b\x00c"}},
		"variable with a =":    {Env: map[string]string{"A=B": "c"}},
	} {
		if res, err := sb.Commands.Run(t.Context(), "true", o); err == nil {
			t.Errorf("%s: %+v", name, res)
		} else if e, ok := err.(*client.Error); ok && (e.Code == "internal" || e.Status >= 500) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := sb.Commands.Kill(t.Context(), 4_000_000_000); !client.NotFound(err) {
		t.Errorf("killing nobody: %v", err)
	}
	for _, body := range []string{"", "{", "\x00\x00\x00\x00\x02{}", "\x00\xff\xff\xff\xff{}", "\x07\x00\x00\x00\x01x", fmt.Sprintf("\x00\x00\x00\x00\x05%s", "[1,2]")} {
		req, err := http.NewRequestWithContext(t.Context(), "POST", s.key("E2B_SANDBOX_URL")+"/process.Process/Start", strings.NewReader(body))
		must(t, err)
		for k, v := range map[string]string{"E2b-Sandbox-Id": sb.ID, "E2b-Sandbox-Port": "49983", "X-Access-Token": sb.AccessToken, "Content-Type": "application/connect+json"} {
			req.Header.Set(k, v)
		}
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		raw, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		resp.Body.Close()
		if resp.StatusCode >= 500 || !strings.Contains(string(raw), `"error"`) {
			t.Errorf("start %q: %d %q", body, resp.StatusCode, raw)
		}
	}
}
