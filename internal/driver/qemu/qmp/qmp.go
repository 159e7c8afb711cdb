// Package qmp is a small client of QEMU's machine protocol. QEMU is not trusted:
// once a guest has broken out of it, it answers what it likes. So every answer
// is bounded in size, number and time, and none is believed further than that.
//
// A connection is made for each operation and closed after it. QEMU serves one
// at a time and lets the next wait, so an operation has the machine to itself,
// and a process that takes a machine over finds no old connection in the way.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxLine  = 4 << 20 // bytes of one message; a list of commands is the longest
	maxOther = 1000    // messages that are not the answer, until it is given up
)

// ErrProtocol is wrapped by the error of a message that QEMU would not send.
var ErrProtocol = errors.New("not QEMU's protocol")

// Error is QEMU's own refusal of a command.
type Error struct {
	Command string
	Class   string
	Desc    string
}

// Error implements error.
func (e *Error) Error() string { return fmt.Sprintf("%s: %q", e.Command, e.Desc) }

// Version is QEMU's.
type Version struct{ Major, Minor, Micro int }

// String is as in "7.2.22".
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// Older says whether v is before major.minor.
func (v Version) Older(major, minor int) bool {
	return v.Major < major || v.Major == major && v.Minor < minor
}

// Conn is a connection that is ready for commands.
type Conn struct {
	w       io.Writer
	r       *bufio.Reader
	unix    *net.UnixConn // for descriptors; nil on pipes
	version Version
}

// Dial connects to QEMU's socket. The connection ends when ctx does.
func Dial(ctx context.Context, path string) (*Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	c := &Conn{w: conn, r: bufio.NewReader(conn), unix: conn.(*net.UnixConn)}
	context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	if err := c.greet(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return c, nil
}

// Talk does the same over a pair of streams, which the caller bounds in time.
func Talk(w io.Writer, r io.Reader) (*Conn, error) {
	c := &Conn{w: w, r: bufio.NewReader(r)}
	return c, c.greet(context.Background())
}

func (c *Conn) greet(ctx context.Context) error {
	line, err := readLine(c.r)
	if err != nil {
		return cause(ctx, err)
	}
	msg, err := parse(line)
	if err != nil {
		return err
	}
	if msg.Greeting == nil {
		return fmt.Errorf("%w: no greeting", ErrProtocol)
	}
	v := msg.Greeting.Version.QEMU
	c.version = Version(v)
	_, err = c.Call(ctx, Command{Name: "qmp_capabilities"})
	return err
}

// Version is of the QEMU at the other end.
func (c *Conn) Version() Version { return c.version }

// Close ends the connection.
func (c *Conn) Close() error {
	if c.unix == nil {
		return nil
	}
	return c.unix.Close()
}

// Command is what QEMU is asked to do.
type Command struct {
	Name      string
	Arguments any
	File      *os.File // sent along
}

// Call makes QEMU do a command and returns its answer. Events are skipped.
func (c *Conn) Call(ctx context.Context, cmd Command) (json.RawMessage, error) {
	raw, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{cmd.Name, cmd.Arguments})
	if err != nil {
		return nil, err
	}
	if err := c.send(append(raw, '\n'), cmd.File); err != nil {
		return nil, fmt.Errorf("%s: %w", cmd.Name, cause(ctx, err))
	}
	for range maxOther {
		line, err := readLine(c.r)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", cmd.Name, cause(ctx, err))
		}
		msg, err := parse(line)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", cmd.Name, err)
		}
		switch {
		case msg.Event != "":
		case msg.Error != nil:
			return nil, &Error{Command: cmd.Name, Class: msg.Error.Class, Desc: msg.Error.Desc}
		case msg.Return != nil:
			return msg.Return, nil
		default:
			return nil, fmt.Errorf("%s: %w: no answer in it", cmd.Name, ErrProtocol)
		}
	}
	return nil, fmt.Errorf("%s: %w: %d messages and no answer", cmd.Name, ErrProtocol, maxOther)
}

// Ask is Call with an answer that is decoded.
func (c *Conn) Ask(ctx context.Context, name string, answer any) error {
	raw, err := c.Call(ctx, Command{Name: name})
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, answer); err != nil {
		return fmt.Errorf("%s: %w: %w", name, ErrProtocol, err)
	}
	return nil
}

func (c *Conn) send(raw []byte, file *os.File) error {
	if file == nil {
		_, err := c.w.Write(raw)
		return err
	}
	if c.unix == nil {
		return errors.New("a pipe carries no descriptors")
	}
	_, _, err := c.unix.WriteMsgUnix(raw, unix.UnixRights(int(file.Fd())), nil)
	return err
}

// message is one line of QEMU's.
type message struct {
	Greeting *greeting       `json:"QMP"`
	Return   json.RawMessage `json:"return"`
	Error    *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event string `json:"event"`
}

type greeting struct {
	Version struct {
		QEMU struct {
			Major int `json:"major"`
			Minor int `json:"minor"`
			Micro int `json:"micro"`
		} `json:"qemu"`
	} `json:"version"`
}

func parse(line []byte) (message, error) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return m, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return m, nil
}

// readLine reads one message, which may be longer than r's buffer but not than maxLine.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > maxLine {
			return nil, fmt.Errorf("%w: a message of more than %d bytes", ErrProtocol, maxLine)
		}
		line = append(line, part...)
		if err == nil {
			return line, nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
	}
}

// cause prefers the reason why ctx ended to the error that this led to.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	return err
}
