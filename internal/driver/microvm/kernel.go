package microvm

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"os/exec"
	"strings"

	"compress/gzip"

	"github.com/klauspost/compress/zstd"

	"hearth/internal/hearth"
)

const (
	maxKernel = 512 << 20 // bytes of an unpacked kernel
	maxModule = 64 << 20
)

// The fields of a bzImage that matter here (Documentation/arch/x86/boot.rst).
const (
	bzSectors = 0x1f1 // uint8: sectors of the real-mode code, beside the first
	bzMagic   = 0x202 // "HdrS"
	bzVersion = 0x206 // uint16; the payload's place is told since 2.08
	bzOffset  = 0x248 // uint32: of the payload, after the real-mode code
	bzLength  = 0x24c // uint32: of the payload; its last 4 bytes are the size unpacked
	bzHeader  = 0x250
)

// kernelELF returns the ELF image of a kernel file: the file itself, or what a
// bzImage holds.
func kernelELF(ctx context.Context, raw []byte) ([]byte, error) {
	if bytes.HasPrefix(raw, []byte(elf.ELFMAG)) {
		return raw, nil
	}
	if len(raw) < bzHeader || string(raw[bzMagic:bzMagic+4]) != "HdrS" {
		return nil, hearth.Errorf(hearth.InvalidArgument, "the kernel is neither an ELF file (vmlinux) nor a bzImage")
	}
	if v := binary.LittleEndian.Uint16(raw[bzVersion:]); v < 0x208 {
		return nil, hearth.Errorf(hearth.InvalidArgument, "the kernel is a bzImage of boot protocol %d.%02d; 2.08 or newer is needed", v>>8, v&0xff)
	}
	sectors := int(raw[bzSectors])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors+1)*512 + int(binary.LittleEndian.Uint32(raw[bzOffset:]))
	length := int(binary.LittleEndian.Uint32(raw[bzLength:]))
	if start > len(raw) || length < 8 || length > len(raw)-start {
		return nil, hearth.Errorf(hearth.InvalidArgument, "the kernel file is cut off: its payload ends at byte %d, the file at %d", start+length, len(raw))
	}
	payload := raw[start : start+length]
	size := int(binary.LittleEndian.Uint32(payload[length-4:]))
	if size > maxKernel {
		return nil, hearth.Errorf(hearth.InvalidArgument, "the kernel has %d bytes unpacked, more than the %d allowed", size, maxKernel)
	}
	if !bytes.HasPrefix(payload, []byte(gzipMagic)) {
		payload = payload[:length-4] // gzip's own last field is that size
	}
	out, err := unpack(ctx, payload, size)
	if err != nil {
		return nil, hearth.Wrap(hearth.InvalidArgument, err, "the bzImage cannot be unpacked")
	}
	if len(out) != size {
		return nil, hearth.Errorf(hearth.InvalidArgument, "the bzImage holds %d bytes and promises %d", len(out), size)
	}
	return out, nil
}

const gzipMagic = "\x1f\x8b"

// unpack unpacks data of a form that kernels and modules use, to at most limit bytes.
func unpack(ctx context.Context, in []byte, limit int) ([]byte, error) {
	switch {
	case bytes.HasPrefix(in, []byte(lz4Legacy)):
		return unpackLZ4(in, limit)
	case bytes.HasPrefix(in, []byte(gzipMagic)):
		r, err := gzip.NewReader(bytes.NewReader(in))
		if err != nil {
			return nil, err
		}
		return readAtMost(r, limit)
	case bytes.HasPrefix(in, []byte("\x28\xb5\x2f\xfd")):
		r, err := zstd.NewReader(bytes.NewReader(in), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(1<<30))
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return readAtMost(r, limit)
	case bytes.HasPrefix(in, []byte("\xfd7zXZ\x00")):
		return unpackXZ(ctx, in, limit)
	}
	return nil, hearth.Errorf(hearth.InvalidArgument, "it is packed in an unknown way (it begins with % x); lz4, gzip, zstd and xz are known", in[:min(len(in), 6)])
}

var errLarge = errors.New("there is more in it than is allowed")

// readAtMost reads to the end, which must come within limit bytes: only there
// the checksums of the packed data are looked at.
func readAtMost(r io.Reader, limit int) ([]byte, error) {
	out, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err == nil && len(out) > limit {
		err = errLarge
	}
	return out, err
}

// unpackXZ runs the host's xz, which knows the filter for machine code that kernels use.
func unpackXZ(ctx context.Context, in []byte, limit int) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "xz", "--decompress", "--stdout", "--quiet")
	cmd.Stdin = bytes.NewReader(in)
	out := &limited{left: limit}
	var text strings.Builder
	cmd.Stdout, cmd.Stderr = out, &text
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, hearth.Errorf(hearth.FailedPrecondition, "xz is missing, and the kernel or a module of it is packed with it; install the package xz-utils")
	}
	if err != nil {
		return nil, hearth.Wrap(hearth.InvalidArgument, err, "xz: %.200s", text.String())
	}
	return out.b, nil
}

// limited keeps what is written, up to a limit.
type limited struct {
	b    []byte
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.b, l.left = append(l.b, p[:n]...), l.left-n
	if n < len(p) {
		return n, errLarge
	}
	return n, nil
}

// kernelFacts are what is read from a kernel's ELF image.
type kernelFacts struct {
	release string // of uname -r
	pvh     bool   // it has a PVH entry
}

// inspect checks that image is a whole kernel for x86-64.
func inspect(image []byte) (kernelFacts, error) {
	var facts kernelFacts
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return facts, hearth.Wrap(hearth.InvalidArgument, err, "the kernel is no ELF file, or is cut off")
	}
	if f.Class != elf.ELFCLASS64 || f.Machine != elf.EM_X86_64 || f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return facts, hearth.Errorf(hearth.InvalidArgument, "the kernel is an ELF file for %v (%v, %v), not an x86-64 vmlinux", f.Machine, f.Class, f.Type)
	}
	loads := 0
	for _, p := range f.Progs {
		if p.Off > uint64(len(image)) || p.Filesz > uint64(len(image))-p.Off {
			return facts, hearth.Errorf(hearth.InvalidArgument, "the kernel file is cut off: it has %d bytes, and a segment ends at %d", len(image), p.Off+p.Filesz)
		}
		switch p.Type {
		case elf.PT_LOAD:
			loads++
		case elf.PT_NOTE:
			facts.pvh = facts.pvh || hasPVH(image[p.Off:p.Off+p.Filesz])
		}
	}
	if loads == 0 {
		return facts, hearth.Errorf(hearth.InvalidArgument, "the kernel has nothing to load")
	}
	const banner = "Linux version "
	i := bytes.Index(image, []byte(banner))
	if i < 0 {
		return facts, hearth.Errorf(hearth.InvalidArgument, "the ELF file is no Linux kernel: its version is nowhere in it")
	}
	text := image[i+len(banner) : min(len(image), i+len(banner)+100)]
	release, _, _ := bytes.Cut(text, []byte(" "))
	facts.release = string(release)
	return facts, nil
}

// hasPVH looks for Xen's note with the PVH entry. A note is: the lengths of name
// and content, a type, then both, padded to 4 bytes.
func hasPVH(notes []byte) bool {
	const physEntry = 18
	for len(notes) >= 12 {
		name, desc := int(binary.LittleEndian.Uint32(notes)), int(binary.LittleEndian.Uint32(notes[4:]))
		kind := binary.LittleEndian.Uint32(notes[8:])
		whole := 12 + (name+3)&^3 + (desc+3)&^3
		if whole > len(notes) || name > len(notes) || desc > len(notes) {
			return false
		}
		if kind == physEntry && string(notes[12:12+name]) == "Xen\x00" {
			return true
		}
		notes = notes[whole:]
	}
	return false
}
