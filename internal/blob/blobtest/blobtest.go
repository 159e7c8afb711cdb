// Package blobtest is the conformance suite of the blob contract. A new
// implementation's test calls Run, and RunLocal if its objects are local files.
package blobtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"hearth/internal/blob"
	"hearth/internal/hearth"
)

// Run checks a store against the contract. open returns an empty store.
func Run(t *testing.T, open func(t *testing.T) blob.Store) {
	for name, test := range map[string]func(*testing.T, blob.Store){
		"round trip":      roundTrip,
		"ranges":          ranges,
		"missing":         missing,
		"keys":            keys,
		"sizes":           sizes,
		"broken reader":   brokenReader,
		"cancelled":       cancelled,
		"put twice":       putTwice,
		"concurrent puts": concurrentPuts,
		"list":            list,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

// RunLocal checks a store of local files against the contract.
func RunLocal(t *testing.T, open func(t *testing.T) blob.Local) {
	Run(t, func(t *testing.T) blob.Store { return open(t) })
	t.Run("adopt", func(t *testing.T) { adopt(t, open(t)) })
	t.Run("adopt what is no file", func(t *testing.T) { adoptOther(t, open(t)) })
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func fails(t *testing.T, err error, kind hearth.Kind) {
	t.Helper()
	if err == nil || hearth.KindOf(err) != kind {
		t.Errorf("error %v, want one of kind %s", err, kind)
	}
}

func put(t *testing.T, s blob.Store, key, content string) {
	t.Helper()
	ok(t, s.Put(context.Background(), key, strings.NewReader(content), int64(len(content))))
}

func content(t *testing.T, s blob.Store, key string, off, n int64) string {
	t.Helper()
	r, err := s.Open(context.Background(), key, off, n)
	ok(t, err)
	defer r.Close()
	b, err := io.ReadAll(r)
	ok(t, err)
	return string(b)
}

func all(t *testing.T, s blob.Store, prefix string) (found []string) {
	t.Helper()
	for info, err := range s.List(context.Background(), prefix) {
		ok(t, err)
		found = append(found, info.Key)
	}
	return found
}

func roundTrip(t *testing.T, s blob.Store) {
	ctx := context.Background()
	big := strings.Repeat("0123456789abcdef", 1<<17) // 2 MiB
	for key, want := range map[string]string{"a": "one", "empty": "", "layers/sha.1/x-y_z": big} {
		put(t, s, key, want)
		if got := content(t, s, key, 0, -1); got != want {
			t.Errorf("%s: %d bytes came back, %d were put", key, len(got), len(want))
		}
		info, err := s.Stat(ctx, key)
		ok(t, err)
		if info != (blob.Info{Key: key, Size: int64(len(want))}) {
			t.Errorf("Stat: %+v", info)
		}
		ok(t, s.Delete(ctx, key))
		_, err = s.Stat(ctx, key)
		fails(t, err, hearth.NotFound)
	}
}

func ranges(t *testing.T, s blob.Store) {
	put(t, s, "k", "0123456789")
	for _, tc := range []struct {
		off, n int64
		want   string
	}{{0, 10, "0123456789"}, {3, 4, "3456"}, {9, 1, "9"}, {4, 0, ""}, {10, 0, ""}, {7, -1, "789"}, {10, -1, ""}} {
		if got := content(t, s, "k", tc.off, tc.n); got != tc.want {
			t.Errorf("%d from %d: %q, want %q", tc.n, tc.off, got, tc.want)
		}
	}
	for _, bad := range [][2]int64{{-1, 2}, {11, -1}, {11, 0}, {0, 11}, {9, 2}, {1, 1<<63 - 1}} {
		r, err := s.Open(context.Background(), "k", bad[0], bad[1])
		fails(t, err, hearth.InvalidArgument)
		if err == nil {
			r.Close()
		}
	}
}

func missing(t *testing.T, s blob.Store) {
	ctx := context.Background()
	_, err := s.Open(ctx, "k", 0, -1)
	fails(t, err, hearth.NotFound)
	_, err = s.Stat(ctx, "k")
	fails(t, err, hearth.NotFound)
	ok(t, s.Delete(ctx, "k"))
}

func keys(t *testing.T, s blob.Store) {
	ctx := context.Background()
	for _, key := range []string{"", "/", "a/", "/a", "a//b", ".", "..", "a/..", "../a", "a/./b", "A", "a b", "a\x00", "é",
		"a+b", "a\\b", "a%2fb", strings.Repeat("k", 201)} {
		fails(t, s.Put(ctx, key, strings.NewReader("x"), 1), hearth.InvalidArgument)
		_, err := s.Open(ctx, key, 0, -1)
		fails(t, err, hearth.InvalidArgument)
		_, err = s.Stat(ctx, key)
		fails(t, err, hearth.InvalidArgument)
		fails(t, s.Delete(ctx, key), hearth.InvalidArgument)
	}
	// A key may be the beginning of another, and segments may begin with dots.
	for _, key := range []string{"a", "a/b", "a/b/c", "a.b", "...", ".a", "-", strings.Repeat("k", 200)} {
		put(t, s, key, key)
	}
	if got := content(t, s, "a/b", 0, -1); got != "a/b" {
		t.Errorf("a/b holds %q", got)
	}
}

func sizes(t *testing.T, s blob.Store) {
	ctx := context.Background()
	fails(t, s.Put(ctx, "k", strings.NewReader("abc"), 4), hearth.InvalidArgument)
	fails(t, s.Put(ctx, "k", strings.NewReader("abc"), 2), hearth.InvalidArgument)
	fails(t, s.Put(ctx, "k", strings.NewReader("abc"), 0), hearth.InvalidArgument)
	fails(t, s.Put(ctx, "k", strings.NewReader("abc"), -1), hearth.InvalidArgument)
	if got := all(t, s, ""); len(got) != 0 {
		t.Errorf("objects after refused puts: %q", got)
	}
	put(t, s, "k", "abc")
}

func brokenReader(t *testing.T, s blob.Store) {
	boom := errors.New("boom")
	err := s.Put(context.Background(), "k", io.MultiReader(strings.NewReader("ab"), iotest.ErrReader(boom)), 4)
	if !errors.Is(err, boom) {
		t.Errorf("error %v, want the reader's", err)
	}
	if got := all(t, s, ""); len(got) != 0 {
		t.Errorf("objects after a broken put: %q", got)
	}
}

func cancelled(t *testing.T, s blob.Store) {
	ctx, cancel := context.WithCancel(context.Background())
	r := io.MultiReader(strings.NewReader("ab"), readerFunc(func([]byte) (int, error) { cancel(); return 1, nil }), strings.NewReader("c"))
	if err := s.Put(ctx, "k", r, 4); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want the context's", err)
	}
	if got := all(t, s, ""); len(got) != 0 {
		t.Errorf("objects after a cancelled put: %q", got)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func putTwice(t *testing.T, s blob.Store) {
	put(t, s, "k", "first")
	ok(t, s.Put(context.Background(), "k", strings.NewReader("second"), 6))
	if got := content(t, s, "k", 0, -1); got != "first" {
		t.Errorf("an object changed to %q", got)
	}
}

// concurrentPuts writes one key from many goroutines while others read: whoever
// sees it sees the whole of it.
func concurrentPuts(t *testing.T, s blob.Store) {
	want := bytes.Repeat([]byte("x"), 1<<20)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := s.Put(context.Background(), "k", bytes.NewReader(want), int64(len(want))); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			for {
				r, err := s.Open(context.Background(), "k", 0, -1)
				if err != nil {
					continue // not there yet
				}
				got, err := io.ReadAll(r)
				r.Close()
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes were read (%v), want %d", len(got), err, len(want))
				}
				return
			}
		})
	}
	wg.Wait()
}

func list(t *testing.T, s blob.Store) {
	for _, key := range []string{"b", "a/1", "a", "a/2", "ab", "a-b", "c/d/e"} {
		put(t, s, key, key)
	}
	for prefix, want := range map[string][]string{
		"":    {"a", "a-b", "a/1", "a/2", "ab", "b", "c/d/e"},
		"a/":  {"a/1", "a/2"},
		"a":   {"a", "a-b", "a/1", "a/2", "ab"},
		"c/d": {"c/d/e"},
		"zz":  nil,
		"..":  nil,
	} {
		if got := all(t, s, prefix); !slices.Equal(got, want) {
			t.Errorf("prefix %q: %q, want %q", prefix, got, want)
		}
	}
	n := 0
	for range s.List(context.Background(), "") {
		if n++; n == 2 {
			break
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, err := range s.List(ctx, "") {
		if err == nil {
			t.Error("List goes on after the end of its context")
		}
	}
}

func adopt(t *testing.T, s blob.Local) {
	ctx := context.Background()
	from := filepath.Join(t.TempDir(), "made elsewhere")
	ok(t, os.WriteFile(from, []byte("content"), 0o644))
	ok(t, s.Adopt(ctx, "k/l", from))
	if got := content(t, s, "k/l", 3, -1); got != "tent" {
		t.Errorf("content %q", got)
	}
	ok(t, os.Remove(from))
	path, err := s.Path(ctx, "k/l")
	ok(t, err)
	got, err := os.ReadFile(path)
	ok(t, err)
	if string(got) != "content" {
		t.Errorf("the object's file holds %q", got)
	}
	info, err := os.Stat(path)
	ok(t, err)
	if info.Mode().Perm()&0o222 != 0 {
		t.Errorf("the object's file has mode %v and can be written", info.Mode())
	}
	ok(t, os.WriteFile(from, []byte("other"), 0o644))
	ok(t, s.Adopt(ctx, "k/l", from))
	if got := content(t, s, "k/l", 0, -1); got != "content" {
		t.Errorf("an object changed to %q", got)
	}
	_, err = s.Path(ctx, "gone")
	fails(t, err, hearth.NotFound)
	_, err = s.Path(ctx, "../x")
	fails(t, err, hearth.InvalidArgument)
}

func adoptOther(t *testing.T, s blob.Local) {
	ctx := context.Background()
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	ok(t, os.Symlink("/etc/hostname", link))
	for _, path := range []string{dir, link, filepath.Join(dir, "missing"), "/dev/null"} {
		fails(t, s.Adopt(ctx, "k", path), hearth.InvalidArgument)
	}
	if got := all(t, s, ""); len(got) != 0 {
		t.Errorf("objects: %q", got)
	}
}
