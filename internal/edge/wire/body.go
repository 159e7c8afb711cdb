package wire

import "errors"

// Bounds of a chunked body, in bytes.
const (
	maxSizeLine = 256     // size and extensions of a chunk
	maxTrailer  = 4 << 10 // fields behind the last chunk
	maxDigits   = 15      // of a size
)

var errChunks = errors.New("wire: a chunked body is not as it should be")

// Body finds the end of a body in the bytes that pass.
type Body struct {
	chunked bool
	left    int64 // of the body, or of the chunk
	at      place // in a chunked body
	line    int   // bytes of the size line, or of all trailers
	digits  int
	last    bool // the chunk of size 0 has begun
}

// place is where in a chunked body the next byte stands.
type place uint8

const (
	inSize    place = iota
	inPadding       // spaces behind the size
	inExtension
	afterSize // '\n'
	inData
	afterData    // '\r'
	afterDataEnd // '\n'
	lineStart    // of a trailer, or of the end
	inTrailer
	afterTrailer // '\n'
	atEnd        // '\n'
)

// Scan looks at the next bytes, and returns how many of them are the body's, and
// whether it ends there. After an error nothing more may be passed on.
func (b *Body) Scan(p []byte) (n int, done bool, err error) {
	if !b.chunked {
		n = int(min(int64(len(p)), b.left))
		b.left -= int64(n)
		return n, b.left == 0, nil
	}
	for n < len(p) {
		if b.at == inData {
			size := min(int64(len(p)-n), b.left)
			n += int(size)
			if b.left -= size; b.left == 0 {
				b.at = afterData
			}
			continue
		}
		done, ok := b.step(p[n])
		n++
		if !ok {
			return n, false, errChunks
		}
		if done {
			return n, true, nil
		}
	}
	return n, false, nil
}

// step takes a byte that is not data.
func (b *Body) step(c byte) (done, ok bool) {
	switch b.at {
	case inSize, inPadding, inExtension:
		return false, b.size(c)
	case afterSize:
		b.at, b.line = inData, 0
		if b.last {
			b.at = lineStart
		}
		return false, c == '\n'
	case afterData:
		b.at = afterDataEnd
		return false, c == '\r'
	case afterDataEnd:
		b.at, b.digits = inSize, 0
		return false, c == '\n'
	case lineStart:
		b.at = inTrailer
		if c == '\r' {
			b.at = atEnd
			return false, true
		}
		return false, kinds[c]&isToken != 0
	case inTrailer:
		b.line++
		if c == '\r' {
			b.at = afterTrailer
			return false, true
		}
		return false, kinds[c]&isText != 0 && b.line <= maxTrailer
	case afterTrailer:
		b.at = lineStart
		return false, c == '\n'
	}
	return c == '\n', c == '\n' // atEnd
}

// size takes a byte of the line with a chunk's size.
func (b *Body) size(c byte) bool {
	b.line++
	digit, hex := hexDigit(c)
	switch {
	case b.line > maxSizeLine:
		return false
	case b.at == inSize && hex:
		b.left, b.digits = b.left<<4|digit, b.digits+1
		return b.digits <= maxDigits
	case b.digits == 0:
		return false
	case c == '\r':
		b.at, b.last = afterSize, b.left == 0
		return true
	case b.at == inExtension:
		return kinds[c]&isText != 0
	case c == ';':
		b.at = inExtension
		return true
	}
	b.at = inPadding
	return c == ' ' || c == '\t'
}

func isHex(c byte) bool {
	_, ok := hexDigit(c)
	return ok
}

func hexDigit(c byte) (int64, bool) {
	switch {
	case '0' <= c && c <= '9':
		return int64(c - '0'), true
	case 'a' <= c && c <= 'f':
		return int64(c-'a') + 10, true
	case 'A' <= c && c <= 'F':
		return int64(c-'A') + 10, true
	}
	return 0, false
}
