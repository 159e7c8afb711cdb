package qmp

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const hello = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}, "capabilities": []}}` + "\n"

// talk connects to something that says what it is told to, whatever it is asked.
func talk(t *testing.T, says string) (*Conn, error) {
	t.Helper()
	return Talk(io.Discard, strings.NewReader(says))
}

func TestCallSkipsEvents(t *testing.T) {
	c, err := talk(t, hello+`{"return": {}}`+"\n"+`{"event": "STOP", "data": {}}`+"\n"+`{"return": {"status": "paused"}}`+"\n")
	if err != nil {
		t.Fatal(err)
	}
	var status struct{ Status string }
	if err := c.Ask(t.Context(), "query-status", &status); err != nil || status.Status != "paused" {
		t.Errorf("status %q, %v", status.Status, err)
	}
	if v := c.Version(); v.String() != "7.2.22" || v.Older(7, 2) || !v.Older(7, 3) || !v.Older(10, 0) {
		t.Errorf("version %s", v)
	}
}

func TestRefusalIsAnError(t *testing.T) {
	c, err := talk(t, hello+`{"return": {}}`+"\n"+`{"error": {"class": "GenericError", "desc": "no such thing"}}`+"\n")
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Call(t.Context(), Command{Name: "stop"})
	var refused *Error
	if !errors.As(err, &refused) || refused.Command != "stop" || refused.Desc != "no such thing" {
		t.Errorf("%v", err)
	}
}

func TestLiesAreErrors(t *testing.T) {
	ready := hello + `{"return": {}}` + "\n"
	for name, says := range map[string]string{
		"nothing":         "",
		"no greeting":     `{"return": {}}` + "\n",
		"no JSON":         "hello\n",
		"half a line":     `{"QMP": {`,
		"endless line":    ready + strings.Repeat("x", maxLine+1),
		"no answer":       ready + "{}\n",
		"another type":    ready + `{"return": [1]}` + "\n",
		"events for ever": ready + strings.Repeat(`{"event": "E"}`+"\n", maxOther+1),
	} {
		c, err := talk(t, says)
		if err == nil {
			var status struct{ Status string }
			err = c.Ask(t.Context(), "query-status", &status)
		}
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// A QEMU that says nothing is waited for as long as the caller likes.
func TestSilenceEndsWithTheContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func TestDescriptorsAreSent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan error, 1)
	go func() { got <- answerOnce(l) }()
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := c.Call(t.Context(), Command{Name: "getfd", Arguments: map[string]string{"fdname": "f"}, File: f}); err != nil {
		t.Error(err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// answerOnce plays QEMU for one command with a descriptor.
func answerOnce(l *net.UnixListener) error {
	conn, err := l.AcceptUnix()
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(hello)); err != nil {
		return err
	}
	buf, rights := make([]byte, 4096), make([]byte, 64)
	if _, err := conn.Read(buf); err != nil { // qmp_capabilities
		return err
	}
	if _, err := conn.Write([]byte(`{"return": {}}` + "\n")); err != nil {
		return err
	}
	n, nr, _, _, err := conn.ReadMsgUnix(buf, rights)
	if err != nil {
		return err
	}
	if want := `{"execute":"getfd","arguments":{"fdname":"f"}}` + "\n"; string(buf[:n]) != want {
		return fmt.Errorf("QEMU was told %q", buf[:n])
	}
	msgs, err := unix.ParseSocketControlMessage(rights[:nr])
	if err != nil || len(msgs) != 1 {
		return fmt.Errorf("%d control messages, %w", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return fmt.Errorf("descriptors %v, %w", fds, err)
	}
	_ = unix.Close(fds[0])
	_, err = conn.Write([]byte(`{"return": {}}` + "\n"))
	return err
}

func FuzzConversation(f *testing.F) {
	f.Add([]byte(hello + `{"return": {}}` + "\n" + `{"event": "STOP"}` + "\n" + `{"return": {"status": "running"}}` + "\n"))
	f.Add([]byte(`{"QMP": null}`))
	f.Fuzz(func(t *testing.T, says []byte) {
		c, err := Talk(io.Discard, bytes.NewReader(says))
		if err != nil {
			return
		}
		var status struct{ Status string }
		_ = c.Ask(t.Context(), "query-status", &status)
	})
}

func TestReadLineIsNotBoundToABuffer(t *testing.T) {
	long := strings.Repeat("y", 100_000) + "\n"
	line, err := readLine(bufio.NewReaderSize(strings.NewReader(long), 16))
	if err != nil || string(line) != long {
		t.Errorf("%d bytes, %v", len(line), err)
	}
}
