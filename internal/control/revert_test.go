package control_test

import (
	"context"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/control"
	"hearth/internal/hearth"
)

// TestCutRollback: a rollback that does not come about says what has become of the
// sandbox: that it goes on as it was only where it does.
func TestCutRollback(t *testing.T) {
	broken := hearth.Errorf(hearth.Internal, "the snapshot is broken")
	for _, tc := range []struct {
		name   string
		refuse map[string]error
		cut    func(w *world, p *process, id hearth.SandboxID) error // while the node restores
		kind   hearth.Kind
		want   string
		ends   hearth.State
	}{
		{"by a kill", nil, func(_ *world, p *process, id hearth.SandboxID) error {
			return p.Kill(context.Background(), "t1", id)
		}, hearth.NotFound, "ended while it was being rolled back", hearth.Stopped},
		{"by the machine's end", nil, func(w *world, _ *process, id hearth.SandboxID) error {
			w.die(id, "the test killed it")
			return nil
		}, hearth.NotFound, "ended while it was being rolled back", hearth.Stopped},
		{"by its node", map[string]error{"start": broken}, nil,
			hearth.Internal, "could not be rolled back and goes on as it was: the snapshot is broken", hearth.Running},
		{"and nobody knows", map[string]error{"start": broken, "list": hearth.Errorf(hearth.Internal, "no list")}, nil,
			hearth.Internal, "could not be rolled back: the snapshot is broken", hearth.Running},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				p := w.run(control.Limits{})
				ctx := context.Background()
				sb, err := p.Create(ctx, control.CreateRequest{Team: "t1", Template: "base", Timeout: time.Hour})
				if err != nil {
					t.Fatal(err)
				}
				snap, err := p.Snapshot(ctx, "t1", sb.ID, control.SnapshotRequest{})
				if err != nil {
					t.Fatal(err)
				}
				w.set(func() {
					w.delay["start"] = time.Second
					maps.Copy(w.refuse, tc.refuse)
				})
				done := make(chan error, 1)
				go func() {
					_, err := p.Rollback(ctx, "t1", sb.ID, string(snap.ID))
					done <- err
				}()
				synctest.Wait()
				if tc.cut != nil {
					if err := tc.cut(w, p, sb.ID); err != nil {
						t.Errorf("the cut: %v", err)
					}
				}
				err = <-done
				if err == nil || hearth.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("the rollback ended with %v (%s), want %q (%s)", err, hearth.KindOf(err), tc.want, tc.kind)
				}
				w.set(func() { delete(w.refuse, "list") })
				time.Sleep(time.Minute)
				synctest.Wait()
				if row, err := w.store.Sandbox(ctx, sb.ID); err != nil || row.State != tc.ends {
					t.Errorf("the sandbox is %+v, %v; want it %s", row, err, tc.ends)
				}
				for _, wrong := range w.audit(p) {
					t.Error(wrong)
				}
				p.end()
			})
		})
	}
}
