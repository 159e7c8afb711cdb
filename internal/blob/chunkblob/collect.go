package chunkblob

import (
	"context"
	"errors"
	"strings"

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
			delete(s.needs, name)
			continue
		}
		if s.needs[name] == nil {
			ix, err := s.index(ctx, name)
			if err != nil && hearth.KindOf(err) == hearth.FailedPrecondition {
				lost = true
				continue
			}
			if err != nil {
				return 0, err
			}
			s.needs[name] = append([]string{}, ix.packs...)
		}
		for _, p := range s.needs[name] {
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
