package agentclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hearth/internal/guest"
	"hearth/internal/guest/daemon"
	"hearth/internal/guest/process/reap"
	"hearth/internal/hearth"
	"hearth/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// serveDaemon runs a real guest daemon and returns how to dial it.
func serveDaemon(t *testing.T) Dial {
	t.Helper()
	reaper := reap.New(reap.Children)
	d := daemon.New(daemon.Options{Reaper: reaper, Log: slog.New(slog.DiscardHandler)})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- d.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		reaper.Close()
	})
	return dialTo(l.Addr().String())
}

func dialTo(addr string) Dial {
	return func(ctx context.Context, _ uint16) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	}
}

func initRequest() guest.InitRequest {
	return guest.InitRequest{Now: time.Now(), Seed: bytes.Repeat([]byte{7}, 32), Token: "token", SandboxID: "i0", User: "root", Env: map[string]string{"GREETING": "hello"}}
}

func ready(t *testing.T) *Client {
	t.Helper()
	c := New(serveDaemon(t), "secret")
	if err := c.Init(t.Context(), initRequest()); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestInitWaitsForTheDaemon(t *testing.T) {
	dial := serveDaemon(t)
	var tries atomic.Int32
	c := New(func(ctx context.Context, port uint16) (net.Conn, error) {
		if tries.Add(1) < 5 {
			return nil, errors.New("connection refused")
		}
		return dial(ctx, port)
	}, "secret")
	if err := c.Init(t.Context(), initRequest()); err != nil {
		t.Fatal(err)
	}
	if n := tries.Load(); n != 5 {
		t.Errorf("%d attempts, want 5", n)
	}
}

func TestInitGivesUp(t *testing.T) {
	c := New(func(context.Context, uint16) (net.Conn, error) { return nil, errors.New("refused") }, "secret")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Init(ctx, initRequest()); hearth.KindOf(err) != hearth.DeadlineExceeded {
		t.Errorf("got %v, want DeadlineExceeded", err)
	}
}

func TestInitOfAnothersDaemon(t *testing.T) {
	dial := serveDaemon(t)
	if err := New(dial, "first").Init(t.Context(), initRequest()); err != nil {
		t.Fatal(err)
	}
	if err := New(dial, "other").Init(t.Context(), initRequest()); hearth.KindOf(err) != hearth.Unauthenticated {
		t.Errorf("got %v, want Unauthenticated", err)
	}
	rotate := initRequest()
	rotate.Control = "second"
	for range 2 { // the second time as if the first answer had been lost
		if err := New(dial, "first").Init(t.Context(), rotate); err != nil {
			t.Errorf("rotating the secret: %v", err)
		}
	}
	if err := New(dial, "second").Quiesce(t.Context(), guest.QuiesceRequest{Forget: true}); err != nil {
		t.Fatal(err)
	}
	if err := New(dial, "other").Init(t.Context(), initRequest()); err != nil {
		t.Errorf("claiming a daemon that forgot: %v", err)
	}
}

func TestRun(t *testing.T) {
	c := ready(t)
	var got []string
	exit, err := c.Run(t.Context(), RunRequest{User: "root", Cmd: `printf "a\nb"; echo "$GREETING $X" >&2; pwd; exit 7`, Env: map[string]string{"X": "y"}, Cwd: "/tmp"},
		func(stream, line string) { got = append(got, stream+":"+line) })
	if err != nil || exit != 7 {
		t.Fatalf("got %d, %v", exit, err)
	}
	slices.Sort(got)
	if want := []string{"stderr:hello y", "stdout:a", "stdout:b/tmp"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, err := c.Run(t.Context(), RunRequest{User: "no-such-user", Cmd: "true"}, nil); hearth.KindOf(err) != hearth.Unauthenticated {
		t.Errorf("unknown user: %v", err)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	c := ready(t)
	ctx, cancel := context.WithCancel(t.Context())
	pid := make(chan string, 1)
	done := make(chan error, 1)
	go func() {
		_, err := c.Run(ctx, RunRequest{Cmd: "echo $$; exec sleep 1000"}, func(_, line string) { pid <- line })
		done <- err
	}()
	proc := "/proc/" + <-pid
	cancel()
	if err := <-done; hearth.KindOf(err) != hearth.Canceled {
		t.Errorf("got %v, want Canceled", err)
	}
	if _, err := os.Stat(proc); err == nil {
		t.Error("the command is still there")
	}
}

func TestStartSurvives(t *testing.T) {
	c := ready(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	lines := make(chan string, 1)
	p, err := c.Start(ctx, RunRequest{Cmd: "echo up; exec sleep 1000"}, func(_, l string) { lines <- l })
	if err != nil {
		t.Fatal(err)
	}
	<-lines
	cancel()
	p.Detach()
	exit, err := c.Run(t.Context(), RunRequest{Cmd: fmt.Sprintf("kill -0 %d", p.PID())}, nil)
	if err != nil || exit != 0 {
		t.Errorf("the command is gone after its client: %d, %v", exit, err)
	}
}

func TestUploadAndForward(t *testing.T) {
	c := ready(t)
	path := filepath.Join(t.TempDir(), "a", "b.txt")
	if err := c.Upload(t.Context(), "root", path, strings.NewReader("content")); err != nil {
		t.Fatal(err)
	}
	if raw, _ := os.ReadFile(path); string(raw) != "content" {
		t.Errorf("got %q", raw)
	}
	if err := c.Upload(t.Context(), "root", filepath.Dir(path), strings.NewReader("")); hearth.KindOf(err) != hearth.InvalidArgument {
		t.Errorf("upload to a directory: %v", err)
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.Copy(conn, conn)
	}()
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	conn, err := c.Forward(t.Context(), port)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = conn.Write([]byte("ping"))
	_ = conn.(interface{ CloseWrite() error }).CloseWrite()
	if raw, err := io.ReadAll(conn); err != nil || string(raw) != "ping" {
		t.Errorf("got %q, %v", raw, err)
	}
	_ = l.Close()
	if _, err := c.Forward(t.Context(), port); hearth.KindOf(err) != hearth.Unavailable {
		t.Errorf("closed port: %v", err)
	}
}

// reply is a guest that answers every connection with the same bytes.
func reply(answer []byte) Dial {
	return func(context.Context, uint16) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			go io.Copy(io.Discard, theirs)
			_, _ = theirs.Write(answer)
		}()
		return ours, nil
	}
}

func FuzzHostileReplies(f *testing.F) {
	for _, s := range []string{
		"", "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nx",
		"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n{}", "HTTP/1.1 101 Switching Protocols\r\n\r\nearly",
		"HTTP/1.1 500 \r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", "HTTP/1.1 100 Continue\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Type: application/connect+proto\r\n\r\n\x00\x00\x00\x00\x04\x0a\x02\x0a\x00",
		"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\n\r\n", strings.Repeat("x", 100_000),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		c := New(reply(answer), "secret")
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		_ = c.Init(ctx, initRequest())
		_ = c.Quiesce(t.Context(), guest.QuiesceRequest{})
		if conn, err := c.Forward(t.Context(), 80); err == nil {
			_ = conn.Close()
		}
		_, _ = c.Run(ctx, RunRequest{Cmd: "true"}, nil)
		if err := c.Upload(t.Context(), "", "/x", strings.NewReader("y")); err != nil && len(err.Error()) > 4096 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	})
}

func TestSilentGuest(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	defer srv.Close()
	c := New(dialTo(srv.Listener.Addr().String()), "secret")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Init(ctx, initRequest()); hearth.KindOf(err) != hearth.DeadlineExceeded {
		t.Errorf("init: %v", err)
	}
	if _, err := c.Run(ctx, RunRequest{Cmd: "true"}, nil); hearth.KindOf(err) != hearth.DeadlineExceeded {
		t.Errorf("run: %v", err)
	}
}

func TestLines(t *testing.T) {
	var got []string
	l := lines{emit: func(s string) { got = append(got, s) }}
	for _, s := range []string{"a", "b\r\nc\n\n", strings.Repeat("x", maxLine+3), "\nend\xff"} {
		l.add([]byte(s))
	}
	l.flush()
	want := []string{"ab", "c", "", strings.Repeat("x", maxLine), "xxx", "end\uFFFD"}
	if !slices.Equal(got, want) {
		t.Errorf("got %d lines %.40q", len(got), got)
	}
}
