package shelf

import "context"

// collect makes the archive forget what no snapshot needs. What is put on the
// shelf from here on is packed later. Only for garbage does it wait for those that
// pack, and let new ones wait.
func (s *Shelf) collect(ctx context.Context) error {
	if !s.littered() {
		return nil
	}
	done, err := s.turnAtArchive(ctx, cap(s.archiving))
	if err != nil {
		return err
	}
	defer done()
	keep := s.wanted()
	if keep == nil {
		return nil
	}
	freed, err := s.packing.Archive.Collect(ctx, func(sha256 string) bool { return keep[sha256] })
	if err != nil {
		s.mu.Lock()
		s.graph.garbage = true
		s.mu.Unlock()
		return err
	}
	if freed > 0 {
		s.packing.Log.Info("packed files of removed snapshots removed", "bytes", freed)
	}
	return nil
}

// littered reports whether the archive has files that nobody needs, perhaps.
func (s *Shelf) littered() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.graph != nil && s.graph.garbage
}

// wanted is which packed files snapshots need; nil if there is no garbage.
func (s *Shelf) wanted() map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.graph == nil || !s.graph.garbage {
		return nil
	}
	s.graph.garbage = false
	all := map[string]bool{}
	for _, n := range s.graph.nodes {
		for _, f := range n.files {
			all[f.SHA256] = true
		}
	}
	return all
}
