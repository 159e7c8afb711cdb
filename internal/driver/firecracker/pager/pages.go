package pager

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"

	"golang.org/x/sys/unix"
)

// Pages says which small pages of a memory a layer has. Holes of a file do not say
// it for long: what was written may be zero, and a file that is packed, or sent, and
// made again has holes for all that is.
//
// Its file: "HEARTHPG", the number of the memory's pages (8 bytes), a bit for each,
// the first page's the lowest of the first byte, and a CRC32-C of all before it.
// Little-endian.
type Pages struct {
	count int64
	bits  []byte
}

const (
	pagesMagic = "HEARTHPG"
	pagesHead  = len(pagesMagic) + 8
	// MaxPagesFile is how long the file of a memory of 1 TiB is, in bytes.
	MaxPagesFile = 1<<40/smallPage/8 + 1<<10
)

// AllPages are those of a memory of size bytes.
func AllPages(size int64) Pages {
	p := Pages{size / smallPage, make([]byte, (size/smallPage+7)/8)}
	p.set(0, p.count)
	return p
}

// PagesOf are those that are no holes of a file that a monitor has just written.
func PagesOf(f *os.File) (Pages, error) {
	info, err := f.Stat()
	if err != nil {
		return Pages{}, err
	}
	size := info.Size()
	p := Pages{size / smallPage, make([]byte, (size/smallPage+7)/8)}
	for at := int64(0); at < size; {
		start, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return p, err
		}
		if at, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE); err != nil {
			return p, err
		}
		p.set(start/smallPage, min((at+smallPage-1)/smallPage, p.count))
	}
	return p, nil
}

// set adds the pages from start to before end.
func (p Pages) set(start, end int64) {
	for n := start; n < end; n++ {
		p.bits[n/8] |= 1 << (n % 8)
	}
}

func (p Pages) has(n int64) bool { return p.bits[n/8]&(1<<(n%8)) != 0 }

// Encode makes the file's content.
func (p Pages) Encode() []byte {
	out := binary.LittleEndian.AppendUint64([]byte(pagesMagic), uint64(p.count))
	out = append(out, p.bits...)
	return binary.LittleEndian.AppendUint32(out, crc32.Checksum(out, castagnoli))
}

// ParsePages reads a file's content, for a memory of size bytes. Nothing of it is
// trusted.
func ParsePages(raw []byte, size int64) (Pages, error) {
	if len(raw) < pagesHead+4 || !bytes.HasPrefix(raw, []byte(pagesMagic)) {
		return Pages{}, errors.New("no list of pages")
	}
	body, sum := raw[:len(raw)-4], binary.LittleEndian.Uint32(raw[len(raw)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return Pages{}, errors.New("list of pages is damaged")
	}
	count := binary.LittleEndian.Uint64(body[len(pagesMagic):])
	p := Pages{int64(count), body[pagesHead:]}
	if size < 0 || count != uint64(size/smallPage) || int64(len(p.bits)) != (p.count+7)/8 {
		return Pages{}, fmt.Errorf("list of %d pages in %d bytes, for a memory of %d", count, len(raw), size)
	}
	return p, nil
}

// runs lists the pages as starts and ends in bytes, ascending.
func (p Pages) runs() (list [][2]int64) {
	for n := int64(0); n < p.count; {
		if p.bits[n/8] == 0 {
			n = n/8*8 + 8
			continue
		}
		if !p.has(n) {
			n++
			continue
		}
		start := n
		for n < p.count && p.has(n) {
			n++
		}
		list = append(list, [2]int64{start * smallPage, n * smallPage})
	}
	return list
}
