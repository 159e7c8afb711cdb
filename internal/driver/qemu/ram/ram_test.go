package ram

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// Of no round number: the runtime has mappings of its own, which are looked at, too.
const size = 73 * PageSize

func memfd(t *testing.T, name string) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

// clone maps a template as QEMU maps a clone's memory.
func clone(t *testing.T, f *os.File) ([]byte, *Memory) {
	t.Helper()
	b, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	m, err := Find(os.Getpid(), size)
	if err != nil {
		t.Fatal(err)
	}
	return b, m
}

func seal(t *testing.T, f *os.File) {
	t.Helper()
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL); err != nil {
		t.Fatal(err)
	}
}

func page(b []byte, n int) []byte { return b[n*PageSize : (n+1)*PageSize] }

// A clone reads some pages of its template and writes others; only those are
// kept, and with the template they make the same memory again.
func TestOnlyWrittenPagesAreKept(t *testing.T) {
	template := memfd(t, TemplateName)
	for _, n := range []int{1, 2, 3, 40} {
		if _, err := template.WriteAt(bytes.Repeat([]byte{byte(n)}, PageSize), int64(n)*PageSize); err != nil {
			t.Fatal(err)
		}
	}
	seal(t, template)
	b, m := clone(t, template)
	if page(b, 1)[0] != 1 || page(b, 50)[0] != 0 {
		t.Fatal("the clone does not see the template")
	}
	page(b, 2)[7] = 99
	clear(page(b, 3))
	page(b, 20)[0], page(b, 21)[1] = 20, 21

	var pages bytes.Buffer
	x, err := m.Save(t.Context(), &pages, NoteZeros)
	if err != nil {
		t.Fatal(err)
	}
	want := []Run{{First: 2, Pages: 1}, {First: 3, Pages: 1, Zero: true}, {First: 20, Pages: 2}}
	if !slices.Equal(x.Runs, want) || int64(pages.Len()) != x.Kept() {
		t.Fatalf("kept %v with %d bytes, want %v", x.Runs, pages.Len(), want)
	}
	state := slices.Clone(b)
	if err := unix.Munmap(b); err != nil {
		t.Fatal(err)
	}
	again, m2 := clone(t, template)
	if err := m2.Load(t.Context(), x, &pages); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again, state) {
		t.Error("the memory is another after it was loaded")
	}
}

// A machine that booted has anonymous memory, and its image leaves zeros out.
func TestBootedMemoryBecomesATemplate(t *testing.T) {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(b)
	if err := unix.Madvise(b, unix.MADV_DONTFORK); err != nil { // keeps it apart from its neighbours, as QEMU does
		t.Fatal(err)
	}
	page(b, 0)[1], page(b, 5)[2], page(b, 63)[4095] = 1, 2, 3
	page(b, 9)[0] = 1
	page(b, 9)[0] = 0 // written, and zero again
	m, err := Find(os.Getpid(), size)
	if err != nil {
		t.Fatal(err)
	}
	var pages bytes.Buffer
	x, err := m.Save(t.Context(), &pages, DropZeros)
	if err != nil {
		t.Fatal(err)
	}
	if x.Kept() != 3*PageSize {
		t.Errorf("kept %d bytes: %v", x.Kept(), x.Runs)
	}
	f := memfd(t, "filled")
	if err := Fill(t.Context(), f, x, &pages); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, size)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, b) {
		t.Errorf("the template is not the memory: %v", err)
	}
}

func TestMissingPagesAreTold(t *testing.T) {
	x := &Index{Size: size, Runs: []Run{{First: 1, Pages: 2}}}
	err := Fill(t.Context(), memfd(t, "short"), x, bytes.NewReader(make([]byte, PageSize)))
	if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Fill(ctx, memfd(t, "cancelled"), x, bytes.NewReader(make([]byte, size))); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestFindWantsExactlyOne(t *testing.T) {
	if _, err := Find(os.Getpid(), 12345*PageSize); err == nil {
		t.Error("found a mapping that is not there")
	}
	if _, err := Find(1<<22, size); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("another process: %v", err)
	}
	template := memfd(t, TemplateName)
	clone(t, template)
	b, err := unix.Mmap(int(template.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(b)
	if _, err := Find(os.Getpid(), size); err == nil {
		t.Error("chose one of two")
	}
}

func TestIndexComesBack(t *testing.T) {
	x := &Index{Size: size, Runs: []Run{{First: 0, Pages: 3}, {First: 3, Pages: 1, Zero: true}, {First: 60, Pages: 4}}}
	var raw bytes.Buffer
	if _, err := x.WriteTo(&raw); err != nil {
		t.Fatal(err)
	}
	back, err := Decode(raw.Bytes(), size)
	if err != nil || !slices.Equal(back.Runs, x.Runs) {
		t.Errorf("%+v, %v", back, err)
	}
	if _, err := Decode(raw.Bytes(), size*2); err == nil {
		t.Error("an index of another size was taken")
	}
	path := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for n := range raw.Len() {
		if _, err := Decode(raw.Bytes()[:n], size); err == nil {
			t.Errorf("%d of %d bytes were taken", n, raw.Len())
		}
	}
}

func FuzzDecode(f *testing.F) {
	x := &Index{Size: size, Runs: []Run{{First: 1, Pages: 2}, {First: 9, Pages: 1, Zero: true}}}
	var raw bytes.Buffer
	if _, err := x.WriteTo(&raw); err != nil {
		f.Fatal(err)
	}
	f.Add(raw.Bytes())
	f.Fuzz(func(t *testing.T, raw []byte) {
		x, err := Decode(raw, size)
		if err != nil {
			return
		}
		for _, r := range x.Runs {
			if r.First+r.Pages > size/PageSize {
				t.Errorf("run %+v is beyond the memory", r)
			}
		}
		if x.Kept() < 0 || x.Kept() > size {
			t.Errorf("keeps %d bytes", x.Kept())
		}
	})
}

func FuzzMapping(f *testing.F) {
	f.Add("7fdc63e00000-7fdc73e00000 rw-p 00000000 00:01 8    /memfd:hearth-ram (deleted)")
	f.Fuzz(func(t *testing.T, line string) { parseMapping(line) })
}
