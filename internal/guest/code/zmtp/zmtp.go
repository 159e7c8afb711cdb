// Package zmtp is the client side of the ZeroMQ message transport (ZMTP 3.0,
// NULL mechanism) as far as Jupyter kernels need it: DEALER and SUB sockets over a
// stream connection. One [Conn] is one connection; there is no reconnection, no
// queue and no goroutine, so a reader that stops reading stops the peer.
//
// The peer is hostile: every size is checked before memory is taken for it, and a
// message larger than the limit is skipped without being stored.
package zmtp

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Limits on what a peer may send.
const (
	maxCommand = 4 << 10 // bytes in a command frame
	maxParts   = 128     // frames in a message
	greeting   = 64      // bytes
	trusted    = 1 << 20 // bytes allocated for a frame on the peer's word alone
)

// handshakeTime bounds the exchange of greetings, writeTime one Send.
const (
	handshakeTime = 10 * time.Second
	writeTime     = 30 * time.Second
)

// Flags of a frame.
const (
	flagMore    = 1
	flagLong    = 2
	flagCommand = 4
)

// SocketType is the kind of socket a Conn stands for.
type SocketType string

// The socket types.
const (
	Dealer SocketType = "DEALER"
	Sub    SocketType = "SUB"
)

// ErrProtocol is wrapped by every error about what the peer sent.
var ErrProtocol = errors.New("zmtp: protocol error")

// Message is one multipart message.
type Message struct {
	Parts   [][]byte
	Skipped int64 // bytes of the message if it was over the limit; Parts is nil then
}

// Conn is one ZMTP connection. Send may be called from several goroutines,
// Recv from one at a time.
type Conn struct {
	conn  net.Conn
	r     *bufio.Reader
	limit int64
	mu    sync.Mutex // serialises writes
}

// New greets the peer over conn and returns the connection. Messages whose parts
// together exceed limit bytes are skipped by Recv. A Sub connection is subscribed to
// everything. On an error conn is closed.
func New(conn net.Conn, kind SocketType, limit int64) (*Conn, error) {
	c := &Conn{conn: conn, r: bufio.NewReaderSize(conn, 16<<10), limit: limit}
	if err := c.handshake(kind); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return c, nil
}

func (c *Conn) handshake(kind SocketType) error {
	if err := c.conn.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return err
	}
	if _, err := c.conn.Write(hello()); err != nil {
		return err
	}
	var theirs [greeting]byte
	if _, err := io.ReadFull(c.r, theirs[:]); err != nil {
		return err
	}
	if theirs[0] != 0xff || theirs[9]&1 == 0 || theirs[10] < 3 {
		return fmt.Errorf("%w: not a ZMTP 3 greeting", ErrProtocol)
	}
	if !bytes.Equal(theirs[12:32], mechanism()) {
		return fmt.Errorf("%w: mechanism is not NULL", ErrProtocol)
	}
	if err := c.write(flagCommand, ready(kind)); err != nil {
		return err
	}
	flags, size, err := c.frameHeader()
	if err != nil {
		return err
	}
	if flags&flagCommand == 0 {
		return fmt.Errorf("%w: a message before READY", ErrProtocol)
	}
	body, err := c.command(size)
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(body, []byte("\x05READY")) {
		return fmt.Errorf("%w: the peer refused the connection", ErrProtocol)
	}
	if kind == Sub {
		if err := c.write(0, []byte{1}); err != nil {
			return err
		}
	}
	return c.conn.SetDeadline(time.Time{})
}

func hello() []byte {
	b := make([]byte, greeting)
	b[0], b[9], b[10] = 0xff, 0x7f, 3
	copy(b[12:], "NULL")
	return b
}

func mechanism() []byte {
	b := make([]byte, 20)
	copy(b, "NULL")
	return b
}

// ready is the body of the READY command of a socket without identity.
func ready(kind SocketType) []byte {
	var b bytes.Buffer
	property := func(name, value string) {
		b.WriteByte(byte(len(name)))
		b.WriteString(name)
		_ = binary.Write(&b, binary.BigEndian, uint32(len(value)))
		b.WriteString(value)
	}
	b.WriteString("\x05READY")
	property("Socket-Type", string(kind))
	property("Identity", "")
	return b.Bytes()
}

// Send writes one message. An error means the connection is broken.
func (c *Conn) Send(parts ...[]byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.conn.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return err
	}
	var b bytes.Buffer
	for i, part := range parts {
		flags := byte(flagMore)
		if i == len(parts)-1 {
			flags = 0
		}
		appendFrame(&b, flags, part)
	}
	_, err := c.conn.Write(b.Bytes())
	return err
}

func (c *Conn) write(flags byte, body []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b bytes.Buffer
	appendFrame(&b, flags, body)
	_, err := c.conn.Write(b.Bytes())
	return err
}

func appendFrame(b *bytes.Buffer, flags byte, body []byte) {
	if len(body) > 255 {
		b.WriteByte(flags | flagLong)
		_ = binary.Write(b, binary.BigEndian, uint64(len(body)))
	} else {
		b.WriteByte(flags)
		b.WriteByte(byte(len(body)))
	}
	b.Write(body)
}

// Recv returns the next message. io.EOF means the peer closed between messages.
func (c *Conn) Recv() (Message, error) {
	var m Message
	var total int64
	for n := 0; ; {
		flags, size, err := c.frameHeader()
		if err != nil {
			return Message{}, err
		}
		if flags&flagCommand != 0 {
			if err := c.answer(size); err != nil {
				return Message{}, err
			}
			continue
		}
		if n++; n > maxParts {
			return Message{}, fmt.Errorf("%w: more than %d parts", ErrProtocol, maxParts)
		}
		if size > 1<<40 {
			return Message{}, fmt.Errorf("%w: frame of %d bytes", ErrProtocol, size)
		}
		total += size
		if err := c.part(&m, size, total); err != nil {
			return Message{}, err
		}
		if flags&flagMore == 0 {
			return m, nil
		}
	}
}

// part reads one frame's body into m, or past it when m is over the limit.
func (c *Conn) part(m *Message, size, total int64) error {
	if total > c.limit {
		m.Parts, m.Skipped = nil, total
		_, err := io.CopyN(io.Discard, c.r, size)
		return unexpected(err)
	}
	if size <= trusted {
		body := make([]byte, size)
		_, err := io.ReadFull(c.r, body)
		m.Parts = append(m.Parts, body)
		return unexpected(err)
	}
	var body bytes.Buffer // grows with what really arrives
	_, err := io.CopyN(&body, c.r, size)
	m.Parts = append(m.Parts, body.Bytes())
	return unexpected(err)
}

// answer reads a command and replies to it if it asks for a reply.
func (c *Conn) answer(size int64) error {
	body, err := c.command(size)
	if err != nil {
		return err
	}
	if context, ok := bytes.CutPrefix(body, []byte("\x04PING")); ok && len(context) >= 2 {
		return c.write(flagCommand, append([]byte("\x04PONG"), context[2:]...))
	}
	if bytes.HasPrefix(body, []byte("\x05ERROR")) {
		return fmt.Errorf("%w: the peer sent an error", ErrProtocol)
	}
	return nil
}

func (c *Conn) command(size int64) ([]byte, error) {
	if size > maxCommand {
		return nil, fmt.Errorf("%w: command of %d bytes, the limit is %d", ErrProtocol, size, maxCommand)
	}
	body := make([]byte, size)
	_, err := io.ReadFull(c.r, body)
	return body, unexpected(err)
}

func (c *Conn) frameHeader() (flags byte, size int64, err error) {
	flags, err = c.r.ReadByte()
	if err != nil {
		return 0, 0, err
	}
	if flags&^(flagMore|flagLong|flagCommand) != 0 {
		return 0, 0, fmt.Errorf("%w: frame flags %#x", ErrProtocol, flags)
	}
	if flags&flagLong == 0 {
		short, err := c.r.ReadByte()
		return flags, int64(short), unexpected(err)
	}
	var long [8]byte
	if _, err := io.ReadFull(c.r, long[:]); err != nil {
		return 0, 0, unexpected(err)
	}
	wide := binary.BigEndian.Uint64(long[:])
	if wide > 1<<62 {
		return 0, 0, fmt.Errorf("%w: frame of %d bytes", ErrProtocol, wide)
	}
	return flags, int64(wide), nil
}

// unexpected turns an end inside a message into io.ErrUnexpectedEOF.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Close breaks the connection; a blocked Recv or Send returns an error.
func (c *Conn) Close() error { return c.conn.Close() }
