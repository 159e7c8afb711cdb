package microvm

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// lz4Legacy is how a kernel's LZ4 begins: the form that only kernels still use.
const lz4Legacy = "\x02\x21\x4c\x18"

var errLZ4 = errors.New("the LZ4 data is damaged")

// unpackLZ4 unpacks LZ4's legacy form, which has no end of its own: after the
// magic come blocks, each with its length before it, until size bytes are there.
func unpackLZ4(in []byte, size int) ([]byte, error) {
	in = in[len(lz4Legacy):]
	out := make([]byte, 0, size)
	for len(out) < size {
		if len(in) < 4 {
			return nil, fmt.Errorf("%w: it ends after %d bytes of %d", errLZ4, len(out), size)
		}
		n := int(binary.LittleEndian.Uint32(in))
		in = in[4:]
		if n > len(in) {
			return nil, fmt.Errorf("%w: a block of %d bytes, and %d are left", errLZ4, n, len(in))
		}
		var err error
		if out, err = lz4Block(out, in[:n], size); err != nil {
			return nil, err
		}
		in = in[n:]
	}
	return out, nil
}

// lz4Block appends what a block holds. out never grows beyond limit. A block is
// a row of: a token, whose halves are the lengths of literals and match; more of
// the literals' length; literals; the match's distance; more of its length. The
// last has literals only.
func lz4Block(out, in []byte, limit int) ([]byte, error) {
	start := len(out) // matches stay within the block
	for len(in) > 0 {
		token := in[0]
		literals, rest, ok := lz4Length(in[1:], int(token>>4))
		if !ok || literals > len(rest) || literals > limit-len(out) {
			return nil, fmt.Errorf("%w: too many literals", errLZ4)
		}
		out = append(out, rest[:literals]...)
		if in = rest[literals:]; len(in) == 0 {
			return out, nil
		}
		if len(in) < 2 {
			return nil, fmt.Errorf("%w: half a match", errLZ4)
		}
		distance := int(binary.LittleEndian.Uint16(in))
		match, rest, ok := lz4Length(in[2:], int(token&15))
		match += 4
		if !ok || distance == 0 || distance > len(out)-start || match > limit-len(out) {
			return nil, fmt.Errorf("%w: a match outside of the data", errLZ4)
		}
		in = rest
		from := len(out) - distance
		for match > 0 { // a match may overlap what it makes
			n := min(match, len(out)-from)
			out = append(out, out[from:from+n]...)
			match -= n
		}
	}
	return out, nil
}

// lz4Length reads the rest of a length that begins with n.
func lz4Length(in []byte, n int) (int, []byte, bool) {
	if n < 15 {
		return n, in, true
	}
	for i, b := range in {
		n += int(b)
		if b < 255 {
			return n, in[i+1:], true
		}
	}
	return 0, nil, false
}
