package microvm

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"hearth/internal/hearth"
)

// vmlinux makes a small ELF file that passes for a kernel: one segment, one
// note, and a banner.
func vmlinux(machine elf.Machine, note string) []byte {
	var b bytes.Buffer
	text := []byte("Linux version 6.1.0-test (somebody)\x00" + strings.Repeat("kernel text ", 5000))
	const head, prog = 64, 56
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: 1, Phoff: head, Ehsize: head, Phentsize: prog, Phnum: 2}
	copy(h.Ident[:], elf.ELFMAG+"\x02\x01\x01")
	_ = binary.Write(&b, binary.LittleEndian, h)
	start := uint64(head + 2*prog)
	_ = binary.Write(&b, binary.LittleEndian, elf.Prog64{Type: uint32(elf.PT_LOAD), Off: start, Filesz: uint64(len(text)), Memsz: uint64(len(text))})
	_ = binary.Write(&b, binary.LittleEndian, elf.Prog64{Type: uint32(elf.PT_NOTE), Off: start + uint64(len(text)), Filesz: uint64(len(note)), Memsz: uint64(len(note))})
	b.Write(text)
	b.WriteString(note)
	return b.Bytes()
}

const (
	otherNote = "\x04\x00\x00\x00\x01\x00\x00\x00\x05\x00\x00\x00GNU\x00\x01\x00\x00\x00"
	pvhNote   = otherNote + "\x04\x00\x00\x00\x08\x00\x00\x00\x12\x00\x00\x00Xen\x00\x00\x00\x00\x01\x00\x00\x00\x00"
)

// bzImage packs a kernel the way the kernel's own build does.
func bzImage(payload []byte, size int) []byte {
	b := make([]byte, 3*512)
	b[bzSectors] = 2
	copy(b[bzMagic:], "HdrS")
	binary.LittleEndian.PutUint16(b[bzVersion:], 0x20f)
	binary.LittleEndian.PutUint32(b[bzOffset:], 100)
	binary.LittleEndian.PutUint32(b[bzLength:], uint32(len(payload)+4))
	b = append(b, make([]byte, 100)...)
	b = append(b, payload...)
	b = binary.LittleEndian.AppendUint32(b, uint32(size))
	return append(b, "what follows the payload"...)
}

// pack packs with a program that the kernel's build uses.
func pack(t *testing.T, raw []byte, program string, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("%s is not installed", program)
	}
	cmd := exec.Command(program, args...)
	cmd.Stdin = bytes.NewReader(raw)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestKernelELF(t *testing.T) {
	want := vmlinux(elf.EM_X86_64, pvhNote)
	packers := map[string]func(t *testing.T) []byte{
		"lz4": func(t *testing.T) []byte { return pack(t, want, "lz4", "-l", "-9", "-c", "-") },
		"xz": func(t *testing.T) []byte {
			return pack(t, want, "xz", "--check=crc32", "--x86", "--lzma2=,dict=1MiB", "-c")
		},
		"gzip": func(t *testing.T) []byte {
			var b bytes.Buffer
			w := gzip.NewWriter(&b)
			_, _ = w.Write(want)
			_ = w.Close()
			return b.Bytes()[:b.Len()-4] // the size at the end is gzip's own
		},
		"zstd": func(t *testing.T) []byte {
			w, _ := zstd.NewWriter(nil)
			return w.EncodeAll(want, nil)
		},
	}
	for name, f := range packers {
		t.Run(name, func(t *testing.T) {
			payload := f(t)
			got, err := kernelELF(t.Context(), bzImage(payload, len(want)))
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			facts, err := inspect(got)
			if err != nil || facts != (kernelFacts{release: "6.1.0-test", pvh: true}) {
				t.Errorf("%+v, %v", facts, err)
			}
			for cut := range 20 { // only what comes after the data may be missing
				bad := bytes.Clone(payload)
				bad = bad[:len(bad)*cut/20]
				if got, err := kernelELF(t.Context(), bzImage(bad, len(want))); err == nil && !bytes.Equal(got, want) {
					t.Errorf("a payload of %d bytes of %d gave %d", len(bad), len(payload), len(got))
				}
			}
		})
	}
	if got, err := kernelELF(t.Context(), want); err != nil || !bytes.Equal(got, want) {
		t.Errorf("an ELF file: %v", err)
	}
}

func TestBadKernels(t *testing.T) {
	good := vmlinux(elf.EM_X86_64, "")
	old := bzImage([]byte("x"), 1)
	binary.LittleEndian.PutUint16(old[bzVersion:], 0x207)
	noBanner := bytes.ReplaceAll(bytes.Clone(good), []byte("Linux version"), []byte("Other version"))
	for name, c := range map[string]struct {
		raw  []byte
		text string
	}{
		"empty":        {nil, "neither"},
		"a script":     {[]byte("#!/bin/sh\n" + strings.Repeat("x", 4096)), "neither"},
		"old bzImage":  {old, "2.07"},
		"cut bzImage":  {bzImage(make([]byte, 5000), 1)[:4000], "cut off"},
		"huge":         {bzImage([]byte(lz4Legacy), 1<<31-1), "more than"},
		"unknown":      {bzImage([]byte("BZh91AY"), 100), "unpacked"},
		"cut ELF":      {good[:len(good)/2], "cut off"},
		"ELF header":   {good[:80], "ELF"},
		"other CPU":    {vmlinux(elf.EM_AARCH64, ""), "x86-64"},
		"no kernel":    {noBanner, "no Linux kernel"},
		"not 64 bit":   {append([]byte(elf.ELFMAG+"\x01\x01\x01"), make([]byte, 200)...), "ELF"},
		"packed other": {bzImage(append([]byte(lz4Legacy), 4, 0, 0, 0, 0x40, 'a', 'b', 'c'), 3), "unpacked"},
	} {
		image, err := kernelELF(t.Context(), c.raw)
		if err == nil {
			_, err = inspect(image)
		}
		if hearth.KindOf(err) != hearth.InvalidArgument || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: got %v, want an error with %q", name, err, c.text)
		}
	}
}

func TestPrepareErrors(t *testing.T) {
	dir := t.TempDir()
	kernel := filepath.Join(dir, "vmlinux")
	if err := os.WriteFile(kernel, vmlinux(elf.EM_X86_64, pvhNote), 0o600); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "modules")
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]Options{
		"relative cache": {Cache: "x", Kernel: kernel},
		"no kernel":      {Cache: dir, Kernel: filepath.Join(dir, "none"), Init: []byte("x")},
		"no modules":     {Cache: dir, Kernel: kernel, Modules: other, Init: []byte("x")},
		"modules gone":   {Cache: dir, Kernel: kernel, Modules: filepath.Join(dir, "none"), Init: []byte("x")},
	} {
		if _, err := Prepare(t.Context(), o); hearth.KindOf(err) != hearth.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(filepath.Join(other, "overlay.ko"), moduleFile(t, "5.0.0"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Prepare(t.Context(), Options{Cache: dir, Kernel: kernel, Modules: other, Init: []byte("x")})
	if hearth.KindOf(err) != hearth.InvalidArgument || !strings.Contains(err.Error(), "5.0.0") {
		t.Errorf("modules of another kernel: %v", err)
	}
}

// TestPrepare: equal parts give the same files, others give others, damage heals.
func TestPrepare(t *testing.T) {
	dir := t.TempDir()
	kernel := filepath.Join(dir, "vmlinux")
	if err := os.WriteFile(kernel, vmlinux(elf.EM_X86_64, pvhNote), 0o600); err != nil {
		t.Fatal(err)
	}
	o := Options{Cache: filepath.Join(dir, "cache"), Kernel: kernel, Init: []byte("program")}
	first, err := Prepare(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if first.Release != "6.1.0-test" || !first.PVH || len(first.Digest) != 64 {
		t.Errorf("got %+v", first)
	}
	if err := os.Remove(first.Initrd); err != nil {
		t.Fatal(err)
	}
	again, err := Prepare(t.Context(), o)
	if err != nil || *again != *first {
		t.Errorf("got %+v, %v", again, err)
	}
	if st, err := os.Stat(first.Initrd); err != nil || st.Size() == 0 {
		t.Errorf("the missing file did not come back: %v", err)
	}
	o.Init = []byte("another program")
	if other, err := Prepare(t.Context(), o); err != nil || other.Digest == first.Digest {
		t.Errorf("another program, the same digest: %v", err)
	}
	left, _ := filepath.Glob(filepath.Join(o.Cache, ".boot-*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestModuleOrder(t *testing.T) {
	dir := t.TempDir()
	for name, depends := range map[string]string{"a": "b,c-d", "b": "c_d", "c-d": "", "lonely": ""} {
		if err := os.WriteFile(filepath.Join(dir, name+".ko"), moduleFile(t, "6.1", "depends="+depends), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := readModuleTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	list, err := tree.load(t.Context(), []string{"a", "built_in", "b"}, "6.1")
	var names []string
	for _, m := range list {
		names = append(names, m.name)
	}
	if got := strings.Join(names, " "); err != nil || got != "c_d b a" {
		t.Errorf("got %q, %v", got, err)
	}
}

// moduleFile makes an ELF file with what a module says of itself, and no more.
func moduleFile(t *testing.T, release string, fields ...string) []byte {
	t.Helper()
	info := strings.Join(append(fields, "vermagic="+release+" SMP"), "\x00") + "\x00"
	names := "\x00.modinfo\x00.shstrtab\x00"
	var b bytes.Buffer
	const head, section = 64, 64
	h := elf.Header64{Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: head, Shentsize: section, Shnum: 3, Shstrndx: 2}
	h.Shoff = uint64(head + len(info) + len(names))
	copy(h.Ident[:], elf.ELFMAG+"\x02\x01\x01")
	_ = binary.Write(&b, binary.LittleEndian, h)
	b.WriteString(info + names)
	_ = binary.Write(&b, binary.LittleEndian, []elf.Section64{{},
		{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: head, Size: uint64(len(info))},
		{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: uint64(head + len(info)), Size: uint64(len(names))}})
	return b.Bytes()
}

// FuzzLZ4: damaged data gives an error or data within the limit, never more.
func FuzzLZ4(f *testing.F) {
	f.Add([]byte("\x05\x00\x00\x00\x40abcd"), 4)
	f.Add([]byte("\x0b\x00\x00\x00\x1fa\x01\x00\xff\x00\x50abcde"), 400)
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		size = size & 0xffff
		out, err := unpackLZ4(append([]byte(lz4Legacy), in...), size)
		if err == nil && len(out) != size {
			t.Errorf("%d bytes, want %d", len(out), size)
		}
	})
}

// TestLZ4 compares with the reference on data that packs in every way.
func TestLZ4(t *testing.T) {
	for range 20 {
		raw := make([]byte, rand.IntN(300_000))
		for i := range raw {
			switch {
			case i > 100 && rand.IntN(3) > 0:
				raw[i] = raw[i-1-rand.IntN(100)%(1+i%7)]
			default:
				raw[i] = byte(rand.IntN(1 + i%200))
			}
		}
		packed := pack(t, raw, "lz4", "-l", "-c", "-")
		got, err := unpackLZ4(packed, len(raw))
		if err != nil || !bytes.Equal(got, raw) {
			t.Fatalf("%d bytes of %d, %v", len(got), len(raw), err)
		}
	}
}
