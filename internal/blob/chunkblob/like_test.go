package chunkblob_test

import (
	"slices"
	"testing"

	"hearth/internal/blob"
	"hearth/internal/blob/blobtest"
	"hearth/internal/blob/chunkblob"
	"hearth/internal/blob/fileblob"
)

// line is a store in which each group of files is like the one before.
type line struct {
	t     *testing.T
	blobs *fileblob.Store
	s     *chunkblob.Store
	last  []string
}

func newLine(t *testing.T) *line {
	t.Helper()
	blobs, err := fileblob.Open(blobtest.TempDir(t))
	if err != nil {
		t.Fatal(err)
	}
	return &line{t: t, blobs: blobs, s: newStore(t, blobs, blobtest.TempDir(t), nil)}
}

func (l *line) pack(files ...[]byte) blob.Packed {
	l.t.Helper()
	var sources []blob.Source
	like := l.last
	l.last = nil
	for _, f := range files {
		sources = append(sources, blobtest.NewSource(l.t, f))
		l.last = append(l.last, sources[len(sources)-1].SHA256)
	}
	p, err := l.s.Pack(l.t.Context(), sources, like)
	if err != nil {
		l.t.Fatal(err)
	}
	return p
}

// held is what the store has when only the last files are kept.
func (l *line) held() (sum int64) {
	l.t.Helper()
	if _, err := l.s.Collect(l.t.Context(), func(name string) bool { return slices.Contains(l.last, name) }); err != nil {
		l.t.Fatal(err)
	}
	for _, name := range l.last {
		if err := l.s.Check(l.t.Context(), name); err != nil {
			l.t.Error(err)
		}
	}
	for info, err := range l.blobs.List(l.t.Context(), "packs/") {
		if err != nil {
			l.t.Fatal(err)
		}
		sum += info.Size
	}
	return sum
}

const part = 100 << 10

// parts makes a file of the first n parts of the same noise, and one byte of its own.
func parts(n int, own byte) []byte { return append(blobtest.Noise(10*part, 1)[:n*part], own) }

// A pack is shared as long as the file before needs half of it, and is let go then.
func TestAPackIsSharedForHalfOfIt(t *testing.T) {
	l := newLine(t)
	l.pack(parts(10, 0))
	for n, uses := range []int{6, 4} { // of the one before ten, then six
		if p := l.pack(parts(uses, byte(n+1))); p.Stored > part/2 {
			t.Errorf("%d of 10 parts that the one before has are stored again: %+v", uses, p)
		}
	}
	if held := l.held(); held < 10*part {
		t.Errorf("a pack of %d bytes was shared, and is %d", 10*part, held)
	}
	if p := l.pack(parts(4, 3)); p.Stored < 7*part/2 {
		t.Errorf("a pack is shared of which the one before needs four tenths: %+v", p)
	}
	if held := l.held(); held > 5*part {
		t.Errorf("four parts take %d bytes", held)
	}
}

// Files that are packed together, each less than half of their pack, share it all the
// same: together they need all of it.
func TestFilesShareThePackOfAll(t *testing.T) {
	l := newLine(t)
	for n := range 3 {
		var files [][]byte
		for seed := range 5 {
			files = append(files, append(blobtest.Noise(2*part, uint64(seed)), byte(n), byte(seed)))
		}
		if p := l.pack(files...); n > 0 && p.Stored > part {
			t.Errorf("five files, of which hardly anything is new, store %d bytes", p.Stored)
		}
	}
}

// What a file has ten times over is no more of its pack than what it has once.
func TestAChunkCountsOnce(t *testing.T) {
	l := newLine(t)
	l.pack(parts(10, 0))
	again := func(own byte) []byte { return append(slices.Repeat(parts(2, 0)[:2*part], 10), own) }
	l.pack(again(1))
	l.pack(again(2))
	if held := l.held(); held > 5*part {
		t.Errorf("two parts, ten times over, take %d bytes", held)
	}
}

// Of ever so many packs those are shared of which most is needed: a file needs no more
// than 64 beside its own.
func TestOnlySoManyPacksAreShared(t *testing.T) {
	l := newLine(t)
	file := blobtest.Noise(10*part, 1)
	l.pack(file)
	for n := range 80 {
		file = append(file, blobtest.Noise(part, uint64(n+2))...)
		if p := l.pack(slices.Clone(file)); p.Stored > 5*part {
			t.Fatalf("with %d packs before, %d bytes are stored for %d new ones", n+1, p.Stored, part)
		}
	}
	objects, err := l.s.Objects(t.Context(), l.last[0])
	if err != nil || len(objects) > 1+64+1 || len(objects) < 30 {
		t.Errorf("its index and its packs are %d objects, %v", len(objects), err)
	}
}
