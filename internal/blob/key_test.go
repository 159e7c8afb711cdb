package blob_test

import (
	"path"
	"strings"
	"testing"

	"hearth/internal/blob"
	"hearth/internal/hearth"
)

func FuzzCheckKey(f *testing.F) {
	for _, s := range []string{"a", "layers/ab12.erofs", "..", "a/../b", "/a", "a/", "A", "a\x00", "", strings.Repeat("a", 201)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, key string) {
		err := blob.CheckKey(key)
		if err != nil {
			if hearth.KindOf(err) != hearth.InvalidArgument {
				t.Errorf("kind %s", hearth.KindOf(err))
			}
			return
		}
		if path.Clean(key) != key || path.IsAbs(key) || strings.HasPrefix(key, "../") || key == ".." || len(key) > blob.MaxKey {
			t.Errorf("key %q was let through", key)
		}
		for _, c := range key {
			if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789._-/", c) {
				t.Errorf("key %q was let through", key)
			}
		}
	})
}
