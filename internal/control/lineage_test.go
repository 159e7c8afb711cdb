package control_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"hearth/internal/control"
	"hearth/internal/control/archive"
	"hearth/internal/hearth"
)

// TestTreeWeighs: a snapshot is compared with the nearest one before it that can be
// started from, and with its template; of one whose files cannot be weighed, and of
// one that is gone, nothing is said.
func TestTreeWeighs(t *testing.T) {
	inHistory(t, 0, func(t *testing.T, w *world, p *process, id hearth.SandboxID) {
		var ids []hearth.SnapshotID
		for range 4 {
			snap, err := p.Snapshot(t.Context(), "t1", id, control.SnapshotRequest{})
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, snap.ID)
			time.Sleep(time.Second) // of the test's clock: the tree goes by age
		}
		if err := p.DeleteSnapshot(t.Context(), "t1", string(ids[1])); err != nil {
			t.Fatal(err)
		}
		w.mu.Lock()
		w.refuse["weigh "+string(ids[3])] = errors.New("damaged")
		w.mu.Unlock()
		tree, err := p.Tree(t.Context(), "t1", id)
		if err != nil || len(tree.Snapshots) != 4 || len(tree.Weights) != 2 {
			t.Fatalf("%+v, %v", tree, err)
		}
		for _, of := range []hearth.SnapshotID{ids[0], ids[2]} {
			if got := tree.Weights[of]; got != (archive.Weight{Whole: 2000, Added: 1000}) {
				t.Errorf("snapshot %s weighs %+v", of, got)
			}
		}
		want := []string{
			fmt.Sprintf("%s over [ warm]", ids[0]),
			fmt.Sprintf("%s over [%s warm]", ids[2], ids[0]),
			fmt.Sprintf("%s over [%s warm]", ids[3], ids[2]),
		}
		if !slices.Equal(w.weighed, want) {
			t.Errorf("asked for %q\nwant      %q", w.weighed, want)
		}
		w.mu.Lock()
		delete(w.refuse, "weigh "+string(ids[3]))
		w.mu.Unlock()
	})
}

// TestTagsOfNames: a snapshot whose name is there under other tags is told from a
// name that nothing has.
func TestTagsOfNames(t *testing.T) {
	inHistory(t, 0, func(t *testing.T, w *world, p *process, id hearth.SandboxID) {
		for _, tag := range []string{"v1", "v2"} {
			if _, err := p.Snapshot(t.Context(), "t1", id, control.SnapshotRequest{Alias: "keep", Tag: tag}); err != nil {
				t.Fatal(err)
			}
		}
		for ref, want := range map[string]string{
			"keep:nope":    "tag 'nope' does not exist for snapshot 'keep'",
			"keep":         "tag 'default' does not exist for snapshot 'keep'",
			"them/keep:v1": "template 'them/keep' not found",
			"kept:nope":    "template 'kept' not found",
			"base:nope":    "tag 'nope' does not exist for template 'base'",
		} {
			_, err := p.Create(t.Context(), control.CreateRequest{Team: "t1", Template: ref, Timeout: time.Hour})
			if shown := hearth.Shown(err); hearth.KindOf(err) != hearth.NotFound || shown != want {
				t.Errorf("%s: %v, want %q", ref, err, want)
			}
		}
		if err := p.DeleteSnapshot(t.Context(), "t1", "keep:nope"); hearth.KindOf(err) != hearth.NotFound {
			t.Errorf("a tag that is not there is deleted: %v", err)
		}
	})
}
