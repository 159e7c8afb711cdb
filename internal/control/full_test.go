package control_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"hearth/internal/control"
	"hearth/internal/hearth"
)

// TestKillOnAFullDisk: a kill ends the machine though no row can be written, succeeds
// once nobody can use the sandbox any more, and what is left goes when there is room.
func TestKillOnAFullDisk(t *testing.T) {
	full := hearth.Errorf(hearth.ResourceExhausted, "the metadata store could not be written: its disk is full")
	for _, tc := range []struct {
		name   string
		paused bool
		refuse []string
		want   string // of the error; empty: none
		ends   hearth.State
	}{
		{"no row can be written", false, []string{"write stopping", "write stopped"}, "runs no more, and is gone as soon as that can be written down", hearth.Stopped},
		{"the last row cannot be written", false, []string{"write stopped"}, "", hearth.Stopped},
		{"it is paused", true, []string{"write stopping", "write stopped"}, "cannot be killed yet", hearth.Paused},
		{"it is paused and the last row cannot be written", true, []string{"write stopped"}, "", hearth.Stopped},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				p := w.run(control.Limits{})
				ctx := context.Background()
				sb, err := p.Create(ctx, control.CreateRequest{Team: "t1", Template: "base", Timeout: time.Hour})
				if err == nil && tc.paused {
					err = p.Pause(ctx, "t1", sb.ID)
				}
				if err != nil {
					t.Fatal(err)
				}
				w.set(func() {
					for _, what := range tc.refuse {
						w.refuse[what] = full
					}
				})
				err = p.Kill(ctx, "t1", sb.ID)
				if tc.want == "" && err != nil || tc.want != "" && (hearth.KindOf(err) != hearth.ResourceExhausted || !strings.Contains(err.Error(), tc.want)) {
					t.Errorf("the kill ended with %v, want %q", err, tc.want)
				}
				w.set(func() {
					if m := w.machines[sb.Node][sb.ID]; m != nil {
						t.Errorf("the machine %+v is left", m)
					}
				})
				w.set(func() { clear(w.refuse) })
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
