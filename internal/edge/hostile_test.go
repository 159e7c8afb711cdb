package edge

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"strings"
	"testing"
	"time"

	"hearth/internal/guest"
	"hearth/internal/hearth"
)

// raw sends bytes and returns the answers to them.
func raw(t *testing.T, s *httptest.Server, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	must(t, err)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	_, err = io.WriteString(conn, request)
	must(t, err)
	all, _ := io.ReadAll(conn)
	return string(all)
}

// TestSmuggling: what is ambiguous to count is refused or made plain, so that a
// guest sees exactly the requests that the edge has judged.
func TestSmuggling(t *testing.T) {
	town := newTown()
	town.serve(t, alpha, guest.Port, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if r.URL.Path != "/ok" {
			t.Errorf("the guest saw %s", r.URL.Path)
		}
	}))
	_, s := town.open(t, Config{})
	head := fmt.Sprintf("POST /ok HTTP/1.1\r\nHost: h\r\nConnection: close\r\n%s: %s\r\n%s: %d\r\n", SandboxHeader, alpha, PortHeader, guest.Port)
	hidden := "POST /init HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
	for _, framing := range []string{
		"Content-Length: 0\r\nContent-Length: " + fmt.Sprint(len(hidden)) + "\r\n\r\n" + hidden,
		"Content-Length: " + fmt.Sprint(len(hidden)) + "\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
		"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + hidden,
		"Transfer-Encoding: xchunked\r\n\r\n" + hidden,
		"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + hidden,
		"Content-Length: +5\r\n\r\nabcde" + hidden,
		"Content-Length: 5\r\nX: a\rContent-Length: 0\r\n\r\nabcde" + hidden,
		"Transfer-Encoding: chunked\r\n\r\n5;x=\ny\r\nabcde\r\n0\r\n\r\n" + hidden,
		"Content-Length: " + fmt.Sprint(len(hidden)) + "\r\nExpect: 100-continue\r\n\r\n" + hidden,
		"Content-Length: 0\r\nX-A: b\r\n\tfolded: c\r\n\r\n",
	} {
		raw(t, s, head+framing)
	}
}

func TestHeaderBombs(t *testing.T) {
	town := newTown()
	town.serve(t, alpha, 3000, say("in"))
	_, s := town.open(t, Config{})
	head := fmt.Sprintf("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n%s: %s\r\n%s: 3000\r\n", SandboxHeader, alpha, PortHeader)
	for _, bomb := range []string{
		strings.Repeat("X-A: b\r\n", maxFields+1),
		"X-A: " + strings.Repeat("b", maxHeader) + "\r\n",
		"X-A: " + strings.Repeat("b", 2<<20) + "\r\n",
	} {
		if got := raw(t, s, head+bomb+"\r\n"); !strings.HasPrefix(got, "HTTP/1.1 431 ") && got != "" {
			t.Errorf("%d bytes of headers: %.100q", len(bomb), got)
		}
	}
	if got := raw(t, s, strings.Replace(head, PortHeader, SandboxHeader+": "+beta+"\r\n"+PortHeader, 1)+"\r\n"); !strings.HasPrefix(got, "HTTP/1.1 400 ") {
		t.Errorf("two sandboxes: %.100q", got)
	}
}

// TestHostileGuest: what a guest answers is bounded and cannot forge the edge.
func TestHostileGuest(t *testing.T) {
	for name, reply := range map[string]string{
		"endless header":     "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 1<<20) + "\r\n\r\n",
		"endless informers":  strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", 100000),
		"no status":          "hello\r\n\r\n",
		"unasked upgrade":    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
		"two lengths":        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
		"silence and goodby": "",
	} {
		t.Run(name, func(t *testing.T) {
			town := newTown()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			must(t, err)
			defer l.Close()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						defer c.Close()
						http.ReadRequest(bufio.NewReader(c))
						io.WriteString(c, reply)
					}()
				}
			}()
			town.ports[alpha+":3000"] = l.Addr().String()
			_, s := town.open(t, Config{})
			if code, body, _ := ask(t, s, alpha, 3000, nil); code != 502 {
				t.Errorf("%d %.100q", code, body)
			}
		})
	}
}

func TestAnswersDoNotCarryMarkup(t *testing.T) {
	town := newTown()
	_, s := town.open(t, Config{})
	got := raw(t, s, fmt.Sprintf("GET /init<script> HTTP/1.1\r\nHost: h\r\nConnection: close\r\nUser-Agent: mozilla\r\n%s: %s\r\n%s: 49983\r\n\r\n", SandboxHeader, "x<b>", PortHeader))
	if strings.Contains(got, "<b>") || strings.Contains(got, "<script>") {
		t.Error(got)
	}
}

// TestSignedFilesHaveNoOrigin: a browser that opens a signed URL does so on the
// API's host name. What the sandbox says there cannot act in that name, whatever
// is said before it. On names of the sandbox's own nothing is taken away.
func TestSignedFilesHaveNoOrigin(t *testing.T) {
	town := newTown()
	town.sign = func(SignedURL) (hearth.SandboxID, error) { return alpha, nil }
	town.serve(t, alpha, guest.Port, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</x>")
		w.WriteHeader(http.StatusEarlyHints) // net/http's proxy forgets what headers it had before one
		w.Header().Set("Content-Type", "text/html")
		w.Header().Set("Content-Security-Policy", "script-src *")
		for _, name := range wholeOrigin {
			w.Header().Set(name, "a=b")
		}
		io.WriteString(w, "<script>")
	}))
	_, s := town.open(t, Config{Domain: "box.test"})
	for _, test := range []struct {
		name, method, id string
		host             string
		policies, cookie string
	}{
		{"signed", "GET", "", "", "script-src *|sandbox", ""},
		{"signed, by another way through", "POST", "", "", "script-src *|sandbox", ""},
		{"by header", "GET", alpha, "", "script-src *", "a=b"},
		{"by host name", "GET", "", fmt.Sprintf("%d-%s.box.test", guest.Port, alpha), "script-src *", "a=b"},
	} {
		_, body, h := ask(t, s, test.id, guest.Port, func(r *http.Request) {
			r.Method, r.URL.Path, r.URL.RawQuery = test.method, "/files", "path=a&signature=v1_"+strings.Repeat("a", 43)
			if test.host != "" {
				r.Host = test.host
			}
		})
		if got := strings.Join(h.Values("Content-Security-Policy"), "|"); body != "<script>" || got != test.policies || h.Get("Set-Cookie") != test.cookie {
			t.Errorf("%s: %s %v", test.name, body, h)
		}
		for _, name := range wholeOrigin {
			if h.Get(name) != test.cookie {
				t.Errorf("%s: %s is %q", test.name, name, h.Get(name))
			}
		}
	}
}

func FuzzHost(f *testing.F) {
	for _, s := range []string{"80-iabc.box.test", "80-iabc-x.box.test:443", "[::1]:80", "1.2.3.4", "80-i.x.", "0-a.b", "080-a.b", "80-ä.b", "80-a%2e.b", ":", "[", "a]:b:c"} {
		f.Add(s)
	}
	e := New(Config{Domain: "box.test"}, Deps{})
	f.Fuzz(func(t *testing.T, host string) {
		e.ours(host)
		got, err := parseHost(host)
		if err != nil {
			if hearth.KindOf(err) != hearth.InvalidArgument {
				t.Errorf("%q: %v", host, err)
			}
			return
		}
		if got.port == 0 || got.id == "" || len(got.id) > 64 || strings.Trim(string(got.id), "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
			t.Errorf("%q: %+v", host, got)
		}
		if again, err := parseHost(fmt.Sprintf("%d-%s.box.test", got.port, got.id)); err != nil || again != got {
			t.Errorf("%q: %+v, then %+v, %v", host, got, again, err)
		}
	})
}

// FuzzReserved: however a path is written, if a server would take it for a
// reserved one, the edge does not pass it on.
func FuzzReserved(f *testing.F) {
	for _, s := range []string{"/init", "//init", "/./init", "/%69nit", "/a/../init", "/%2finit", "/init/", "/init%3f", "/INIT", "/init;x", "/rehearse", "/x/..//inventory"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, target string) {
		u, err := url.ParseRequestURI(target)
		if err != nil || !strings.HasPrefix(target, "/") {
			return
		}
		r := &http.Request{URL: u}
		switch path.Clean("/" + u.Path) {
		case guest.InitPath, guest.QuiescePath, guest.ForwardPath, guest.RehearsePath, guest.InventoryPath:
			if !reserved(r) {
				t.Errorf("%q was let through", target)
			}
		}
	})
}
