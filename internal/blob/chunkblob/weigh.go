package chunkblob

import (
	"context"

	"hearth/internal/hearth"
)

// spot is where a chunk begins.
type spot struct {
	pack int // in scale.packs
	at   int64
}

// scale notes which chunks were put on it.
type scale struct {
	packs map[string]int
	used  []int64 // stored bytes of the chunks of each pack
	spots map[spot]struct{}
}

func newScale() *scale { return &scale{packs: map[string]int{}, spots: map[spot]struct{}{}} }

// put returns the stored bytes of those chunks of a file that are not on it yet.
func (c *scale) put(ctx context.Context, ix *index) (sum int64, err error) {
	numbers := make([]int, len(ix.packs))
	for i, name := range ix.packs {
		n, known := c.packs[name]
		if !known {
			n = len(c.packs)
			c.packs[name] = n
			c.used = append(c.used, 0)
		}
		numbers[i] = n
	}
	for i, e := range ix.extents {
		if i%(1<<16) == 0 && ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		if e.hole() {
			continue
		}
		at := spot{numbers[e.pack], e.at}
		if _, there := c.spots[at]; !there {
			c.spots[at] = struct{}{}
			c.used[at.pack] += int64(e.stored)
			sum += int64(e.stored)
		}
	}
	return sum, nil
}

// Weigh implements blob.Archive.
func (s *Store) Weigh(ctx context.Context, files, beside []string) (sum int64, err error) {
	c := newScale()
	for _, name := range beside {
		ix, err := s.index(ctx, name)
		if err != nil && hearth.KindOf(err) == hearth.NotFound {
			continue
		}
		if err != nil {
			return 0, err
		}
		if _, err := c.put(ctx, ix); err != nil {
			return 0, err
		}
	}
	for _, name := range files {
		ix, err := s.index(ctx, name)
		if err != nil {
			return 0, err
		}
		n, err := c.put(ctx, ix)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}
