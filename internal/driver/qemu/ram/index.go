// Package ram reads and writes the memory of a machine that another process
// holds as a private mapping.
//
// A machine boots on anonymous memory, and a clone maps the template's memory
// file privately. Either way, what the machine has written since is exactly the
// anonymous pages of that mapping, and those are what a checkpoint keeps: for a
// machine that booted they are all it has, for a clone what it changed.
//
// On disk they are two files. One has the pages, in ascending order and without
// gaps. The other, the index, says where they belong; little-endian:
//
//	8 bytes  "HEARTHRM"
//	u32      version, 1
//	u32      page size, 4096
//	u64      size of the memory in bytes
//	u64      number of runs
//	then per run: u64 first page, u64 pages; the highest bit of the second says
//	that they are zero, and then they are not in the other file
//
// Runs ascend and do not overlap. A page in no run is the template's, or zero
// where there is none.
package ram

import (
	"encoding/binary"
	"fmt"
	"io"
)

const (
	// PageSize is the unit of all that is kept.
	PageSize = 4096

	magic      = "HEARTHRM"
	version    = 1
	headerSize = 32
	runSize    = 16
	zeroBit    = 1 << 63
	maxPages   = 1 << 32 // 16 TiB
)

// Run is a row of pages.
type Run struct {
	First, Pages uint64
	Zero         bool
}

// Index says which pages of a memory were kept.
type Index struct {
	Size int64 // of the memory, in bytes
	Runs []Run
}

// add appends pages, to the last run where they continue it.
func (x *Index) add(r Run) {
	if n := len(x.Runs); n > 0 {
		last := &x.Runs[n-1]
		if last.Zero == r.Zero && last.First+last.Pages == r.First {
			last.Pages += r.Pages
			return
		}
	}
	x.Runs = append(x.Runs, r)
}

// Kept is how many bytes of pages go with the index.
func (x *Index) Kept() int64 {
	var n uint64
	for _, r := range x.Runs {
		if !r.Zero {
			n += r.Pages
		}
	}
	return int64(n) * PageSize
}

// WriteTo implements io.WriterTo.
func (x *Index) WriteTo(w io.Writer) (int64, error) {
	raw := make([]byte, 0, headerSize+runSize*len(x.Runs))
	raw = append(raw, magic...)
	raw = binary.LittleEndian.AppendUint32(raw, version)
	raw = binary.LittleEndian.AppendUint32(raw, PageSize)
	raw = binary.LittleEndian.AppendUint64(raw, uint64(x.Size))
	raw = binary.LittleEndian.AppendUint64(raw, uint64(len(x.Runs)))
	for _, r := range x.Runs {
		pages := r.Pages
		if r.Zero {
			pages |= zeroBit
		}
		raw = binary.LittleEndian.AppendUint64(raw, r.First)
		raw = binary.LittleEndian.AppendUint64(raw, pages)
	}
	n, err := w.Write(raw)
	return int64(n), err
}

// Decode reads an index and checks that it is whole and of a memory of size bytes.
func Decode(raw []byte, size int64) (*Index, error) {
	if len(raw) < headerSize || string(raw[:8]) != magic {
		return nil, fmt.Errorf("it is no index of a memory")
	}
	if v, p := binary.LittleEndian.Uint32(raw[8:]), binary.LittleEndian.Uint32(raw[12:]); v != version || p != PageSize {
		return nil, fmt.Errorf("version %d with pages of %d, not %d with %d", v, p, version, PageSize)
	}
	if n := binary.LittleEndian.Uint64(raw[16:]); size < 0 || n != uint64(size) || n > maxPages*PageSize {
		return nil, fmt.Errorf("it is of a memory of %d bytes, not %d", n, size)
	}
	count := binary.LittleEndian.Uint64(raw[24:])
	rest := raw[headerSize:]
	if uint64(len(rest)) != count*runSize || count > maxPages {
		return nil, fmt.Errorf("%d runs in %d bytes", count, len(rest))
	}
	x := &Index{Size: size, Runs: make([]Run, 0, count)}
	next, end := uint64(0), uint64(size)/PageSize
	for ; len(rest) > 0; rest = rest[runSize:] {
		first, pages := binary.LittleEndian.Uint64(rest), binary.LittleEndian.Uint64(rest[8:])
		r := Run{First: first, Pages: pages &^ zeroBit, Zero: pages&zeroBit != 0}
		if r.Pages == 0 || r.First < next || r.First > end || r.Pages > end-r.First {
			return nil, fmt.Errorf("run of %d pages at %d, after %d, of %d", r.Pages, r.First, next, end)
		}
		next = r.First + r.Pages
		x.Runs = append(x.Runs, r)
	}
	return x, nil
}
