package edge

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"hearth/internal/guest"
	"hearth/internal/hearth"
)

func TestWebSocket(t *testing.T) {
	town := newTown()
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		for {
			kind, data, err := c.Read(r.Context())
			if err != nil || c.Write(r.Context(), kind, data) != nil {
				return
			}
		}
	})
	town.serve(t, alpha, 3000, echo)
	town.serve(t, alpha, guest.Port, echo)
	e, s := town.open(t, Config{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dial := func(port string) (*websocket.Conn, error) {
		c, _, err := websocket.Dial(ctx, s.URL, &websocket.DialOptions{HTTPHeader: http.Header{SandboxHeader: {alpha}, PortHeader: {port}}})
		return c, err
	}
	c, err := dial("3000")
	must(t, err)
	must(t, c.Write(ctx, websocket.MessageText, []byte("hello")))
	_, data, err := c.Read(ctx)
	if err != nil || string(data) != "hello" {
		t.Errorf("%q, %v", data, err)
	}
	e.Drop(alpha)
	if _, _, err := c.Read(ctx); err == nil {
		t.Error("the connection outlived the sandbox")
	}
	if _, err := dial("49983"); err == nil {
		t.Error("a connection into the guest daemon was upgraded")
	}
}

func TestUpgradesThatAreTunnels(t *testing.T) {
	town := newTown()
	town.serve(t, alpha, 3000, mirror())
	_, s := town.open(t, Config{})
	_, body, _ := ask(t, s, alpha, 3000, func(r *http.Request) {
		r.Header.Set("Connection", "Upgrade, HTTP2-Settings")
		r.Header.Set("Upgrade", "h2c")
		r.Header.Set("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA")
	})
	if strings.Contains(strings.ToLower(body), "upgrade") && strings.Contains(body, "h2c") {
		t.Errorf("the guest was asked for h2c: %s", body)
	}
}

func TestDropBreaksStreamsAndForgetsConnections(t *testing.T) {
	town := newTown()
	started := make(chan struct{}, 10)
	town.serve(t, alpha, 3000, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "first")
		w.(http.Flusher).Flush()
		started <- struct{}{}
		<-r.Context().Done()
	}))
	town.serve(t, alpha, 3001, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		started <- struct{}{}
		<-r.Context().Done()
	}))
	e, s := town.open(t, Config{})
	r, _ := http.NewRequest("GET", s.URL, nil)
	r.Header.Set(SandboxHeader, alpha)
	r.Header.Set(PortHeader, "3000")
	resp, err := http.DefaultTransport.RoundTrip(r)
	must(t, err)
	defer resp.Body.Close()
	buf := make([]byte, 5)
	_, err = io.ReadFull(resp.Body, buf) // arrives though the response goes on
	must(t, err)
	<-started
	waiting := make(chan string, 1)
	go func() {
		_, body, _ := ask(t, s, alpha, 3001, nil)
		waiting <- body
	}()
	<-started
	town.change(alpha, func(r *Route) { r.State = hearth.Stopped })
	e.Drop(alpha)
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("an open stream ended as if it were complete")
	}
	if body := <-waiting; !strings.Contains(body, "The sandbox was not found") {
		t.Errorf("a request under way: %s", body)
	}
	if code, _, _ := ask(t, s, alpha, 3000, nil); code != 502 {
		t.Errorf("after the end: %d", code)
	}
}

func TestConnectionsBelongToOneLife(t *testing.T) {
	town := newTown()
	town.serve(t, alpha, 3000, say("old"))
	_, s := town.open(t, Config{})
	for range 3 {
		if _, body, _ := ask(t, s, alpha, 3000, nil); body != "old" {
			t.Fatal(body)
		}
	}
	if n := town.dials.Load(); n != 1 {
		t.Errorf("%d connections for three requests", n)
	}
	town.serve(t, alpha, 3000, say("new"))
	town.change(alpha, func(r *Route) { r.Life = 2 })
	if _, body, _ := ask(t, s, alpha, 3000, nil); body != "new" {
		t.Errorf("the next life was asked over a connection of the last: %s", body)
	}
	town.change(alpha, func(r *Route) { r.Life = 1 }) // a stale answer
	if code, _, _ := ask(t, s, alpha, 3000, nil); code != 502 {
		t.Errorf("a route into the past: %d", code)
	}
}

func TestServerThatIsJustStarting(t *testing.T) {
	town := newTown()
	town.serve(t, alpha, 3000, say("up"))
	town.late[alpha+":3000"] = 2
	_, s := town.open(t, Config{})
	if _, body, _ := ask(t, s, alpha, 3000, nil); body != "up" {
		t.Error(body)
	}
	if code, _, _ := ask(t, s, alpha, 3001, nil); code != 502 {
		t.Errorf("a port nobody serves: %d", code)
	}
}

func TestConnectionLimit(t *testing.T) {
	town := newTown()
	release := make(chan struct{})
	inside := make(chan struct{}, 10)
	town.serve(t, alpha, 3000, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		inside <- struct{}{}
		<-release
	}))
	town.serve(t, beta, 3000, say("other"))
	_, s := town.open(t, Config{Connections: 2})
	var g sync.WaitGroup
	for range 2 {
		g.Go(func() { ask(t, s, alpha, 3000, nil) })
	}
	<-inside
	<-inside
	code, body, _ := ask(t, s, alpha, 3000, nil)
	if code != 429 || !strings.Contains(body, `"connectionLimit":2,"code":429`) {
		t.Errorf("%d %s", code, body)
	}
	if code, _, _ := ask(t, s, beta, 3000, nil); code != 200 {
		t.Errorf("another sandbox: %d", code)
	}
	close(release)
	g.Wait()
	if code, _, _ := ask(t, s, alpha, 3000, nil); code != 200 {
		t.Errorf("afterwards: %d", code)
	}
}

// TestTotalLimit: the visitors of one sandbox must not take the descriptors
// that the server and all others need.
func TestTotalLimit(t *testing.T) {
	town := newTown()
	release, inside := make(chan struct{}), make(chan struct{})
	town.serve(t, alpha, 3000, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		inside <- struct{}{}
		<-release
	}))
	town.serve(t, beta, 3000, say("other"))
	_, s := town.open(t, Config{Total: 1})
	var g sync.WaitGroup
	g.Go(func() { ask(t, s, alpha, 3000, nil) })
	<-inside
	code, body, _ := ask(t, s, beta, 3000, nil)
	if code != 503 || !strings.Contains(body, `"connectionLimit":1,"code":503`) {
		t.Errorf("%d %s", code, body)
	}
	close(release)
	g.Wait()
	if code, body, _ := ask(t, s, beta, 3000, nil); code != 200 {
		t.Errorf("afterwards: %d %s", code, body)
	}
}

func TestH2C(t *testing.T) {
	town := newTown()
	town.serve(t, alpha, 3000, mirror())
	_, s := town.open(t, Config{Domain: "box.test"})
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	defer tr.CloseIdleConnections()
	r, _ := http.NewRequest("POST", s.URL+"/x", strings.NewReader("body"))
	r.Host = "3000-" + alpha + ".box.test"
	resp, err := tr.RoundTrip(r)
	must(t, err)
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.ProtoMajor != 2 || !strings.Contains(string(body), `"body":"body"`) || !strings.Contains(string(body), r.Host) {
		t.Errorf("%s %s", resp.Proto, body)
	}
}

// TestAnswerBeforeTheEndOfTheRequest lets a guest answer while it still reads.
func TestAnswerBeforeTheEndOfTheRequest(t *testing.T) {
	town := newTown()
	town.serve(t, alpha, 8000, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		duplex := http.NewResponseController(w)
		must(t, duplex.EnableFullDuplex())
		for buf := make([]byte, 1); ; {
			n, err := r.Body.Read(buf)
			w.Write(buf[:n])
			duplex.Flush()
			if err != nil {
				return
			}
		}
	}))
	_, s := town.open(t, Config{})
	body, send := io.Pipe()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "POST", s.URL, body)
	must(t, err)
	req.Header.Set(SandboxHeader, alpha)
	req.Header.Set(PortHeader, "8000")
	go io.WriteString(send, "a")
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer resp.Body.Close()
	for _, text := range []string{"a", "b", "c"} {
		got := make([]byte, 1)
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != text {
			t.Fatalf("got %q, %v; want %q", got, err, text)
		}
		if text != "c" {
			_, err := io.WriteString(send, string(text[0]+1))
			must(t, err)
		}
	}
	send.Close()
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
		t.Errorf("the rest is %q, %v", rest, err)
	}
}
