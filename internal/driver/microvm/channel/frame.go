package channel

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// What goes over the connection, in both directions, once a session has begun:
//
//	byte  0     kind of the frame
//	byte  1     check, the complement of byte 0
//	bytes 2-3   length of the payload, at most maxPayload; big endian
//	bytes 4-7   number of the stream, big endian
//	            payload
//	last  byte  trailer
//
// A session begins when the host sends resync zero bytes, the magic and a nonce
// of 16 bytes, and the guest answers magic and nonce. Zeros end whatever frame
// the guest was reading: either its trailer or the next frame's kind is zero,
// and neither may be. A cut frame is thus never taken for a whole one.
const (
	headerBytes = 8
	frameBytes  = 32 << 10 // of the largest frame: what a virtio-serial port takes in one write
	maxPayload  = frameBytes - headerBytes - 1
	resync      = frameBytes
	trailer     = 0xa5
	nonceBytes  = 16
)

// magic begins a session of this version of the protocol. No byte of it is zero.
const magic = "\x9fhearth/guest/1\xf9"

// kind says what a frame means. None is zero.
type kind byte

const (
	frameOpen   kind = 0xc1 + iota // a new stream; host to guest only, no payload
	frameData                      // bytes of a stream, at least one
	frameFin                       // no more data: payload one byte, endEOF or endReset
	frameStop                      // the sender reads no more; no payload
	frameCredit                    // uint32: so many more bytes may be sent
)

const (
	endEOF   = 0
	endReset = 1
)

// errGarbage is what the reader of a broken stream of frames gets.
var errGarbage = errors.New("the other side broke the protocol of the guest channel")

// frame is one received frame. The payload is good until the next is read.
type frame struct {
	kind    kind
	stream  uint32
	payload []byte
}

// appendFrame appends an encoded frame to b.
func appendFrame(b []byte, k kind, stream uint32, payload []byte) []byte {
	b = append(b, byte(k), ^byte(k))
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	b = binary.BigEndian.AppendUint32(b, stream)
	b = append(b, payload...)
	return append(b, trailer)
}

// frameReader reads frames.
type frameReader struct {
	r   *bufio.Reader
	buf [frameBytes]byte
}

func newFrameReader(r io.Reader) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(r, 2*frameBytes)}
}

// next reads a frame. After errGarbage the reader may hunt; every other error is
// the connection's.
func (f *frameReader) next() (frame, error) {
	head := f.buf[:headerBytes]
	// Byte by byte as far as it matters: nothing after an invalid byte is consumed.
	for i := range head {
		b, err := f.r.ReadByte()
		if err != nil {
			return frame{}, err
		}
		head[i] = b
		if !validHead(head[:i+1]) {
			return frame{}, fmt.Errorf("%w: byte %d of a header is %#x", errGarbage, i, b)
		}
	}
	n := int(binary.BigEndian.Uint16(head[2:]))
	rest := f.buf[headerBytes : headerBytes+n+1]
	if _, err := io.ReadFull(f.r, rest); err != nil {
		return frame{}, err
	}
	if rest[n] != trailer {
		return frame{}, fmt.Errorf("%w: a frame ends with %#x", errGarbage, rest[n])
	}
	return frame{kind: kind(head[0]), stream: binary.BigEndian.Uint32(head[4:]), payload: rest[:n]}, nil
}

// validHead checks what is there of a header; the lengths that a kind allows too.
func validHead(h []byte) bool {
	k := kind(h[0])
	if k < frameOpen || k > frameCredit {
		return false
	}
	if len(h) >= 2 && h[1] != ^h[0] {
		return false
	}
	if len(h) < 4 {
		return true
	}
	n := int(binary.BigEndian.Uint16(h[2:]))
	switch k {
	case frameData:
		return n >= 1 && n <= maxPayload
	case frameFin:
		return n == 1
	case frameCredit:
		return n == 4
	default:
		return n == 0
	}
}

// hunt discards everything up to the end of pattern.
func (f *frameReader) hunt(pattern []byte) error {
	for {
		if _, err := f.r.Peek(len(pattern)); err != nil {
			return err
		}
		have, err := f.r.Peek(f.r.Buffered())
		if err != nil {
			return err
		}
		if i := bytes.Index(have, pattern); i >= 0 {
			_, err := f.r.Discard(i + len(pattern))
			return err
		}
		if _, err := f.r.Discard(len(have) - len(pattern) + 1); err != nil {
			return err
		}
	}
}

// nonce reads the nonce that follows the magic.
func (f *frameReader) nonce() ([]byte, error) {
	n := make([]byte, nonceBytes)
	_, err := io.ReadFull(f.r, n)
	return n, err
}
