package archive_test

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"testing"

	"hearth/internal/control/archive"
	"hearth/internal/hearth"
	"hearth/internal/store"
)

// rows is a store that has snapshots of one line, newest first.
type rows struct {
	store.Snapshots
	snaps []*hearth.Snapshot
}

func (r rows) FindSnapshots(_ context.Context, _ store.SnapshotFilter, p store.Page) ([]*hearth.Snapshot, string, error) {
	at := 0
	if p.Cursor != "" {
		var err error
		if at, err = strconv.Atoi(p.Cursor); err != nil {
			return nil, "", err
		}
	}
	if end := at + p.Limit; end < len(r.snaps) {
		return r.snaps[at:end], strconv.Itoa(end), nil
	}
	return r.snaps[at:], "", nil
}

func (rows) Build(context.Context, hearth.BuildID) (*hearth.Build, error) {
	return nil, hearth.Errorf(hearth.NotFound, "no build")
}

func (rows) DeleteTemplate(context.Context, hearth.TemplateID) error { return nil }

// shelf notes what is weighed.
type shelf struct {
	archive.Shelf
	weighed []string
}

func (s *shelf) Weigh(_ context.Context, id hearth.SnapshotID, over ...hearth.SnapshotID) (whole, added int64, err error) {
	s.weighed = append(s.weighed, fmt.Sprintf("%s over %s", id, over[0]))
	return 2, 1, nil
}

// TestOnlyTheNewestAreWeighed: of a big tree the newest 1000 that can be started from
// are weighed, the oldest of them over one that is not weighed itself.
func TestOnlyTheNewestAreWeighed(t *testing.T) {
	const gone = 5 // of the newest that is gone; every tenth is
	for _, usable := range []int{0, 1, 999, 1000, 1001, 2345} {
		t.Run(fmt.Sprint(usable), func(t *testing.T) {
			var snaps []*hearth.Snapshot // newest first
			var want []string            // as well
			name := func(n int) hearth.SnapshotID { return hearth.SnapshotID(fmt.Sprint("s", n)) }
			for n, left := 0, usable; left > 0; n++ {
				s := &hearth.Snapshot{ID: name(n), After: name(n + 1), Sandbox: "b", Status: hearth.SnapshotReady}
				if n%10 == gone {
					s.Status = hearth.SnapshotGone
				} else if left--; len(want) < 1000 {
					before := n + 1
					if before%10 == gone {
						before++
					}
					over := name(before)
					if left == 0 {
						over = "" // the first of all
					}
					want = append(want, fmt.Sprintf("%s over %s", s.ID, over))
				}
				snaps = append(snaps, s)
			}
			sh := &shelf{}
			a := archive.New(archive.Deps{Store: rows{snaps: snaps}, Shelf: sh, Log: slog.New(slog.DiscardHandler)})
			tree, err := a.Tree(t.Context(), &hearth.Sandbox{ID: "b", Head: "s0"}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(tree.Snapshots) != len(snaps) || len(tree.Weights) != len(want) || len(sh.weighed) != len(want) {
				t.Fatalf("%d snapshots, %d weights, %d weighed; want %d, and of %d", len(tree.Snapshots), len(tree.Weights), len(sh.weighed), len(snaps), len(want))
			}
			for i, got := range sh.weighed { // oldest first
				if want := want[len(want)-1-i]; got != want {
					t.Errorf("weighed %s, want %s", got, want)
				}
			}
			for _, s := range snaps[:min(len(snaps), gone)] {
				if tree.Weights[s.ID] != (archive.Weight{Whole: 2, Added: 1}) {
					t.Errorf("%s, of the newest, has no weight", s.ID)
				}
			}
		})
	}
}
