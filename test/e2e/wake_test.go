package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"hearth/client"
)

// socketServer answers HTTP with its process ID and, over a WebSocket, each short
// message with the process ID and the message.
const socketServer = `
import base64, hashlib, http.server, os, threading
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *a): pass
    def do_GET(self):
        key = self.headers.get('Sec-WebSocket-Key')
        if not key:
            body = str(os.getpid()).encode()
            self.send_response(200); self.send_header('Content-Length', str(len(body))); self.end_headers()
            self.wfile.write(body)
            return
        accept = base64.b64encode(hashlib.sha1((key + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11').encode()).digest()).decode()
        self.send_response(101)
        for k, v in (('Upgrade', 'websocket'), ('Connection', 'Upgrade'), ('Sec-WebSocket-Accept', accept)): self.send_header(k, v)
        self.end_headers()
        while True:
            head = self.rfile.read(2)
            if len(head) < 2: return
            mask = self.rfile.read(4)
            text = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(head[1] & 127)))
            out = str(os.getpid()).encode() + b' ' + text
            self.wfile.write(bytes([0x81, len(out)]) + out); self.wfile.flush()
http.server.ThreadingHTTPServer(('0.0.0.0', 8300), H).serve_forever()
`

// webSocket opens one to a port of a sandbox, whatever state that is in, sends a
// message and returns the answer. The connection is closed with the test.
func (s *server) webSocket(t *testing.T, sandbox, message string) (string, error) {
	conn, err := net.Dial("tcp", s.listen)
	if err != nil {
		return "", err
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return "", err
	}
	fmt.Fprintf(conn, "GET /ws HTTP/1.1\r\nHost: x\r\nE2b-Sandbox-Id: %s\r\nE2b-Sandbox-Port: 8300\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", sandbox)
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Sec-Websocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		return "", errors.New(resp.Status)
	}
	frame := []byte{0x81, 0x80 | byte(len(message)), 1, 2, 3, 4}
	for i := range len(message) {
		frame = append(frame, message[i]^frame[2+i%4])
	}
	if _, err := conn.Write(frame); err != nil {
		return "", err
	}
	head := make([]byte, 2)
	if _, err := io.ReadFull(in, head); err != nil {
		return "", err
	}
	answer := make([]byte, head[1])
	_, err = io.ReadFull(in, answer)
	return string(answer), err
}

// lives counts the machines that the journal has had for a sandbox: a machine's
// file goes when it has ended.
func (s *server) lives(t *testing.T, sandbox string) int {
	t.Helper()
	n := 0
	journals, _ := filepath.Glob(filepath.Join(s.data, "node", "machines", "*.json"))
	for _, j := range journals {
		if raw, err := os.ReadFile(j); err == nil && strings.Contains(string(raw), sandbox) {
			n++
		}
	}
	return n
}

// TestTrafficWakes pauses a sandbox and lets WebSockets, requests and calls of the
// SDK arrive at once: there is one resume, and all of them are served by the process
// that ran before.
func TestTrafficWakes(t *testing.T) {
	s := newBaseServer(t)
	t.Run("at once", s.manyWake)
	t.Run("idle", s.idlePause)
}

func (s *server) manyWake(t *testing.T) {
	sb := s.sandbox(t, client.CreateOptions{Timeout: 10 * time.Minute, AutoPause: true, AutoResume: true})
	_, err := sb.Files.Write(t.Context(), "/tmp/server.py", strings.NewReader(socketServer))
	must(t, err)
	p, err := sb.Commands.Start(t.Context(), "exec python3 /tmp/server.py", client.RunOptions{})
	must(t, err)
	p.Detach()
	before := ""
	eventually(t, "the server in the sandbox answers", func() bool {
		before, err = s.webSocket(t, sb.ID, "hello")
		return err == nil
	})
	pid, _, _ := strings.Cut(before, " ")
	for round := range 2 {
		must(t, sb.Pause(t.Context()))
		eventually(t, "the paused sandbox has no machine", func() bool { return s.lives(t, sb.ID) == 0 })
		var g errgroup.Group
		for i := range 12 {
			g.Go(func() error {
				switch i % 3 {
				case 0:
					got, err := s.webSocket(t, sb.ID, fmt.Sprint("message ", i))
					if want := fmt.Sprint(pid, " message ", i); err == nil && got != want {
						err = fmt.Errorf("WebSocket: %q, want %q", got, want)
					}
					return err
				case 1:
					resp, err := sb.Request(t.Context(), "GET", 8300, "/", nil)
					if err != nil {
						return err
					}
					defer resp.Body.Close()
					if raw, err := io.ReadAll(resp.Body); err != nil || string(raw) != pid {
						return fmt.Errorf("request: %s %q, %w", resp.Status, raw, err)
					}
					return nil
				}
				res, err := sb.Commands.Run(t.Context(), "kill -0 "+pid, client.RunOptions{})
				if err == nil && res.ExitCode != 0 {
					err = fmt.Errorf("command: %+v", res)
				}
				return err
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if n := s.lives(t, sb.ID); n != 1 {
			t.Errorf("%d machines after one resume", n)
		}
	}
}

// idlePause: a sandbox is not paused while somebody waits for a command of it, is
// when nobody has asked it anything for so long, and wakes for the next one.
func (s *server) idlePause(t *testing.T) {
	sb := s.sandbox(t, client.CreateOptions{Timeout: 10 * time.Minute, Idle: 5 * time.Second, AutoResume: true, AutoPause: true})
	res, err := sb.Commands.Run(t.Context(), "sleep 12; echo $$ > /dev/shm/word; echo awake", client.RunOptions{})
	if err != nil || res.Stdout != "awake\n" {
		t.Fatalf("a command that takes longer than the idle time: %v, %+v", err, res)
	}
	state := func() string {
		info, err := sb.Info(t.Context())
		must(t, err)
		return info.State
	}
	answered := time.Now()
	if got := state(); got != "running" && time.Since(answered) < 4*time.Second {
		t.Errorf("right after a command it is %s", got)
	}
	eventually(t, "it is paused for idleness", func() bool { return state() == "paused" })
	// The pause may be under way still: what comes now waits for its end.
	if out := sh(t, sb, "cat /dev/shm/word"); out == "" || strings.Contains(out, "No such") {
		t.Errorf("after the idle pause: %q", out)
	}
	answered = time.Now()
	if got := state(); got != "running" && time.Since(answered) < 4*time.Second {
		t.Errorf("after a command woke it, it is %s", got)
	}
}
