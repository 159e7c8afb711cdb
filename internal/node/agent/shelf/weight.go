package shelf

import (
	"context"
	"os"
	"syscall"

	"hearth/internal/driver"
	"hearth/internal/hearth"
)

// stored is how many of a file's bytes are not holes; 0 when that cannot be told.
func stored(file string, size int64) int64 {
	info, err := os.Stat(file)
	if err != nil {
		return 0
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return min(size, st.Blocks*512)
}

// Beneath lists, for snapshots that are kept, what they refer to and what is there
// for its heirs alone: removed snapshots, whose files stay until the last that
// refers to them goes. Each is listed once, with its ID, its Base and its Files.
func (s *Shelf) Beneath(ctx context.Context, ids []hearth.SnapshotID) ([]hearth.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, err := s.load(ctx)
	if err != nil {
		return nil, err
	}
	var list []hearth.Snapshot
	seen := map[hearth.SnapshotID]bool{}
	for _, id := range ids {
		at := g.nodes[id].base
		for range driver.MaxLayers {
			n, there := g.nodes[at]
			if !there || seen[at] {
				break
			}
			seen[at] = true
			if n.removed {
				list = append(list, hearth.Snapshot{ID: at, Base: n.base, Files: n.files})
			}
			at = n.base
		}
	}
	return list, nil
}
