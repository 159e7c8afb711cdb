// Package apart keeps some of a store's objects in another place: those that must
// not be on the disk that the others are on.
package apart

import (
	"context"
	"errors"
	"io"
	"iter"
	"maps"
	"slices"

	"hearth/internal/blob"
	"hearth/internal/hearth"
)

// Store is two stores as one. What is written goes where it belongs. What was
// written to the wrong one, before it was known that it belongs elsewhere, is
// found and deleted there.
type Store struct {
	blob.Local // of what does not belong apart
	apart      blob.Local
	belongs    func(key string) bool
}

var _ blob.Local = (*Store)(nil)

// New returns a Store of main that keeps in apart the objects whose key belongs
// there.
func New(main, apart blob.Local, belongs func(key string) bool) *Store {
	return &Store{Local: main, apart: apart, belongs: belongs}
}

// home is the store that an object is in, or is to be put into if it is in none.
func (s *Store) home(ctx context.Context, key string) (blob.Local, error) {
	if !s.belongs(key) {
		return s.Local, nil
	}
	_, err := s.apart.Stat(ctx, key)
	if hearth.KindOf(err) != hearth.NotFound {
		return s.apart, err
	}
	if _, err := s.Local.Stat(ctx, key); hearth.KindOf(err) != hearth.NotFound {
		return s.Local, err
	}
	return s.apart, nil
}

// Put implements blob.Store.
func (s *Store) Put(ctx context.Context, key string, r io.Reader, size int64) error {
	home, err := s.home(ctx, key)
	if err != nil {
		return err
	}
	return home.Put(ctx, key, r, size)
}

// Adopt implements blob.Local.
func (s *Store) Adopt(ctx context.Context, key, path string) error {
	home, err := s.home(ctx, key)
	if err != nil {
		return err
	}
	return home.Adopt(ctx, key, path)
}

// Open implements blob.Store.
func (s *Store) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	home, err := s.home(ctx, key)
	if err != nil {
		return nil, err
	}
	return home.Open(ctx, key, off, n)
}

// Stat implements blob.Store.
func (s *Store) Stat(ctx context.Context, key string) (blob.Info, error) {
	home, err := s.home(ctx, key)
	if err != nil {
		return blob.Info{}, err
	}
	return home.Stat(ctx, key)
}

// Path implements blob.Local.
func (s *Store) Path(ctx context.Context, key string) (string, error) {
	home, err := s.home(ctx, key)
	if err != nil {
		return "", err
	}
	return home.Path(ctx, key)
}

// Delete implements blob.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	err := s.Local.Delete(ctx, key)
	if s.belongs(key) {
		err = errors.Join(err, s.apart.Delete(ctx, key))
	}
	return err
}

// List implements blob.Store.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[blob.Info, error] {
	return func(yield func(blob.Info, error) bool) {
		all := map[string]blob.Info{}
		for _, store := range []blob.Local{s.Local, s.apart} {
			for info, err := range store.List(ctx, prefix) {
				if err != nil {
					yield(blob.Info{}, err)
					return
				}
				if store == s.Local || s.belongs(info.Key) {
					all[info.Key] = info
				}
			}
		}
		for _, key := range slices.Sorted(maps.Keys(all)) {
			if !yield(all[key], nil) {
				return
			}
		}
	}
}
