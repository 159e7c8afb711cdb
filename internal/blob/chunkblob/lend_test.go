package chunkblob_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"hearth/internal/blob"
	"hearth/internal/blob/blobtest"
	"hearth/internal/blob/chunkblob"
	"hearth/internal/blob/fileblob"
	"hearth/internal/hearth"
)

func lend(t *testing.T, s *chunkblob.Store, name string) *chunkblob.Borrowed {
	t.Helper()
	loan, err := s.Lend(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := chunkblob.Borrow(loan.Layout, loan.Files)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// content is what newPacked has packed.
func (p packed) content(name string) []byte {
	first := blobtest.Noise(1<<20, 1)
	if name == p.one {
		return first
	}
	return append(first, blobtest.Noise(1<<20, 2)...)
}

// TestBorrowed reads what was lent from several goroutines, after the archive has
// forgotten it, with an archive's key and without.
func TestBorrowed(t *testing.T) {
	for name, key := range map[string]*chunkblob.Key{"plain": nil, "encrypted": newKey(t, 1)} {
		t.Run(name, func(t *testing.T) {
			p := newPacked(t, key)
			s := newStore(t, p.blobs, blobtest.TempDir(t), key)
			b, want := lend(t, s, p.two), p.content(p.two)
			if _, err := s.Collect(t.Context(), func(string) bool { return false }); err != nil {
				t.Fatal(err)
			}
			if b.Size() != int64(len(want)) {
				t.Fatalf("%d bytes, want %d", b.Size(), len(want))
			}
			var all sync.WaitGroup
			for i := range 4 {
				r := rand.New(rand.NewPCG(1, uint64(i)))
				all.Go(func() {
					for range 100 {
						at := r.Int64N(b.Size())
						got := make([]byte, min(r.Int64N(300_000), b.Size()-at))
						if _, err := b.ReadAt(got, at); err != nil || !bytes.Equal(got, want[at:at+int64(len(got))]) {
							t.Errorf("%d bytes at %d: %v", len(got), at, err)
							return
						}
					}
				})
			}
			all.Wait()
			if n, err := b.ReadAt(make([]byte, 10), b.Size()-4); n != 4 || err != io.EOF {
				t.Errorf("beyond the end: %d, %v", n, err)
			}
			if _, err := b.ReadAt(make([]byte, 1), -1); hearth.KindOf(err) != hearth.InvalidArgument {
				t.Errorf("before the beginning: %v", err)
			}
		})
	}
}

// TestBorrowedHoles: what was a hole reads as zeros.
func TestBorrowedHoles(t *testing.T) {
	const page = 4096
	raw := make([]byte, 300*page)
	copy(raw[10*page:], blobtest.Noise(50*page, 1))
	copy(raw[299*page:], blobtest.Noise(page, 2))
	dir := blobtest.TempDir(t)
	blobs, err := fileblob.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(t, blobs, blobtest.TempDir(t), nil)
	src := blobtest.NewSource(t, raw)
	if _, err := s.Pack(t.Context(), []blob.Source{src}, nil); err != nil {
		t.Fatal(err)
	}
	b := lend(t, s, src.SHA256)
	got := make([]byte, len(raw))
	if _, err := b.ReadAt(got, 0); err != nil || !bytes.Equal(got, raw) {
		t.Errorf("read with %v, or otherwise", err)
	}
}

// TestDamageIsNotLent: whatever happens to a pack under a borrower, it gets what
// was written or an error that says where.
func TestDamageIsNotLent(t *testing.T) {
	p := newPacked(t, nil)
	s := newStore(t, p.blobs, blobtest.TempDir(t), nil)
	loan, err := s.Lend(t.Context(), p.one)
	if err != nil {
		t.Fatal(err)
	}
	path := loan.Files[0].Name()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := loan.Close(); err != nil {
		t.Fatal(err)
	}
	want := p.content(p.one)
	spoilt := map[string][]byte{"empty": {}, "half": whole[:len(whole)/2]}
	for at := 100; at < len(whole); at += 1 + len(whole)/31 {
		b := bytes.Clone(whole)
		b[at] ^= 1
		spoilt[fmt.Sprintf("bit flipped in byte %d", at)] = b
	}
	for how, raw := range spoilt {
		rewrite(t, path, whole)
		b := lend(t, s, p.one)
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, raw, 0o600); err != nil { // the same inode
			t.Fatal(err)
		}
		failed := 0
		for at := 0; at < len(want); at += 4096 {
			got := make([]byte, 4096)
			switch _, err := b.ReadAt(got, int64(at)); {
			case err == nil && !bytes.Equal(got, want[at:at+4096]):
				t.Errorf("%s: the page at %d is another", how, at)
			case err != nil && hearth.KindOf(err) != hearth.FailedPrecondition:
				t.Errorf("%s: %v", how, err)
			case err != nil:
				failed++
			}
		}
		if failed == 0 {
			t.Errorf("%s: nothing was noticed", how)
		}
	}
}

// TestNotLent: what cannot be lent says why.
func TestNotLent(t *testing.T) {
	p := newPacked(t, newKey(t, 1))
	for name, test := range map[string]struct {
		store *chunkblob.Store
		kind  hearth.Kind
	}{
		"elsewhere":   {newStore(t, plain{p.blobs}, blobtest.TempDir(t), newKey(t, 1)), hearth.Unimplemented},
		"another key": {newStore(t, p.blobs, blobtest.TempDir(t), newKey(t, 2)), hearth.FailedPrecondition},
		"no key":      {newStore(t, p.blobs, blobtest.TempDir(t), nil), hearth.FailedPrecondition},
	} {
		if _, err := test.store.Lend(t.Context(), p.one); err == nil || hearth.KindOf(err) != test.kind {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := newStore(t, p.blobs, blobtest.TempDir(t), newKey(t, 1)).Lend(t.Context(), p.one[:63]+"0"); err == nil || hearth.KindOf(err) != hearth.NotFound {
		t.Errorf("what is not there: %v", err)
	}
}

// FuzzBorrow: whatever the layout, no panic, and nothing but an error for pages
// that are not what it says.
func FuzzBorrow(f *testing.F) {
	f.Add([]byte("HRTHLN01"), byte(0))
	dir := f.TempDir()
	blobs, err := fileblob.Open(dir)
	if err != nil {
		f.Fatal(err)
	}
	s := newStore(f, blobs, f.TempDir(), nil)
	src := blobtest.NewSource(f, blobtest.Noise(50_000, 1))
	if _, err := s.Pack(f.Context(), []blob.Source{src}, nil); err != nil {
		f.Fatal(err)
	}
	loan, err := s.Lend(f.Context(), src.SHA256)
	if err != nil {
		f.Fatal(err)
	}
	defer loan.Close()
	f.Add(loan.Layout, byte(1))
	f.Fuzz(func(t *testing.T, layout []byte, packs byte) {
		var files []*os.File
		for range packs % 3 {
			files = append(files, loan.Files[0])
		}
		b, err := chunkblob.Borrow(layout, files)
		if err != nil {
			return
		}
		raw := make([]byte, min(b.Size(), 1<<20))
		if _, err := b.ReadAt(raw, 0); err != nil && !errors.Is(err, io.EOF) && hearth.KindOf(err) == hearth.Internal {
			t.Errorf("%v", err)
		}
	})
}
