package chunkblob

import (
	"bytes"
	"hash/crc32"
)

const (
	pageBytes = 4096
	maxChunk  = 256 << 10
	maxHole   = 1 << 30
)

// cutter decides where chunks end: after a page whose CRC-32C has the bits of
// mask unset, but not before least and at the latest after most bytes. So the
// same run of pages is cut in the same places wherever it lies in the file.
type cutter struct {
	least, most int // multiples of pageBytes
	mask        uint32
}

// chosen is about 12 KiB in the mean. Measured on memory images of gVisor, where
// pages move: chunks of fixed size have next to nothing in common with those of
// the checkpoint before, and with longer ones more is stored again than better
// compression saves; see TestChunkSizes.
var chosen = cutter{least: 2 * pageBytes, most: 64 << 10, mask: 1}

// next returns the length of the first chunk of b, which begins with a page that
// is not zero. It ends before the next zero page, for that begins a hole.
func (c cutter) next(b []byte) int {
	if len(b) > c.most {
		b = b[:c.most]
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	for end := pageBytes; end < len(b); end += pageBytes {
		if end >= c.least && crc32.Checksum(b[end-pageBytes:end], table)&c.mask == 0 {
			return end
		}
		if zero(b[end:min(end+pageBytes, len(b))]) {
			return end
		}
	}
	return len(b)
}

var zeroPage = make([]byte, pageBytes)

// zero reports whether a page, or the last part of one, is all zeros.
func zero(b []byte) bool { return bytes.Equal(b, zeroPage[:len(b)]) }

// zeros returns the length of the zero pages that b begins with. A last page
// that is cut short counts if it is the end of the file.
func zeros(b []byte) int {
	n := 0
	for n < len(b) && zero(b[n:min(n+pageBytes, len(b))]) {
		n = min(n+pageBytes, len(b))
	}
	return n
}
