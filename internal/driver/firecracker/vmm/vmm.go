// Package vmm speaks to one Firecracker process over its API socket: HTTP with
// small JSON bodies. The process on the other side is a sandbox's, so nothing it
// says is trusted: replies are bounded in size and time, and what it calls a
// fault is cut before anyone sees it.
package vmm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

const (
	maxReply  = 64 << 10        // bytes of a reply's body, and of its header
	maxFault  = 300             // runes of a fault message that are kept
	quickCall = 5 * time.Second // for everything that does not move memory
)

// Client makes calls to one API socket. It keeps no connection between calls, so
// it need not be closed. Methods are safe for concurrent use; the process itself
// takes one call after the other.
type Client struct{ http *http.Client }

// New returns a client of the API socket at path, which need not be there yet.
// The path may be longer than a socket address allows. Only a process of the user
// uid is spoken to.
func New(path string, uid int) *Client {
	return &Client{&http.Client{
		Transport: &http.Transport{
			DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, path, uid) },
			DisableKeepAlives:      true,
			DisableCompression:     true,
			MaxResponseHeaderBytes: maxReply,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// dial reaches the socket through a descriptor of its directory, for the length of
// its path.
func dial(ctx context.Context, path string, uid int) (net.Conn, error) {
	dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
	if err != nil {
		return nil, err
	}
	if err := CheckPeer(conn, uid); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// CheckPeer makes sure that the other end of a connection to a socket in a jail is
// the machine's: its process could have put a link there, to another socket.
func CheckPeer(conn net.Conn, uid int) error {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return fmt.Errorf("connection is a %T", conn)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	var who *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { who, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, credErr); err != nil {
		return err
	}
	if int(who.Uid) != uid {
		return fmt.Errorf("the socket is user %d's, not %d's", who.Uid, uid)
	}
	return nil
}

// Fault is a call that the process refused. It is what a hostile process could
// make up: for logs, not for users.
type Fault struct {
	Call    string // method and path
	Status  int
	Message string // cut, without control characters
}

func (f *Fault) Error() string {
	return fmt.Sprintf("firecracker refused %s with status %d: %s", f.Call, f.Status, f.Message)
}

// put makes a call without an answer that ends in quickCall.
func (c *Client) put(ctx context.Context, path string, body any) error {
	ctx, cancel := context.WithTimeout(ctx, quickCall)
	defer cancel()
	return c.call(ctx, http.MethodPut, path, body, nil)
}

func (c *Client) patch(ctx context.Context, path string, body any) error {
	ctx, cancel := context.WithTimeout(ctx, quickCall)
	defer cancel()
	return c.call(ctx, http.MethodPatch, path, body, nil)
}

func (c *Client) get(ctx context.Context, path string, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, quickCall)
	defer cancel()
	return c.call(ctx, http.MethodGet, path, nil, answer)
}

// call makes one call. Without an answer to fill, the reply must be 204.
func (c *Client) call(ctx context.Context, method, path string, body, answer any) error {
	var raw []byte
	if body != nil {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://firecracker"+path, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer resp.Body.Close()
	if err := reply(resp, answer); err != nil {
		if fault, ok := errors.AsType[*Fault](err); ok {
			fault.Call = method + " " + path
			return fault
		}
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

// reply reads a response into answer, or into a Fault.
func reply(resp *http.Response, answer any) error {
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	if err != nil {
		return err
	}
	if len(raw) > maxReply {
		return fmt.Errorf("firecracker answered more than %d bytes", maxReply)
	}
	want := http.StatusNoContent
	if answer != nil {
		want = http.StatusOK
	}
	if resp.StatusCode != want {
		return &Fault{Status: resp.StatusCode, Message: faultMessage(raw)}
	}
	if answer == nil {
		return nil
	}
	if kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return errors.New("firecracker answered something that is not JSON")
	}
	if err := json.Unmarshal(raw, answer); err != nil {
		return fmt.Errorf("firecracker answered what cannot be read: %w", err)
	}
	return nil
}

// faultMessage finds the message in the body of a refusal, whatever it is.
func faultMessage(raw []byte) string {
	var body struct {
		Message string `json:"fault_message"`
	}
	if json.Unmarshal(raw, &body) != nil || body.Message == "" {
		return "it gave no reason"
	}
	text := strings.ToValidUTF8(body.Message, "?")
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text)
	if runes := []rune(text); len(runes) > maxFault {
		return string(runes[:maxFault]) + "..."
	}
	return text
}
