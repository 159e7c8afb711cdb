package chunkblob

import (
	"context"
	"errors"
	"strings"

	"hearth/internal/blob"
	"hearth/internal/hearth"
)

// Collect implements blob.Archive. A file whose index cannot be understood keeps
// all packs: nobody knows which ones it needs.
func (s *Store) Collect(ctx context.Context, keep func(sha256 string) bool) (int64, error) {
	s.packing.Lock()
	defer s.packing.Unlock()
	s.entering.Lock()
	defer s.entering.Unlock()
	var freed int64
	var gone []string
	needed, lost := map[string]bool{}, false
	for info, err := range s.blobs.List(ctx, filePrefix) {
		if err != nil {
			return freed, err
		}
		name := strings.TrimPrefix(info.Key, filePrefix)
		if !keep(name) {
			gone, freed = append(gone, info.Key), freed+info.Size
			s.forget(name)
			continue
		}
		packs, err := s.packs(ctx, name)
		if err != nil && hearth.KindOf(err) == hearth.FailedPrecondition {
			lost = true
			continue
		}
		if err != nil {
			return 0, err
		}
		for _, p := range packs {
			needed[p] = true
		}
	}
	for info, err := range s.blobs.List(ctx, packPrefix) {
		if err != nil {
			return 0, err
		}
		if !lost && !needed[strings.TrimPrefix(info.Key, packPrefix)] {
			gone, freed = append(gone, info.Key), freed+info.Size
		}
	}
	var errs []error
	for _, key := range gone { // indexes first
		errs = append(errs, s.blobs.Delete(ctx, key))
	}
	return freed, errors.Join(errs...)
}

// packs lists the packs that a file needs. The caller holds entering.
func (s *Store) packs(ctx context.Context, name string) ([]string, error) {
	packs, known := s.needs[name]
	if known {
		return packs, nil
	}
	ix, err := s.index(ctx, name)
	if err != nil {
		return nil, err
	}
	s.needs[name] = ix.packs
	return ix.packs, nil
}

// forget forgets what is known of a file whose index goes. The caller holds entering.
func (s *Store) forget(name string) {
	delete(s.needs, name)
	delete(s.objects, name)
}

// Objects implements blob.Archive. A pack that is not there, though it is needed,
// is none.
func (s *Store) Objects(ctx context.Context, sha256 string) ([]blob.Object, error) {
	if err := checkName(sha256); err != nil {
		return nil, err
	}
	s.entering.Lock()
	defer s.entering.Unlock()
	if list, known := s.objects[sha256]; known {
		return list, nil
	}
	packs, err := s.packs(ctx, sha256)
	if err != nil {
		return nil, err
	}
	index, err := s.blobs.Stat(ctx, filePrefix+sha256)
	if err != nil {
		return nil, err
	}
	list := []blob.Object{{Name: index.Key, Bytes: index.Size}}
	for _, p := range packs {
		pack, err := s.blobs.Stat(ctx, packPrefix+p)
		if err != nil && hearth.KindOf(err) == hearth.NotFound {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, blob.Object{Name: pack.Key, Bytes: pack.Size})
	}
	s.objects[sha256] = list
	return list, nil
}
