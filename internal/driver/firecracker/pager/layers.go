package pager

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// Source is the content of one layer of a machine's memory, wherever it lies: in a
// file of this host (File), in an archive (package chunkblob), or where somebody has
// to be asked. ReadAt is called from several goroutines. It may be slow, for as long
// as Config.Patience; what it returns was verified, or lies where nobody writes.
type Source interface {
	io.ReaderAt
	Size() int64
}

// File is a Source that is a plain file.
type File struct{ *os.File }

// Size implements Source; it is 0 for what is no file.
func (f File) Size() int64 {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}

// Layer is what a machine has written since the layer below.
type Layer struct {
	Source
	Own Pages // those that it has; the lowest has all
}

// Layers is a machine's memory as several layers of one size. It is an io.ReaderAt
// that may be used from several goroutines.
type Layers struct {
	size    int64
	extents []extent // ascending, without gaps, from 0 to size
}

// extent is a piece of memory that lies in one source.
type extent struct {
	start, end int64
	from       Source
}

// NewLayers lays layers over each other, lowest first.
func NewLayers(layers []Layer) (*Layers, error) {
	if len(layers) == 0 {
		return nil, errors.New("no memory file")
	}
	size := layers[0].Size()
	l := &Layers{size: size, extents: []extent{{0, size, layers[0].Source}}}
	if l.size == 0 || l.size%smallPage != 0 {
		return nil, fmt.Errorf("memory of %d bytes is not of whole pages", l.size)
	}
	for _, next := range layers[1:] {
		if next.Size() != l.size || next.Own.count != l.size/smallPage {
			return nil, fmt.Errorf("memory of %d bytes, with a list of %d pages, over one of %d", next.Size(), next.Own.count, l.size)
		}
		var above []extent
		for _, run := range next.Own.runs() {
			above = append(above, extent{run[0], run[1], next.Source})
		}
		l.extents = lay(l.extents, above)
	}
	return l, nil
}

// Size is the memory's size in bytes.
func (l *Layers) Size() int64 { return l.size }

// lay puts one source's pieces over what lies below. Both lists ascend.
func lay(below, above []extent) []extent {
	out := make([]extent, 0, len(below)+2*len(above))
	for _, b := range below {
		for len(above) > 0 && above[0].start < b.end {
			a := above[0]
			if a.start > b.start {
				out = append(out, extent{b.start, a.start, b.from})
			}
			upTo := min(a.end, b.end)
			out = append(out, extent{max(a.start, b.start), upTo, a.from})
			b.start = upTo
			if a.end > b.end {
				break // goes on over the next piece below
			}
			above = above[1:]
		}
		if b.start < b.end {
			out = append(out, b)
		}
	}
	return out
}

// at finds the index of the extent that holds an offset.
func (l *Layers) at(off int64) int {
	lo, hi := 0, len(l.extents)
	for lo+1 < hi {
		if mid := (lo + hi) / 2; l.extents[mid].start <= off {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo
}

// ReadAt reads memory.
func (l *Layers) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= l.size {
		return 0, io.EOF
	}
	done := 0
	for i := l.at(off); done < len(p) && i < len(l.extents); i++ {
		e := l.extents[i]
		n := min(int64(len(p)-done), e.end-off)
		got, err := e.from.ReadAt(p[done:done+int(n)], off)
		done += got
		if err != nil {
			return done, err
		}
		off += n
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// Flatten writes the whole memory into one file, with holes for zeros: what a
// host that cannot answer page faults restores from.
func (l *Layers) Flatten(to *os.File) error {
	if err := to.Truncate(l.size); err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for off := int64(0); off < l.size; {
		piece := buf[:min(int64(len(buf)), l.size-off)]
		if _, err := l.ReadAt(piece, off); err != nil {
			return err
		}
		if err := writeSparse(to, piece, off); err != nil {
			return err
		}
		off += int64(len(piece))
	}
	return nil
}

// writeSparse writes the runs of pages that are not all zero.
func writeSparse(to *os.File, content []byte, off int64) error {
	for len(content) > 0 {
		n := 0
		zero := allZero(content[:min(smallPage, len(content))])
		for n < len(content) && allZero(content[n:min(n+smallPage, len(content))]) == zero {
			n = min(n+smallPage, len(content))
		}
		if !zero {
			if _, err := to.WriteAt(content[:n], off); err != nil {
				return err
			}
		}
		content, off = content[n:], off+int64(n)
	}
	return nil
}
