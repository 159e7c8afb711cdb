package pager

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Layers is a machine's memory as several files of one size: the lowest holds all
// of it, each next one what was written since, with holes where nothing was. It
// is an io.ReaderAt that may be used from several goroutines.
type Layers struct {
	size    int64
	extents []extent // ascending, without gaps, from 0 to size
}

// extent is a piece of memory that lies in one file.
type extent struct {
	start, end int64
	file       *os.File
}

// NewLayers reads the maps of the files, lowest first.
func NewLayers(files []*os.File) (*Layers, error) {
	if len(files) == 0 {
		return nil, errors.New("no memory file")
	}
	info, err := files[0].Stat()
	if err != nil {
		return nil, err
	}
	l := &Layers{size: info.Size(), extents: []extent{{0, info.Size(), files[0]}}}
	if l.size == 0 || l.size%smallPage != 0 {
		return nil, fmt.Errorf("memory of %d bytes is not of whole pages", l.size)
	}
	for _, f := range files[1:] {
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		if info.Size() != l.size {
			return nil, fmt.Errorf("memory of %d bytes over one of %d", info.Size(), l.size)
		}
		data, err := dataOf(f, l.size)
		if err != nil {
			return nil, err
		}
		l.extents = lay(l.extents, data)
	}
	return l, nil
}

// Size is the memory's size in bytes.
func (l *Layers) Size() int64 { return l.size }

// dataOf lists the pieces of a file that are no holes.
func dataOf(f *os.File, size int64) ([]extent, error) {
	var list []extent
	for at := int64(0); at < size; {
		start, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return nil, err
		}
		end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		if end = min(end, size); end <= start {
			break
		}
		list = append(list, extent{start, end, f})
		at = end
	}
	return list, nil
}

// lay puts one file's pieces over what lies below. Both lists ascend.
func lay(below, above []extent) []extent {
	out := make([]extent, 0, len(below)+2*len(above))
	for _, b := range below {
		for len(above) > 0 && above[0].start < b.end {
			a := above[0]
			if a.start > b.start {
				out = append(out, extent{b.start, a.start, b.file})
			}
			upTo := min(a.end, b.end)
			out = append(out, extent{max(a.start, b.start), upTo, a.file})
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
		got, err := e.file.ReadAt(p[done:done+int(n)], off)
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
