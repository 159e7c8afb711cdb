// Package cpio writes and reads archives of the form that Linux takes as an
// initramfs ("newc"): a header of hexadecimal fields, the name, the content,
// each padded to four bytes, and an entry named TRAILER!!! at the end.
package cpio

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

const (
	magic       = "070701"
	headerBytes = 110
	trailer     = "TRAILER!!!"
	maxName     = 4096
	maxFile     = 1 << 30
)

// The file types of Entry.Mode.
const (
	Dir     = 0o040000
	Regular = 0o100000
	Link    = 0o120000 // symbolic; Data is the target
	Device  = 0o020000 // character device, numbered by Major and Minor
)

// Entry is one file. It belongs to root and has no time, so that equal entries
// give equal archives.
type Entry struct {
	Name         string // relative, without a leading slash
	Mode         uint32 // type and permission bits
	Data         []byte
	Major, Minor uint32
}

// Write writes an archive of the entries in their order. A file's directories
// must come before it.
func Write(w io.Writer, entries []Entry) error {
	b := bufio.NewWriter(w)
	for i, e := range entries {
		if e.Name == "" || e.Name == trailer || len(e.Name) >= maxName || strings.HasPrefix(e.Name, "/") || strings.ContainsRune(e.Name, 0) {
			return fmt.Errorf("cpio: %.100q cannot be the name of a file", e.Name)
		}
		if len(e.Data) > maxFile {
			return fmt.Errorf("cpio: %s has %d bytes, more than %d", e.Name, len(e.Data), maxFile)
		}
		put(b, uint32(i+1), e)
	}
	put(b, 0, Entry{Name: trailer})
	return b.Flush() // bufio keeps the first error
}

func put(b *bufio.Writer, inode uint32, e Entry) {
	links := uint32(1)
	if e.Mode&0o170000 == Dir {
		links = 2
	}
	fields := []uint32{
		inode, e.Mode, 0, 0, links, 0, // user, group, links, time
		uint32(len(e.Data)), 0, 0, e.Major, e.Minor, uint32(len(e.Name) + 1), 0, // device, checksum
	}
	_, _ = b.WriteString(magic)
	for _, f := range fields {
		_, _ = fmt.Fprintf(b, "%08x", f)
	}
	_, _ = b.WriteString(e.Name)
	_ = b.WriteByte(0)
	pad(b, headerBytes+len(e.Name)+1)
	_, _ = b.Write(e.Data)
	pad(b, len(e.Data))
}

func pad(b *bufio.Writer, n int) {
	for ; n%4 != 0; n++ {
		_ = b.WriteByte(0)
	}
}

// Read reads an archive that Write wrote.
func Read(r io.Reader) ([]Entry, error) {
	in := bufio.NewReader(r)
	var list []Entry
	for {
		e, err := next(in)
		if err != nil {
			return nil, fmt.Errorf("cpio: entry %d: %w", len(list), err)
		}
		if e.Name == trailer {
			return list, nil
		}
		list = append(list, e)
	}
}

func next(in *bufio.Reader) (Entry, error) {
	var head [headerBytes]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return Entry{}, err
	}
	if string(head[:6]) != magic {
		return Entry{}, fmt.Errorf("it begins with %q", head[:6])
	}
	var f [13]uint32
	for i := range f {
		n, err := strconv.ParseUint(string(head[6+8*i:14+8*i]), 16, 32)
		if err != nil {
			return Entry{}, err
		}
		f[i] = uint32(n)
	}
	size, nameSize := int(f[6]), int(f[11])
	if nameSize < 2 || nameSize > maxName || size > maxFile {
		return Entry{}, fmt.Errorf("its name has %d bytes and its content %d", nameSize, size)
	}
	name, err := padded(in, headerBytes, nameSize)
	if err != nil {
		return Entry{}, err
	}
	data, err := padded(in, 0, size)
	return Entry{Name: strings.TrimRight(string(name), "\x00"), Mode: f[1], Data: data, Major: f[9], Minor: f[10]}, err
}

// padded reads n bytes that follow before others, and their padding. It takes
// memory for what is there, not for what is promised.
func padded(in *bufio.Reader, before, n int) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(in, int64(n)))
	if err != nil {
		return nil, err
	}
	if len(b) < n {
		return nil, io.ErrUnexpectedEOF
	}
	_, err = in.Discard((4 - (before+n)%4) % 4)
	if n == 0 {
		b = nil
	}
	return b, err
}
