package files

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"hearth/internal/gen/guestv1"
	"hearth/internal/gen/guestv1/guestv1connect"
	"hearth/internal/guest/process/account"
	"hearth/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

type fixture struct {
	*testing.T
	dir    string
	url    string
	hc     *http.Client
	client guestv1connect.FilesystemClient
}

func serve(t *testing.T) *fixture {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{T: t, dir: t.TempDir(), hc: &http.Client{Transport: &http.Transport{DisableCompression: true}}}
	svc := New(Options{
		Session: func() account.Session { return account.Session{User: me.Username, Workdir: f.dir} },
		Guard:   func(*http.Request, Op) error { return nil },
	})
	mux := http.NewServeMux()
	mux.Handle(guestv1connect.NewFilesystemHandler(svc))
	mux.HandleFunc("GET /files", svc.Download)
	mux.HandleFunc("POST /files", svc.Upload)
	mux.HandleFunc("POST /files/compose", svc.Compose)
	srv := httptest.NewServer(mux)
	t.Cleanup(func() {
		svc.Close()
		f.hc.CloseIdleConnections()
		srv.Close()
	})
	f.url = srv.URL
	f.client = guestv1connect.NewFilesystemClient(f.hc, srv.URL, connect.WithProtoJSON())
	return f
}

func (f *fixture) path(name string) string { return filepath.Join(f.dir, name) }

func (f *fixture) write(name, content string) string {
	f.Helper()
	p := f.path(name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		f.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
		f.Fatal(err)
	}
	return p
}

func (f *fixture) do(method, target string, body io.Reader, headers ...string) (*http.Response, string) {
	f.Helper()
	req, err := http.NewRequestWithContext(f.Context(), method, f.url+target, body)
	if err != nil {
		f.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := f.hc.Do(req)
	if err != nil {
		f.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		f.Error(err)
	}
	return res, string(raw)
}

func files(path string) string { return "/files?path=" + url.QueryEscape(path) }

func TestDownload(t *testing.T) {
	f := serve(t)
	big := strings.Repeat("0123456789", 200_000)
	p := f.write("a b\"ü.txt", big)
	empty := f.write("empty", "")
	link := f.path("link")
	fifo := f.path("fifo")
	if err := os.Symlink(p, link); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, path string
		headers    []string
		status     int
		body       string
	}{
		{"plain", p, nil, 200, big},
		{"link", link, nil, 200, big},
		{"range", p, []string{"Range", "bytes=3-6"}, 206, "3456"},
		{"bad range", p, []string{"Range", "bytes=99999999-"}, 416, "*"},
		{"library's encodings", p, []string{"Accept-Encoding", "gzip, deflate, br"}, 200, big},
		{"identity refused", p, []string{"Accept-Encoding", "br, identity;q=0"}, 406, "*"},
		{"empty", empty, nil, 200, ""},
		{"missing", f.path("nope"), nil, 404, fmt.Sprintf("path '%s' does not exist", f.path("nope"))},
		{"below a file", p + "/x", nil, 404, "*"},
		{"directory", f.dir, nil, 400, fmt.Sprintf("path '%s' is a directory", f.dir)},
		{"fifo", fifo, nil, 400, "*"},
		{"device", "/dev/zero", nil, 400, "*"},
		{"other home", "~root/x", nil, 400, "cannot expand user-specific home dir"},
		{"NUL", "a\x00b", nil, 400, "*"},
	} {
		res, body := f.do("GET", files(c.path), nil, c.headers...)
		if res.StatusCode != c.status {
			t.Errorf("%s: status %d, want %d: %.200s", c.name, res.StatusCode, c.status, body)
			continue
		}
		if c.status >= 400 && c.status != 416 {
			var e struct {
				Code    int
				Message string
			}
			if err := json.Unmarshal([]byte(body), &e); err != nil || e.Code != c.status || c.body != "*" && e.Message != c.body {
				t.Errorf("%s: error body %s", c.name, body)
			}
		} else if c.body != "*" && body != c.body {
			t.Errorf("%s: got %d bytes", c.name, len(body))
		}
	}
	res, _ := f.do("GET", files(empty), nil)
	if res.Header.Get("Content-Length") != "0" {
		t.Errorf("Content-Length of an empty file is %q", res.Header.Get("Content-Length"))
	}
	res, _ = f.do("GET", files(p), nil, "If-Modified-Since", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
	if res.StatusCode != http.StatusNotModified {
		t.Errorf("conditional: %d", res.StatusCode)
	}
	res, body := f.do("GET", files(p), nil, "Accept-Encoding", "gzip")
	zr, err := gzip.NewReader(strings.NewReader(body))
	if err != nil || res.Header.Get("Content-Encoding") != "gzip" {
		t.Fatalf("gzip: %v %v", err, res.Header)
	}
	if raw, _ := io.ReadAll(zr); string(raw) != big {
		t.Error("gzip: other content")
	}
	if _, body := f.do("GET", files("/proc/self/status"), nil); !strings.Contains(body, "Pid:") {
		t.Errorf("a file of /proc: %q", body)
	}
	if res, body := f.do("GET", files(p)+"&username=nobody-at-all", nil); res.StatusCode != 401 || !strings.Contains(body, "error looking up user 'nobody-at-all'") {
		t.Errorf("unknown user: %d %s", res.StatusCode, body)
	}
}

func form(t *testing.T, parts ...string) (io.Reader, string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for i := 0; i < len(parts); i += 2 {
		h := textproto.MIMEHeader{"Content-Disposition": {fmt.Sprintf(`form-data; name="file"; filename="%s"`, parts[i])}}
		p, err := w.CreatePart(h)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(p, parts[i+1])
	}
	_ = w.Close()
	return &b, w.FormDataContentType()
}

func (f *fixture) content(path string) string {
	f.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		f.Error(err)
	}
	return string(raw)
}

func TestUploadMultipart(t *testing.T) {
	f := serve(t)
	body, ctype := form(t, f.path("x/y/1.txt"), "one", f.path("x/2 \\\" ü.txt"), "two")
	res, answer := f.do("POST", "/files", body, "Content-Type", ctype, "X-Metadata-Author", "Me", "X-Metadata-k", "v")
	var got []written
	if err := json.Unmarshal([]byte(answer), &got); err != nil || res.StatusCode != 200 || len(got) != 2 {
		t.Fatalf("%d %s", res.StatusCode, answer)
	}
	if got[0].Name != "1.txt" || got[0].Path != f.path("x/y/1.txt") || got[0].Type != "file" || got[0].Metadata["author"] != "Me" {
		t.Errorf("got %+v", got[0])
	}
	if f.content(f.path("x/y/1.txt")) != "one" || f.content(f.path(`x/2 " ü.txt`)) != "two" {
		t.Error("other content")
	}
	st, err := f.client.Stat(t.Context(), connect.NewRequest(&guestv1.StatRequest{Path: f.path("x/y/1.txt")}))
	if err != nil {
		t.Fatal(err)
	}
	if md := st.Msg.Entry.Metadata; len(md) != 0 && (md["author"] != "Me" || md["k"] != "v") { // none: no attributes here
		t.Errorf("metadata %v", md)
	}
	body, ctype = form(t, "ignored.txt", "by query")
	if res, answer := f.do("POST", files(f.path("q.txt")), body, "Content-Type", ctype); res.StatusCode != 200 || f.content(f.path("q.txt")) != "by query" {
		t.Errorf("query path: %d %s", res.StatusCode, answer)
	}
	body, ctype = form(t, f.path("same"), "1", f.path("./x/../same"), "2")
	if res, _ := f.do("POST", "/files", body, "Content-Type", ctype); res.StatusCode != 400 {
		t.Errorf("one path twice: %d", res.StatusCode)
	}
}

func TestUploadOctets(t *testing.T) {
	f := serve(t)
	big := strings.Repeat("abcdefgh", 500_000)
	var zipped bytes.Buffer
	zw := gzip.NewWriter(&zipped)
	_, _ = io.WriteString(zw, big)
	_ = zw.Close()
	existing := f.write("existing", strings.Repeat("old", 100))
	link := f.path("link")
	if err := os.Symlink(existing, link); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(f.path("new-target"), f.path("dangling")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(f.path("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	const octets = "application/octet-stream"
	for _, c := range []struct {
		name, path, body string
		headers          []string
		status           int
		at               string // where the content ends up
	}{
		{"big", "big", big, []string{"Content-Type", octets}, 200, "big"},
		{"gzip", "gz", zipped.String(), []string{"Content-Type", octets, "Content-Encoding", "gzip"}, 200, "gz"},
		{"through a link", "link", "new", []string{"Content-Type", octets}, 200, "existing"},
		{"dangling link", "dangling", "new", []string{"Content-Type", octets}, 200, "new-target"},
		{"empty", "none", "", []string{"Content-Type", octets}, 200, "none"},
		{"directory", ".", "x", []string{"Content-Type", octets}, 400, ""},
		{"fifo", "fifo", "x", []string{"Content-Type", octets}, 400, ""},
		{"below a file", "existing/x", "x", []string{"Content-Type", octets}, 400, ""},
		{"not gzip", "bad", "x", []string{"Content-Type", octets, "Content-Encoding", "gzip"}, 400, ""},
		{"cut gzip", "cut", zipped.String()[:zipped.Len()/2], []string{"Content-Type", octets, "Content-Encoding", "gzip"}, 400, ""},
		{"other coding", "bad", "x", []string{"Content-Type", octets, "Content-Encoding", "br"}, 400, ""},
		{"other type", "bad", "x", []string{"Content-Type", "text/plain"}, 400, ""},
		{"no type", "bad", "x", nil, 400, ""},
		{"no boundary", "bad", "x", []string{"Content-Type", "multipart/form-data"}, 400, ""},
		{"bad metadata", "bad", "x", []string{"Content-Type", octets, "X-Metadata-a", "\xff"}, 400, ""},
		{"long metadata", "bad", "x", []string{"Content-Type", octets, "X-Metadata-a", strings.Repeat("v", 5000)}, 400, ""},
	} {
		res, answer := f.do("POST", files(f.path(c.path)), strings.NewReader(c.body), c.headers...)
		if res.StatusCode != c.status {
			t.Errorf("%s: %d %s", c.name, res.StatusCode, answer)
			continue
		}
		want := c.body
		if c.name == "gzip" {
			want = big
		}
		if c.at != "" && f.content(f.path(c.at)) != want {
			t.Errorf("%s: other content", c.name)
		}
	}
	for _, left := range []string{"bad", "cut"} {
		if _, err := os.Lstat(f.path(left)); err == nil {
			t.Errorf("%s is left behind", left)
		}
	}
	if res, _ := f.do("POST", "/files", strings.NewReader("x"), "Content-Type", octets); res.StatusCode != 400 {
		t.Errorf("no path: %d", res.StatusCode)
	}
}

func TestFullDisk(t *testing.T) {
	f := serve(t)
	if err := unix.Mount("tmpfs", f.dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skip("needs the right to mount:", err)
	}
	defer func() { _ = unix.Unmount(f.dir, unix.MNT_DETACH) }()
	res, answer := f.do("POST", files(f.path("big")), bytes.NewReader(make([]byte, 8<<20)), "Content-Type", "application/octet-stream")
	if res.StatusCode != http.StatusInsufficientStorage || !strings.Contains(answer, "not enough disk space available") {
		t.Errorf("got %d %s", res.StatusCode, answer)
	}
	if _, err := os.Stat(f.path("big")); err == nil {
		t.Error("the torn file is left behind")
	}
}

func TestCompose(t *testing.T) {
	f := serve(t)
	a, b := f.write("a", "one "), f.write("b", "two")
	body, _ := json.Marshal(map[string]any{"source_paths": []string{a, b}, "destination": f.path("d/joined")})
	res, answer := f.do("POST", "/files/compose", bytes.NewReader(body))
	if res.StatusCode != 200 || f.content(f.path("d/joined")) != "one two" || !strings.Contains(answer, `"name":"joined"`) {
		t.Fatalf("%d %s", res.StatusCode, answer)
	}
	if _, err := os.Stat(a); err == nil {
		t.Error("a source is left")
	}
	for name, bad := range map[string]string{
		"missing source": `{"source_paths":["/nope"],"destination":"` + f.path("x") + `"}`, "nothing": `{}`, "no JSON": `[`,
		"itself": `{"source_paths":["` + f.path("d/joined") + `"],"destination":"` + f.path("d/joined") + `"}`,
	} {
		if res, answer := f.do("POST", "/files/compose", strings.NewReader(bad)); res.StatusCode/100 != 4 {
			t.Errorf("%s: %d %s", name, res.StatusCode, answer)
		}
	}
}

func TestTree(t *testing.T) {
	f := serve(t)
	ctx := t.Context()
	f.write("d/sub/deep/file", "x")
	f.write("d/a", "12345")
	if err := os.Symlink("sub", f.path("d/link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("loop", f.path("loop")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.path("d/bad\xff"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	list := func(path string, depth uint32) ([]string, error) {
		res, err := f.client.ListDir(ctx, connect.NewRequest(&guestv1.ListDirRequest{Path: path, Depth: depth}))
		if err != nil {
			return nil, err
		}
		var names []string
		for _, e := range res.Msg.Entries {
			names = append(names, strings.TrimPrefix(e.Path, f.dir))
		}
		return names, nil
	}
	if got, err := list(f.path("d"), 0); err != nil || !slices.Equal(got, []string{"/d/a", "/d/bad\uFFFD", "/d/link", "/d/sub"}) {
		t.Errorf("depth 0: %q, %v", got, err)
	}
	if got, err := list(f.path("d/link"), 2); err != nil || !slices.Equal(got, []string{"/d/link/deep", "/d/link/deep/file"}) {
		t.Errorf("through a link: %q, %v", got, err)
	}
	for path, code := range map[string]connect.Code{"d/a": connect.CodeInvalidArgument, "none": connect.CodeNotFound, "loop": connect.CodeFailedPrecondition} {
		if _, err := list(f.path(path), 1); connect.CodeOf(err) != code {
			t.Errorf("list %s: %v", path, err)
		}
	}
	st, err := f.client.Stat(ctx, connect.NewRequest(&guestv1.StatRequest{Path: f.path("d/link")}))
	if err != nil || st.Msg.Entry.Type != guestv1.FileType_FILE_TYPE_DIRECTORY || st.Msg.Entry.GetSymlinkTarget() != f.path("d/sub") || !strings.HasPrefix(st.Msg.Entry.Permissions, "Lrwx") {
		t.Errorf("stat of a link: %v, %v", st, err)
	}
	st, err = f.client.Stat(ctx, connect.NewRequest(&guestv1.StatRequest{Path: f.path("loop")}))
	if err != nil || st.Msg.Entry.Type != guestv1.FileType_FILE_TYPE_UNSPECIFIED || st.Msg.Entry.GetSymlinkTarget() != f.path("loop") {
		t.Errorf("stat of a loop: %v, %v", st, err)
	}
	old := connect.NewRequest(&guestv1.StatRequest{Path: f.path("d/a")})
	old.Header().Set("User-Agent", "connect-python")
	if st, err := f.client.Stat(ctx, old); err != nil || st.Msg.Entry.Owner != "" || st.Msg.Entry.Name != "a" || st.Header().Get("X-E2B-Legacy-SDK") != "true" {
		t.Errorf("legacy: %v, %v", st, err)
	}
}

func TestChanges(t *testing.T) {
	f := serve(t)
	ctx := t.Context()
	file := f.write("file", "1")
	mkdir := func(p string) error {
		_, err := f.client.MakeDir(ctx, connect.NewRequest(&guestv1.MakeDirRequest{Path: f.path(p)}))
		return err
	}
	if err := mkdir("m/n/o"); err != nil {
		t.Error(err)
	}
	for p, code := range map[string]connect.Code{"m/n": connect.CodeAlreadyExists, "file": connect.CodeInvalidArgument, "file/x/y": connect.CodeInvalidArgument} {
		if err := mkdir(p); connect.CodeOf(err) != code {
			t.Errorf("mkdir %s: %v", p, err)
		}
	}
	move := func(from, to string) error {
		_, err := f.client.Move(ctx, connect.NewRequest(&guestv1.MoveRequest{Source: from, Destination: to}))
		return err
	}
	if err := move(file, f.path("new/dir/file")); err != nil || f.content(f.path("new/dir/file")) != "1" {
		t.Error(err)
	}
	if err := move(file, f.path("x")); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("move of nothing: %v", err)
	}
	for range 2 {
		if _, err := f.client.Remove(ctx, connect.NewRequest(&guestv1.RemoveRequest{Path: f.path("new")})); err != nil {
			t.Error(err)
		}
	}
	if _, err := f.client.Remove(ctx, connect.NewRequest(&guestv1.RemoveRequest{Path: "/"})); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("remove of the root: %v", err)
	}
}

func TestWatch(t *testing.T) {
	f := serve(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := f.client.WatchDir(ctx, connect.NewRequest(&guestv1.WatchDirRequest{Path: f.dir, Recursive: true, IncludeEntry: true}))
	if err != nil || !s.Receive() || s.Msg().GetStart() == nil {
		t.Fatalf("%v %v", err, s.Err())
	}
	defer s.Close()
	f.write("new/nested/file", "x")
	wanted := map[string]bool{"CREATE new": true, "CREATE new/nested": true, "CREATE new/nested/file": true, "WRITE new/nested/file": true}
	for len(wanted) > 0 && s.Receive() {
		ev := s.Msg().GetFilesystem()
		if ev.GetEntry() == nil && (ev.Type == guestv1.EventType_EVENT_TYPE_CREATE || ev.Type == guestv1.EventType_EVENT_TYPE_WRITE) {
			t.Errorf("no entry in %v", ev)
		}
		delete(wanted, strings.TrimPrefix(ev.GetType().String(), "EVENT_TYPE_")+" "+ev.GetName())
	}
	if len(wanted) > 0 {
		t.Errorf("missing %v: %v", wanted, s.Err())
	}
	for path, code := range map[string]connect.Code{f.path("none"): connect.CodeNotFound, f.path("new/nested/file"): connect.CodeInvalidArgument} {
		_, err := f.client.CreateWatcher(ctx, connect.NewRequest(&guestv1.CreateWatcherRequest{Path: path}))
		if connect.CodeOf(err) != code {
			t.Errorf("watch of %s: %v", path, err)
		}
	}
}

func TestWatcher(t *testing.T) {
	f := serve(t)
	ctx := t.Context()
	w, err := f.client.CreateWatcher(ctx, connect.NewRequest(&guestv1.CreateWatcherRequest{Path: f.dir}))
	if err != nil || !strings.HasPrefix(w.Msg.WatcherId, "w") {
		t.Fatal(w, err)
	}
	f.write("one", "x")
	if err := os.Rename(f.path("one"), f.path("two")); err != nil {
		t.Fatal(err)
	}
	var got []string
	for end := time.Now().Add(time.Minute); !slices.Contains(got, "CREATE two"); {
		res, err := f.client.GetWatcherEvents(ctx, connect.NewRequest(&guestv1.GetWatcherEventsRequest{WatcherId: w.Msg.WatcherId}))
		if err != nil || time.Now().After(end) {
			t.Fatal(got, err)
		}
		for _, ev := range res.Msg.Events {
			got = append(got, strings.TrimPrefix(ev.Type.String(), "EVENT_TYPE_")+" "+ev.Name)
		}
	}
	if !slices.Contains(got, "RENAME one") || !slices.Contains(got, "WRITE one") {
		t.Errorf("got %v", got)
	}
	remove := connect.NewRequest(&guestv1.RemoveWatcherRequest{WatcherId: w.Msg.WatcherId})
	if _, err := f.client.RemoveWatcher(ctx, remove); err != nil {
		t.Error(err)
	}
	if _, err := f.client.RemoveWatcher(ctx, remove); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("second removal: %v", err)
	}
	if _, err := f.client.GetWatcherEvents(ctx, connect.NewRequest(&guestv1.GetWatcherEventsRequest{WatcherId: "wnone"})); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("unknown watcher: %v", err)
	}
}

func TestWantsGzip(t *testing.T) {
	for header, want := range map[string]string{
		"": "identity", "gzip": "gzip", "GZIP;q=0.5": "gzip", "gzip;q=0": "identity", "gzip, deflate": "identity", "*": "identity",
		"gzip, identity": "gzip", "identity;q=0, gzip": "gzip", "identity;q=0": "none", "*;q=0": "none", "*;q=0, gzip": "gzip", "br": "identity",
	} {
		zip, err := wantsGzip(http.Header{"Accept-Encoding": {header}})
		got := map[bool]string{true: "gzip", false: "identity"}[zip]
		if err != nil {
			got = "none"
		}
		if got != want {
			t.Errorf("%q: %s, want %s", header, got, want)
		}
	}
}

func FuzzMultipart(f *testing.F) {
	for _, name := range []string{"a", "a/b/../c", "/etc/x", "..", `q\"uote`, "ü\xff", "~/x", "~root", strings.Repeat("x/", 3000), ""} {
		f.Add("--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"" + name + "\"\r\n\r\nx\r\n--B--\r\n")
	}
	dir := f.TempDir()
	svc := New(Options{})
	f.Fuzz(func(t *testing.T, body string) {
		r := multipart.NewReader(strings.NewReader(body), "B")
		for range 10 {
			part, err := r.NextRawPart()
			if err != nil {
				return
			}
			_, name := disposition(part)
			// Everything stays inside a directory: what a path may reach is not the matter here.
			path := filepath.Join(dir, filepath.Join("/", name))
			if strings.IndexByte(path, 0) < 0 && len(path) < 200 && path != dir {
				_ = svc.store(path, account.Account{}, part, nil)
			}
		}
	})
}
