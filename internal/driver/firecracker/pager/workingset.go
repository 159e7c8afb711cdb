package pager

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
)

// A working set is the list of pages a machine touched first after a restore, so
// that the next one from the same memory can have them before it asks.
//
// Its file: "HEARTHWS", the page size and the number of pages (4 bytes each), the
// memory's size (8), the pages' numbers in the order they were asked for (4 each),
// and a CRC32-C of all before it. Little-endian.
const (
	workingSetMagic = "HEARTHWS"
	workingSetHead  = len(workingSetMagic) + 4 + 4 + 8
	maxWorkingSet   = 1 << 18 // pages: 1 GiB of small ones
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// WorkingSet is what was touched of a memory.
type WorkingSet struct {
	PageSize uint64
	Size     uint64   // of the memory, bytes
	Pages    []uint32 // numbers of pages, each once, in the order they were asked for
}

// Encode makes the file's content.
func (w WorkingSet) Encode() []byte {
	out := make([]byte, 0, workingSetHead+4*len(w.Pages)+4)
	out = append(out, workingSetMagic...)
	out = binary.LittleEndian.AppendUint32(out, uint32(w.PageSize))
	out = binary.LittleEndian.AppendUint32(out, uint32(len(w.Pages)))
	out = binary.LittleEndian.AppendUint64(out, w.Size)
	for _, p := range w.Pages {
		out = binary.LittleEndian.AppendUint32(out, p)
	}
	return binary.LittleEndian.AppendUint32(out, crc32.Checksum(out, castagnoli))
}

// ParseWorkingSet reads a file's content, of which nothing is trusted.
func ParseWorkingSet(raw []byte) (WorkingSet, error) {
	var w WorkingSet
	if len(raw) < workingSetHead+4 || !bytes.HasPrefix(raw, []byte(workingSetMagic)) {
		return w, errors.New("no working set")
	}
	body, sum := raw[:len(raw)-4], binary.LittleEndian.Uint32(raw[len(raw)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return w, errors.New("working set is damaged")
	}
	fields := body[len(workingSetMagic):]
	w.PageSize = uint64(binary.LittleEndian.Uint32(fields))
	count := binary.LittleEndian.Uint32(fields[4:])
	w.Size = binary.LittleEndian.Uint64(fields[8:])
	list := body[workingSetHead:]
	if w.PageSize != smallPage && w.PageSize != hugePage || w.Size == 0 || w.Size%w.PageSize != 0 {
		return w, fmt.Errorf("working set of a memory of %d bytes in pages of %d", w.Size, w.PageSize)
	}
	if count > maxWorkingSet || uint64(len(list)) != 4*uint64(count) {
		return w, fmt.Errorf("working set of %d pages in %d bytes", count, len(list))
	}
	seen := make(map[uint32]struct{}, count)
	for ; len(list) > 0; list = list[4:] {
		p := binary.LittleEndian.Uint32(list)
		if _, twice := seen[p]; twice || uint64(p) >= w.Size/w.PageSize {
			return w, fmt.Errorf("working set names page %d twice, or beyond the memory", p)
		}
		seen[p] = struct{}{}
		w.Pages = append(w.Pages, p)
	}
	return w, nil
}

// runs returns the pages in ascending runs of neighbours, at most most pages each.
func (w WorkingSet) runs(most int) [][2]uint64 {
	pages := slices.Sorted(slices.Values(w.Pages))
	var list [][2]uint64 // first page, number
	for _, p := range pages {
		if n := len(list); n > 0 {
			if last := &list[n-1]; last[0]+last[1] == uint64(p) && last[1] < uint64(most) {
				last[1]++
				continue
			}
		}
		list = append(list, [2]uint64{uint64(p), 1})
	}
	return list
}
