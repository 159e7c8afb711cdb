package apart_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/blob"
	"hearth/internal/blob/apart"
	"hearth/internal/blob/blobtest"
	"hearth/internal/blob/fileblob"
	"hearth/internal/hearth"
)

func open(t *testing.T, dir string) *fileblob.Store {
	t.Helper()
	s, err := fileblob.Open(filepath.Join(dir, t.Name()))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestConformance: whether all, none, or some of the keys belong apart, and apart
// is on another file system, it is a store like any other.
func TestConformance(t *testing.T) {
	for name, belongs := range map[string]func(string) bool{
		"none": func(string) bool { return false },
		"all":  func(string) bool { return true },
		"some": func(key string) bool { return len(key)%2 == 0 },
	} {
		t.Run(name, func(t *testing.T) {
			blobtest.RunLocal(t, func(t *testing.T) blob.Local {
				return apart.New(open(t, t.TempDir()), open(t, blobtest.TempDir(t)), belongs)
			})
		})
	}
}

func put(t *testing.T, s blob.Store, key string) {
	t.Helper()
	if err := s.Put(t.Context(), key, strings.NewReader(key), int64(len(key))); err != nil {
		t.Fatal(err)
	}
}

func keys(t *testing.T, s blob.Store) (all string) {
	t.Helper()
	for info, err := range s.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		all += info.Key + " "
	}
	return all
}

// TestPlaces: everything is written where it belongs, and what was written before
// that was known stays in use until it is deleted.
func TestPlaces(t *testing.T) {
	ctx := context.Background()
	main, other := open(t, t.TempDir()), open(t, blobtest.TempDir(t))
	put(t, main, "secret/old")
	put(t, other, "stray") // of something else; none of ours
	s := apart.New(main, other, func(key string) bool { return strings.HasPrefix(key, "secret/") })
	put(t, s, "secret/new")
	put(t, s, "plain")
	put(t, s, "secret/old") // is there
	for store, want := range map[blob.Store]string{main: "plain secret/old ", other: "secret/new stray ", s: "plain secret/new secret/old "} {
		if got := keys(t, store); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if path, err := s.Path(ctx, "secret/old"); err != nil || path == "" {
		t.Error(path, err)
	}
	for _, key := range []string{"secret/old", "secret/new", "stray"} {
		if err := s.Delete(ctx, key); err != nil {
			t.Error(err)
		}
	}
	put(t, s, "secret/old")
	if got := keys(t, main) + keys(t, other); got != "plain secret/old stray " {
		t.Error(got)
	}
	if _, err := s.Stat(ctx, "secret/new"); hearth.KindOf(err) != hearth.NotFound {
		t.Error(err)
	}
}
