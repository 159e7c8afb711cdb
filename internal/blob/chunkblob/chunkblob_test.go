package chunkblob_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"hearth/internal/blob"
	"hearth/internal/blob/blobtest"
	"hearth/internal/blob/chunkblob"
	"hearth/internal/blob/fileblob"
	"hearth/internal/hearth"
)

func newKey(t testing.TB, b byte) *chunkblob.Key {
	k, err := chunkblob.NewKey(bytes.Repeat([]byte{b}, chunkblob.KeyBytes))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newStore(t testing.TB, blobs blob.Store, tmp string, key *chunkblob.Key) *chunkblob.Store {
	s, err := chunkblob.New(blobs, tmp, key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// plain hides that a store's objects are local files.
type plain struct{ blob.Store }

func TestConformance(t *testing.T) {
	files := func(t *testing.T) *fileblob.Store {
		s, err := fileblob.Open(blobtest.TempDir(t))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for name, open := range map[string]func(t *testing.T) blob.Archive{
		"plain":     func(t *testing.T) blob.Archive { return newStore(t, files(t), blobtest.TempDir(t), nil) },
		"encrypted": func(t *testing.T) blob.Archive { return newStore(t, files(t), blobtest.TempDir(t), newKey(t, 1)) },
		"remote": func(t *testing.T) blob.Archive {
			return newStore(t, plain{files(t)}, blobtest.TempDir(t), newKey(t, 1))
		},
	} {
		t.Run(name, func(t *testing.T) { blobtest.RunArchive(t, open) })
	}
}

// packed is a store with two files, the second like the first.
type packed struct {
	blobs    *fileblob.Store
	dir      string
	one, two string // their names
}

func newPacked(t *testing.T, key *chunkblob.Key) packed {
	t.Helper()
	p := packed{dir: blobtest.TempDir(t)}
	var err error
	if p.blobs, err = fileblob.Open(p.dir); err != nil {
		t.Fatal(err)
	}
	first := blobtest.Noise(1<<20, 1)
	second := append(slices.Clone(first), blobtest.Noise(1<<20, 2)...)
	a, b := blobtest.NewSource(t, first), blobtest.NewSource(t, second)
	s := newStore(t, p.blobs, blobtest.TempDir(t), key)
	for _, f := range []blob.Source{a, b} {
		if _, err := s.Pack(t.Context(), []blob.Source{f}, []string{a.SHA256}); err != nil {
			t.Fatal(err)
		}
	}
	p.one, p.two = a.SHA256, b.SHA256
	return p
}

func (p packed) objects(t *testing.T) (list []string) {
	t.Helper()
	for info, err := range p.blobs.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		path, err := p.blobs.Path(t.Context(), info.Key)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, path)
	}
	return list
}

// TestEveryByteCounts flips bits all over every object, cuts it short, makes it
// longer, empties it, takes it away, and puts another one in its place.
func TestEveryByteCounts(t *testing.T) {
	for name, key := range map[string]*chunkblob.Key{"plain": nil, "encrypted": newKey(t, 1)} {
		t.Run(name, func(t *testing.T) {
			p := newPacked(t, key)
			s := newStore(t, p.blobs, blobtest.TempDir(t), key)
			objects := p.objects(t)
			if len(objects) != 4 {
				t.Fatalf("two packs and two indexes are %v", objects)
			}
			for i, path := range objects {
				whole, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				other, err := os.ReadFile(objects[(i+2)%4])
				if err != nil {
					t.Fatal(err)
				}
				spoilt := map[string][]byte{"empty": {}, "short": whole[:len(whole)-1], "half": whole[:len(whole)/2], "swapped": other}
				for at := 0; at < len(whole); at += 1 + len(whole)/61 {
					b := bytes.Clone(whole)
					b[at] ^= 1 << (at % 8)
					spoilt[fmt.Sprintf("bit flipped in byte %d", at)] = b
				}
				for how, b := range spoilt {
					rewrite(t, path, b)
					wantDamage(t, s, p, fmt.Sprintf("%s, %s", filepath.Base(path)[:12], how))
				}
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
				wantDamage(t, s, p, filepath.Base(path)+" is gone")
				wantClosed(t, s, p, filepath.Base(path)+" is gone")
				rewrite(t, path, whole)
				for _, name := range []string{p.one, p.two} {
					if err := s.Check(t.Context(), name); err != nil {
						t.Fatal(err)
					}
				}
			}
		})
	}
}

func rewrite(t *testing.T, path string, b []byte) {
	t.Helper()
	_ = os.Remove(path)
	if err := os.WriteFile(path, b, 0o400); err != nil {
		t.Fatal(err)
	}
}

// wantDamage fails unless a file at least is found to be damaged, or gone, and
// is not given out.
func wantDamage(t *testing.T, s *chunkblob.Store, p packed, how string) {
	t.Helper()
	found := false
	for _, name := range []string{p.one, p.two} {
		err := s.Check(t.Context(), name)
		if err == nil {
			continue
		}
		found = true
		kind := hearth.KindOf(err)
		if kind != hearth.FailedPrecondition && kind != hearth.NotFound || !strings.Contains(err.Error(), name[:12]) {
			t.Errorf("%s: %v", how, err)
		}
		out, cerr := os.Create(filepath.Join(blobtest.TempDir(t), "out"))
		if cerr != nil {
			t.Fatal(cerr)
		}
		if err := s.Unpack(t.Context(), name, out); err == nil {
			t.Errorf("%s: unpacked what is damaged", how)
		}
		out.Close()
	}
	if !found {
		t.Errorf("%s: nobody noticed", how)
	}
}

// wantClosed fails unless a file at least cannot even be opened.
func wantClosed(t *testing.T, s *chunkblob.Store, p packed, how string) {
	t.Helper()
	opened := 0
	for _, name := range []string{p.one, p.two} {
		r, err := s.Open(t.Context(), name)
		if err == nil {
			opened++
			_ = r.Close()
		} else if k := hearth.KindOf(err); k != hearth.FailedPrecondition && k != hearth.NotFound || !strings.Contains(err.Error(), name[:12]) {
			t.Errorf("%s: %v", how, err)
		}
	}
	if opened == 2 {
		t.Errorf("%s: both can be opened", how)
	}
}

func TestKeys(t *testing.T) {
	p := newPacked(t, newKey(t, 1))
	for _, path := range p.objects(t) {
		raw, err := os.ReadFile(path)
		if err != nil || bytes.Contains(raw, blobtest.Noise(1<<20, 1)[:64]) {
			t.Fatalf("%s shows what is in it (%v)", path, err)
		}
	}
	for says, key := range map[string]*chunkblob.Key{"no key is configured": nil, "is encrypted with key": newKey(t, 2)} {
		p := newPacked(t, newKey(t, 1))
		s := newStore(t, p.blobs, blobtest.TempDir(t), key)
		err := s.Check(t.Context(), p.one)
		if hearth.KindOf(err) != hearth.FailedPrecondition || strings.Count(err.Error(), says) != 1 {
			t.Errorf("got %v, want an error that says %q, once", err, says)
		}
		// What cannot be read is not shared, and packed again under the new key.
		src := blobtest.NewSource(t, blobtest.Noise(1<<20, 1))
		if _, err := s.Pack(t.Context(), []blob.Source{src}, []string{p.two}); err != nil {
			t.Fatal(err)
		}
		if err := s.Check(t.Context(), p.one); err != nil {
			t.Error(err)
		}
	}
	mixed := newPacked(t, nil)
	s := newStore(t, mixed.blobs, blobtest.TempDir(t), newKey(t, 1))
	if err := s.Check(t.Context(), mixed.two); err != nil {
		t.Errorf("what was written without a key: %v", err)
	}
	src := blobtest.NewSource(t, append(blobtest.Noise(1<<20, 1), 1))
	got, err := s.Pack(t.Context(), []blob.Source{src}, []string{mixed.one})
	if err != nil || got.Shared != 0 {
		t.Errorf("an encrypted file shares chunks that are not: %+v, %v", got, err)
	}
}

func TestLoadKey(t *testing.T) {
	path := filepath.Join(blobtest.TempDir(t), "key")
	secret := strings.Repeat("0f", chunkblob.KeyBytes)
	for _, c := range []struct {
		content string
		mode    os.FileMode
		ok      bool
	}{
		{secret + "\n", 0o600, true}, {secret, 0o400, true}, {secret, 0o640, false}, {secret, 0o604, false},
		{secret[1:], 0o600, false}, {"", 0o600, false}, {secret[:62] + "zz", 0o600, false}, {strings.Repeat("a", 5000), 0o600, false},
	} {
		_ = os.Remove(path)
		if err := os.WriteFile(path, []byte(c.content), c.mode); err != nil {
			t.Fatal(err)
		}
		k, err := chunkblob.LoadKey(path)
		switch {
		case c.ok && (err != nil || strings.Contains(k.String(), "0f0f0f0f")):
			t.Errorf("%d characters: %v, %v", len(c.content), k, err)
		case !c.ok && (hearth.KindOf(err) != hearth.InvalidArgument || !strings.Contains(err.Error(), path)):
			t.Errorf("%d characters, mode %o: %v", len(c.content), c.mode, err)
		case !c.ok && len(c.content) > 60 && strings.Contains(err.Error(), c.content[:20]):
			t.Errorf("the error shows the key: %v", err)
		}
	}
	if _, err := chunkblob.LoadKey(path + ".gone"); hearth.KindOf(err) != hearth.InvalidArgument {
		t.Errorf("no file: %v", err)
	}
}

// broken is a store that fails at its n-th call, with err.
type broken struct {
	blob.Store
	left int
	err  error
}

func (b *broken) fail() error {
	if b.left--; b.left == 0 {
		return b.err
	}
	return nil
}

func (b *broken) Put(ctx context.Context, key string, r io.Reader, size int64) error {
	if err := b.fail(); err != nil {
		return err
	}
	return b.Store.Put(ctx, key, r, size)
}

func (b *broken) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	if err := b.fail(); err != nil {
		return nil, err
	}
	return b.Store.Open(ctx, key, off, n)
}

func (b *broken) Delete(ctx context.Context, key string) error {
	if err := b.fail(); err != nil {
		return err
	}
	return b.Store.Delete(ctx, key)
}

func (b *broken) Stat(ctx context.Context, key string) (blob.Info, error) {
	if err := b.fail(); err != nil {
		return blob.Info{}, err
	}
	return b.Store.Stat(ctx, key)
}

// twice is a store in which the first two packs are put at once, and that lets
// nobody delete an index.
type twice struct {
	blob.Store
	t     *testing.T
	packs sync.WaitGroup
}

func (w *twice) Put(ctx context.Context, key string, r io.Reader, size int64) error {
	if strings.HasPrefix(key, "packs/") {
		w.packs.Done()
		w.packs.Wait()
	}
	return w.Store.Put(ctx, key, r, size)
}

func (w *twice) Delete(ctx context.Context, key string) error {
	if _, err := w.Store.Stat(ctx, key); err == nil && strings.HasPrefix(key, "files/") {
		w.t.Errorf("the index %.20s is taken away", key)
	}
	return w.Store.Delete(ctx, key)
}

// TestPackedTwiceAtOnce: two pack one file, and neither takes away what the other
// has told its caller of.
func TestPackedTwiceAtOnce(t *testing.T) {
	files, err := fileblob.Open(blobtest.TempDir(t))
	if err != nil {
		t.Fatal(err)
	}
	w := &twice{Store: files, t: t}
	w.packs.Add(2)
	s := newStore(t, w, blobtest.TempDir(t), nil)
	same := blobtest.NewSource(t, blobtest.Noise(100_000, 1))
	var all sync.WaitGroup
	for i := range 2 {
		own := blobtest.NewSource(t, blobtest.Noise(50_000, uint64(i+2)))
		all.Go(func() {
			_, err := s.Pack(t.Context(), []blob.Source{same, own}, nil)
			if err := errors.Join(err, s.Check(t.Context(), same.SHA256), s.Check(t.Context(), own.SHA256)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// TestStoreFailsAtEveryCall: whatever call of the store fails, what was there
// stays whole, what was not is whole or not there, and a second try succeeds.
func TestStoreFailsAtEveryCall(t *testing.T) {
	away := hearth.Errorf(hearth.Unavailable, "503")
	for n := 1; ; n++ {
		p := newPacked(t, nil)
		b := &broken{Store: p.blobs, left: n, err: away}
		s := newStore(t, b, blobtest.TempDir(t), nil)
		src := blobtest.NewSource(t, append(blobtest.Noise(1<<20, 1), blobtest.Noise(1<<19, 3)...))
		_, err := s.Pack(t.Context(), []blob.Source{src}, []string{p.one})
		_, cerr := s.Collect(t.Context(), func(string) bool { return true })
		uerr := s.Check(t.Context(), src.SHA256)
		met := b.left <= 0
		for _, e := range []error{err, cerr} {
			if e != nil && !errors.Is(e, away) {
				t.Errorf("call %d: %v", n, e)
			}
		}
		if uerr != nil && err == nil && !errors.Is(uerr, away) {
			t.Errorf("call %d: %v", n, uerr)
		}
		b.left = -1
		for _, name := range []string{p.one, p.two} {
			if err := s.Check(t.Context(), name); err != nil {
				t.Fatalf("call %d: %v", n, err)
			}
		}
		if _, err := s.Pack(t.Context(), []blob.Source{src}, []string{p.one}); err != nil {
			t.Fatalf("call %d: the second try: %v", n, err)
		}
		if err := s.Check(t.Context(), src.SHA256); err != nil {
			t.Fatalf("call %d: %v", n, err)
		}
		if !met {
			if n < 8 {
				t.Fatalf("the store was called %d times", n)
			}
			return
		}
	}
}

// TestDiskFull packs and unpacks on a file system that is too small for it.
func TestDiskFull(t *testing.T) {
	dir := blobtest.TempDir(t)
	if err := syscall.Mount("hearth-test", dir, "tmpfs", 0, "size=3m"); err != nil {
		t.Skipf("needs root to mount a small file system: %v", err)
	}
	defer func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	blobs, err := fileblob.Open(filepath.Join(dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	tmp := filepath.Join(dir, "tmp")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	s := newStore(t, blobs, tmp, nil)
	small, big := blobtest.NewSource(t, blobtest.Noise(1<<20, 1)), blobtest.NewSource(t, blobtest.Noise(4<<20, 2))
	if _, err := s.Pack(t.Context(), []blob.Source{small}, nil); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, err := s.Pack(t.Context(), []blob.Source{big}, nil)
		if hearth.KindOf(err) != hearth.ResourceExhausted {
			t.Fatalf("on a full disk: %v", err)
		}
		if left, _ := os.ReadDir(tmp); len(left) != 0 {
			t.Fatalf("left: %v", left)
		}
	}
	if err := s.Check(t.Context(), small.SHA256); err != nil {
		t.Fatal(err)
	}
	fill := filepath.Join(dir, "fill")
	if err := os.WriteFile(fill, blobtest.Noise(1<<20+1<<19, 3), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := s.Unpack(t.Context(), small.SHA256, out); hearth.KindOf(err) != hearth.ResourceExhausted {
		t.Fatalf("unpacked on a full disk: %v", err)
	}
}
