package blobtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"hearth/internal/blob"
	"hearth/internal/hearth"
)

// RunArchive checks an archive against the contract. open returns an empty one.
func RunArchive(t *testing.T, open func(t *testing.T) blob.Archive) {
	for name, test := range map[string]func(*testing.T, blob.Archive){
		"round trip":     archiveRoundTrip,
		"holes":          archiveHoles,
		"like":           archiveLike,
		"weigh":          archiveWeigh,
		"objects":        archiveObjects,
		"objects go":     archiveObjectsGo,
		"wrong name":     archiveWrongName,
		"missing":        archiveMissing,
		"cancelled":      archiveCancelled,
		"collect":        archiveCollect,
		"packed at once": archiveAtOnce,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

// TempDir is a directory of the test in memory, where a sync costs nothing, if
// there is a file system for that.
func TempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "hearth-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// Noise returns n bytes that do not compress and are always the same.
func Noise(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b) // never fails
	return b
}

// NewSource writes a file.
func NewSource(t testing.TB, content []byte) blob.Source {
	t.Helper()
	path := filepath.Join(TempDir(t), "file")
	ok(t, os.WriteFile(path, content, 0o600))
	sum := sha256.Sum256(content)
	return blob.Source{SHA256: hex.EncodeToString(sum[:]), Path: path}
}

// unpack returns a file's content and the bytes that it takes on disk.
func unpack(t *testing.T, a blob.Archive, name string) ([]byte, int64) {
	t.Helper()
	f, err := os.Create(filepath.Join(TempDir(t), "out"))
	ok(t, err)
	defer f.Close()
	ok(t, a.Unpack(context.Background(), name, f))
	raw, err := os.ReadFile(f.Name())
	ok(t, err)
	info, err := f.Stat()
	ok(t, err)
	return raw, info.Sys().(*syscall.Stat_t).Blocks * 512
}

func pack(t *testing.T, a blob.Archive, content []byte, like ...string) (string, blob.Packed) {
	t.Helper()
	src := NewSource(t, content)
	p, err := a.Pack(t.Context(), []blob.Source{src}, like)
	ok(t, err)
	return src.SHA256, p
}

func archiveRoundTrip(t *testing.T, a blob.Archive) {
	for _, content := range [][]byte{
		{}, {1}, {0}, make([]byte, 5000), []byte(strings.Repeat("hearth ", 100_000)), Noise(4096, 1), Noise(3<<20+17, 2),
		append(make([]byte, 1<<20), 1), append(Noise(1<<20, 3), make([]byte, 4097)...),
	} {
		name, packed := pack(t, a, content)
		if packed.Bytes != int64(len(content)) {
			t.Errorf("packed %d bytes, not %d", packed.Bytes, len(content))
		}
		got, _ := unpack(t, a, name)
		if !bytes.Equal(got, content) {
			t.Errorf("%d bytes came back as %d others", len(content), len(got))
		}
		ok(t, a.Check(t.Context(), name))
		r, err := a.Open(t.Context(), name)
		ok(t, err)
		if r.Size() != int64(len(content)) {
			t.Errorf("the reader's size is %d", r.Size())
		}
		for range 20 {
			off := rand.IntN(len(content) + 1)
			n := rand.IntN(len(content) - off + 1)
			part := make([]byte, n)
			if _, err := r.ReadAt(part, int64(off)); err != nil || !bytes.Equal(part, content[off:off+n]) {
				t.Errorf("%d bytes from %d of %d: %v", n, off, len(content), err)
			}
		}
		if n, err := r.ReadAt(make([]byte, 10), r.Size()-min(r.Size(), 4)); err != io.EOF || int64(n) != min(r.Size(), 4) {
			t.Errorf("read %d over the end: %v", n, err)
		}
		ok(t, r.Close())
		again, err := a.Pack(t.Context(), []blob.Source{{SHA256: name, Path: "/gone"}}, nil)
		if err != nil || again.Stored != 0 {
			t.Errorf("packed again: %+v, %v", again, err)
		}
	}
}

func archiveHoles(t *testing.T, a blob.Archive) {
	src := NewSource(t, nil)
	f, err := os.OpenFile(src.Path, os.O_RDWR, 0)
	ok(t, err)
	defer f.Close()
	const size = 1<<30 + 100<<20 + 5 // more than one hole can be
	ok(t, f.Truncate(size))
	for _, at := range []int64{64 << 20, size - 5000} {
		_, err := f.WriteAt(Noise(3000, uint64(at)), at)
		ok(t, err)
	}
	h := sha256.New()
	_, err = io.Copy(h, f)
	ok(t, err)
	src.SHA256 = hex.EncodeToString(h.Sum(nil))
	p, err := a.Pack(t.Context(), []blob.Source{src}, nil)
	ok(t, err)
	if p.Holes < size-100_000 || p.Stored > 20_000 {
		t.Errorf("packed %+v of a file that is nearly all hole", p)
	}
	out, err := os.Create(filepath.Join(TempDir(t), "out"))
	ok(t, err)
	defer out.Close()
	ok(t, a.Unpack(t.Context(), src.SHA256, out))
	info, err := out.Stat()
	ok(t, err)
	if used := info.Sys().(*syscall.Stat_t).Blocks * 512; info.Size() != size || used > 1<<20 {
		t.Errorf("unpacked %d bytes that take %d", info.Size(), used)
	}
}

func archiveLike(t *testing.T, a blob.Archive) {
	first := Noise(8<<20, 1)
	one, _ := pack(t, a, first)
	// Pages were put in, some were taken away, one was written to.
	second := append(Noise(3*4096, 9), first[:2<<20]...)
	second = append(second, first[2<<20+5*4096:]...)
	second[5<<20]++
	two, p := pack(t, a, second, one, strings.Repeat("0", 64))
	if p.Shared < 7<<20 || p.Stored > 1<<20 {
		t.Errorf("of a file that is like another one: %+v", p)
	}
	if _, p := pack(t, a, append(second, 1)); p.Shared != 0 {
		t.Errorf("of a file that is like no other one: %+v", p)
	}
	_, err := a.Collect(t.Context(), func(name string) bool { return name == two })
	ok(t, err)
	if got, _ := unpack(t, a, two); !bytes.Equal(got, second) {
		t.Error("the second file is not what was packed, without the first")
	}
}

func archiveWeigh(t *testing.T, a blob.Archive) {
	weigh := func(files, beside []string, want int64) {
		t.Helper()
		got, err := a.Weigh(t.Context(), files, beside)
		if err != nil || got != want {
			t.Errorf("%d bytes of %.4s beside %.4s, %v; want %d", got, files, beside, err, want)
		}
	}
	first := Noise(4<<20, 1)
	one, p1 := pack(t, a, first)
	two, p2 := pack(t, a, append(first, Noise(100_000, 2)...), one)
	stranger, p3 := pack(t, a, first)             // packed already
	same, p4 := pack(t, a, append(first, 1), two) // shares with the second, and so with the first
	if stranger != one || p3.Stored != 0 || p4.Stored >= p2.Stored {
		t.Fatalf("packed %+v, %+v, %+v, %+v", p1, p2, p3, p4)
	}
	gone := strings.Repeat("0", 64)
	weigh(nil, nil, 0)
	weigh([]string{one}, nil, p1.Stored)
	weigh([]string{one, one}, nil, p1.Stored)
	weigh([]string{one, two, same}, nil, p1.Stored+p2.Stored+p4.Stored)
	weigh([]string{two}, []string{one}, p2.Stored)
	weigh([]string{two}, []string{gone, one, two}, 0)
	weigh([]string{same}, []string{two}, p4.Stored)
	zeros, _ := pack(t, a, make([]byte, 1<<20))
	weigh([]string{zeros}, nil, 0)
	_, err := a.Weigh(t.Context(), []string{gone}, nil)
	fails(t, err, hearth.NotFound)
	_, err = a.Weigh(t.Context(), []string{one}, []string{"x"})
	fails(t, err, hearth.InvalidArgument)
	alike, p5 := pack(t, a, append(first, 2)) // like nothing: all of it is there twice
	weigh([]string{alike}, []string{one, two, same}, p5.Stored)
}

// objectsOf is the bytes on disk for files, of each object once.
func objectsOf(t *testing.T, a blob.Archive, names ...string) (sum int64) {
	t.Helper()
	all := map[string]int64{}
	for _, name := range names {
		list, err := a.Objects(t.Context(), name)
		ok(t, err)
		for _, o := range list {
			all[o.Name] = o.Bytes
		}
	}
	for _, n := range all {
		sum += n
	}
	return sum
}

func archiveObjects(t *testing.T, a blob.Archive) {
	first := Noise(1<<20, 1)
	one, _ := pack(t, a, first)
	two, p := pack(t, a, append(first, Noise(100_000, 2)...), one)
	other, _ := pack(t, a, Noise(200_000, 3))
	zeros, _ := pack(t, a, make([]byte, 1<<20))
	ofOne, ofTwo, both := objectsOf(t, a, one), objectsOf(t, a, two), objectsOf(t, a, one, two)
	if ofOne < 1<<20 || ofTwo < ofOne+p.Stored || both-ofOne < p.Stored || both-ofOne > 200_000 {
		t.Errorf("%d bytes for one, %d for the second, %d for both", ofOne, ofTwo, both)
	}
	if all, ofOther := objectsOf(t, a, one, two, other), objectsOf(t, a, other); all != both+ofOther {
		t.Errorf("%d bytes for what shares nothing, and %d for the others, are %d", ofOther, both, all)
	}
	if n := objectsOf(t, a, zeros); n > 1000 {
		t.Errorf("%d bytes for a hole", n)
	}
	gone := NewSource(t, []byte("x")).SHA256
	for name, kind := range map[string]hearth.Kind{gone: hearth.NotFound, "x": hearth.InvalidArgument} {
		_, err := a.Objects(t.Context(), name)
		fails(t, err, kind)
	}
}

// archiveObjectsGo: what files need is what is freed when they are all that goes.
func archiveObjectsGo(t *testing.T, a blob.Archive) {
	first := Noise(1<<20, 1)
	one, _ := pack(t, a, first)
	two, _ := pack(t, a, append(first, Noise(100_000, 2)...), one)
	other, _ := pack(t, a, Noise(200_000, 3))
	ofOne, ofTwo, all := objectsOf(t, a, one), objectsOf(t, a, two), objectsOf(t, a, one, two, other)
	freed, err := a.Collect(t.Context(), func(name string) bool { return name == two })
	if err != nil || freed != all-ofTwo {
		t.Errorf("freed %d bytes, %v; what the second does not need is %d", freed, err, all-ofTwo)
	}
	_, err = a.Objects(t.Context(), one)
	fails(t, err, hearth.NotFound)
	if n := objectsOf(t, a, two); n != ofTwo {
		t.Errorf("%d bytes for the second, %d before", n, ofTwo)
	}
	again, _ := pack(t, a, first) // like none
	if n := objectsOf(t, a, again); n != ofOne {
		t.Errorf("packed again it needs %d bytes, %d before", n, ofOne)
	}
}

func archiveWrongName(t *testing.T, a blob.Archive) {
	src := NewSource(t, Noise(10_000, 1))
	other := NewSource(t, Noise(10_000, 2))
	_, err := a.Pack(t.Context(), []blob.Source{{SHA256: src.SHA256, Path: other.Path}}, nil)
	fails(t, err, hearth.FailedPrecondition)
	_, err = a.Stat(t.Context(), src.SHA256)
	fails(t, err, hearth.NotFound)
	for _, name := range []string{"", "x", strings.ToUpper(src.SHA256), src.SHA256[1:], "../" + src.SHA256[3:]} {
		_, err := a.Pack(t.Context(), []blob.Source{{SHA256: name, Path: src.Path}}, nil)
		fails(t, err, hearth.InvalidArgument)
		_, err = a.Open(t.Context(), name)
		fails(t, err, hearth.InvalidArgument)
	}
}

func archiveMissing(t *testing.T, a blob.Archive) {
	name := NewSource(t, []byte("x")).SHA256
	_, err := a.Stat(t.Context(), name)
	fails(t, err, hearth.NotFound)
	_, err = a.Open(t.Context(), name)
	fails(t, err, hearth.NotFound)
	fails(t, a.Check(t.Context(), name), hearth.NotFound)
	_, err = a.Pack(t.Context(), []blob.Source{{SHA256: name, Path: "/gone"}}, nil)
	fails(t, err, hearth.NotFound)
}

func archiveCancelled(t *testing.T, a blob.Archive) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	src := NewSource(t, Noise(1<<20, 1))
	if _, err := a.Pack(ctx, []blob.Source{src}, nil); err == nil {
		t.Error("packed after the end of its context")
	}
	_, err := a.Stat(t.Context(), src.SHA256)
	fails(t, err, hearth.NotFound)
}

func archiveCollect(t *testing.T, a blob.Archive) {
	one, _ := pack(t, a, Noise(1<<20, 1))
	two, _ := pack(t, a, Noise(1<<20, 2))
	freed, err := a.Collect(t.Context(), func(name string) bool { return name == two })
	ok(t, err)
	if freed < 1<<20 {
		t.Errorf("freed %d bytes, want a MiB", freed)
	}
	_, err = a.Stat(t.Context(), one)
	fails(t, err, hearth.NotFound)
	ok(t, a.Check(t.Context(), two))
	_, err = a.Collect(t.Context(), func(string) bool { return false })
	ok(t, err)
	freed, err = a.Collect(t.Context(), func(string) bool { return false })
	if err != nil || freed != 0 {
		t.Errorf("freed %d bytes of nothing, %v", freed, err)
	}
}

func archiveAtOnce(t *testing.T, a blob.Archive) {
	same, other := NewSource(t, Noise(2<<20, 1)), NewSource(t, Noise(2<<20, 2))
	done := make(chan error)
	const packers = 6
	for i := range packers {
		own := NewSource(t, append(Noise(1<<20, 1), byte(i)))
		go func() {
			_, err := a.Pack(context.Background(), []blob.Source{same, other, own, same}, []string{same.SHA256})
			for _, is := range []blob.Source{own, same, other} { // from now on, whatever the others do
				err = errors.Join(err, a.Check(context.Background(), is.SHA256))
			}
			done <- err
		}()
	}
	for range packers {
		ok(t, <-done)
	}
	_, err := a.Collect(t.Context(), func(name string) bool { return name == same.SHA256 })
	ok(t, err)
	ok(t, a.Check(t.Context(), same.SHA256))
	fails(t, a.Check(t.Context(), other.SHA256), hearth.NotFound)
}
