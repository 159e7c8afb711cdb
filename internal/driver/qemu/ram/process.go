package ram

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// TemplateName is what a template's memory file is called in a list of mappings.
const TemplateName = "hearth-ram"

const chunk = 1 << 20 // bytes per read or write

// Memory is a machine's, in the process that runs it.
type Memory struct {
	pid   int
	start int64
	size  int64
}

// Find looks for the mapping that is a machine's memory: the one of a template's
// file, else the one anonymous mapping of exactly its size. QEMU sets memory
// apart from its neighbours by guard pages and advice, so it is never merged.
func Find(pid int, size int64) (*Memory, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var template, anonymous []int64
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		m, ok := parseMapping(lines.Text())
		switch {
		case !ok || m.end-m.start != size || m.perms != "rw-p":
		case m.name == "/memfd:"+TemplateName:
			template = append(template, m.start)
		case m.name == "":
			anonymous = append(anonymous, m.start)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	found := template
	if len(found) == 0 {
		found = anonymous
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("process %d has %d mappings of %d bytes that can be its guest's memory", pid, len(found), size)
	}
	return &Memory{pid: pid, start: found[0], size: size}, nil
}

type mapping struct {
	start, end int64
	perms      string
	name       string // empty: anonymous
}

// parseMapping reads a line of /proc/PID/maps.
func parseMapping(line string) (mapping, bool) {
	f := strings.Fields(line)
	if len(f) < 5 {
		return mapping{}, false
	}
	from, to, ok := strings.Cut(f[0], "-")
	start, err1 := strconv.ParseInt(from, 16, 64) // the kernel's half has the highest bit set, and is not ours
	end, err2 := strconv.ParseInt(to, 16, 64)
	if !ok || err1 != nil || err2 != nil {
		return mapping{}, false
	}
	m := mapping{start: start, end: end, perms: f[1]}
	if len(f) > 5 {
		m.name = f[5]
	}
	return m, true
}

// Written lists the pages that the machine has written: those that are its own.
func (m *Memory) Written() ([]Run, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", m.pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var x Index
	buf := make([]byte, 64<<10)
	pages := uint64(m.size / PageSize)
	for page := uint64(0); page < pages; {
		n := min(uint64(len(buf)/8), pages-page)
		at := (m.start/PageSize + int64(page)) * 8
		if _, err := f.ReadAt(buf[:n*8], at); err != nil {
			return nil, err
		}
		for i := range n {
			if own(binary.LittleEndian.Uint64(buf[i*8:])) {
				x.add(Run{First: page + i, Pages: 1})
			}
		}
		page += n
	}
	return x.Runs, nil
}

// own says whether a page is the process's and no file's, from its entry in
// /proc/PID/pagemap: in memory (bit 63) or swapped (62), and no file's (61).
func own(entry uint64) bool {
	return entry>>62 != 0 && entry>>61&1 == 0
}

// Zeros says what becomes of pages that are all zero.
type Zeros int

// What may be done with zero pages.
const (
	DropZeros Zeros = iota // what is not kept is zero: there is no template
	NoteZeros              // the template may have something else there
)

// Save writes the pages that the machine has written to w, and says in the index
// which they are. The machine must stand still.
func (m *Memory) Save(ctx context.Context, w io.Writer, zeros Zeros) (*Index, error) {
	runs, err := m.Written()
	if err != nil {
		return nil, err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", m.pid))
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	s := saver{index: &Index{Size: m.size}, w: w, zeros: zeros}
	buf := make([]byte, chunk)
	for _, r := range runs {
		for r.Pages > 0 {
			if err := context.Cause(ctx); err != nil {
				return nil, err
			}
			n := min(r.Pages, chunk/PageSize)
			part := buf[:n*PageSize]
			if _, err := mem.ReadAt(part, m.start+int64(r.First)*PageSize); err != nil {
				return nil, err
			}
			if err := s.keep(r.First, part); err != nil {
				return nil, err
			}
			r.First, r.Pages = r.First+n, r.Pages-n
		}
	}
	return s.index, nil
}

type saver struct {
	index *Index
	w     io.Writer
	zeros Zeros
}

// keep writes the pages in part, which begin at first, but for the zero ones.
func (s *saver) keep(first uint64, part []byte) error {
	for len(part) > 0 {
		zero := isZero(part[:PageSize])
		n := PageSize
		for n < len(part) && isZero(part[n:n+PageSize]) == zero {
			n += PageSize
		}
		run := Run{First: first, Pages: uint64(n / PageSize), Zero: zero}
		if !zero {
			if _, err := s.w.Write(part[:n]); err != nil {
				return err
			}
		}
		if !zero || s.zeros == NoteZeros {
			s.index.add(run)
		}
		first, part = first+run.Pages, part[n:]
	}
	return nil
}

func isZero(page []byte) bool {
	for i := 0; i < len(page); i += 8 {
		if binary.LittleEndian.Uint64(page[i:]) != 0 {
			return false
		}
	}
	return true
}

// Load writes kept pages into the machine's memory, before it runs.
func (m *Memory) Load(ctx context.Context, x *Index, pages io.Reader) error {
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", m.pid), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	err = x.load(ctx, io.NewOffsetWriter(mem, m.start), pages)
	return errors.Join(err, mem.Close())
}

// Fill writes kept pages into an empty file.
func Fill(ctx context.Context, f *os.File, x *Index, pages io.Reader) error {
	return (&Index{Size: x.Size, Runs: withoutZeros(x.Runs)}).load(ctx, f, pages)
}

func withoutZeros(runs []Run) []Run {
	var list []Run
	for _, r := range runs {
		if !r.Zero {
			list = append(list, r)
		}
	}
	return list
}

func (x *Index) load(ctx context.Context, w io.WriterAt, pages io.Reader) error {
	buf, zeros := make([]byte, chunk), make([]byte, chunk)
	for _, r := range x.Runs {
		for r.Pages > 0 {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			n := min(r.Pages, chunk/PageSize)
			part := zeros[:n*PageSize]
			if !r.Zero {
				part = buf[:n*PageSize]
				if _, err := io.ReadFull(pages, part); err != nil {
					return fmt.Errorf("pages are missing: %w", err)
				}
			}
			if _, err := w.WriteAt(part, int64(r.First)*PageSize); err != nil {
				return err
			}
			r.First, r.Pages = r.First+n, r.Pages-n
		}
	}
	return nil
}
