package control_test

import (
	"context"
	"testing"
	"time"

	"hearth/internal/control"
	"hearth/internal/hearth"
)

func TestDriverOfASandbox(t *testing.T) {
	in(t, control.Limits{}, func(t *testing.T, w *world, p *process) {
		ctx := context.Background()
		for _, tc := range []struct{ ask, want string }{{"", "fake"}, {"fake", "fake"}, {"vm", "vm"}} {
			sb, err := p.Create(ctx, control.CreateRequest{Team: "t1", Template: "base", Driver: tc.ask, Timeout: time.Hour})
			if err != nil {
				t.Fatal(err)
			}
			if sb.Wanted != tc.ask || sb.Driver != tc.want || sb.Isolation != hearth.HardwareVM {
				t.Errorf("asked for %q: %+v", tc.ask, sb)
			}
			row, err := w.store.Sandbox(ctx, sb.ID)
			if err != nil || row.Driver != tc.want || row.Wanted != tc.ask {
				t.Errorf("row %+v, %v", row, err)
			}
			if err := p.Pause(ctx, "t1", sb.ID); err != nil {
				t.Fatal(err)
			}
			again, resumed, err := p.Connect(ctx, "t1", sb.ID, time.Hour)
			if err != nil || !resumed || again.Driver != tc.want || again.Wanted != tc.ask {
				t.Errorf("resumed %+v, %v", again, err)
			}
		}
		_, err := p.Create(ctx, control.CreateRequest{Team: "t1", Template: "base", Driver: "magic", Timeout: time.Hour})
		wants(t, err, hearth.InvalidArgument, `driver: "magic" is not offered here; there is: fake, vm`)
	})
}

// TestTemplateChoosesItsDriver: the template's choice holds unless the sandbox
// asks for another one.
func TestTemplateChoosesItsDriver(t *testing.T) {
	in(t, control.Limits{}, func(t *testing.T, w *world, p *process) {
		ctx := context.Background()
		b := &hearth.Build{ID: "bv", Template: "new", Status: hearth.BuildReady, Driver: "vm", CreatedAt: time.Now(), Resources: hearth.Resources{VCPUs: 1, MemoryMiB: 1, DiskMiB: 1}}
		b.Status = hearth.BuildWaiting
		if err := w.store.CreateBuild(ctx, b); err != nil {
			t.Fatal(err)
		}
		b.Status = hearth.BuildReady
		if err := w.store.FinishBuild(ctx, b); err != nil {
			t.Fatal(err)
		}
		for _, tc := range []struct{ ask, want string }{{"", "vm"}, {"fake", "fake"}} {
			sb, err := p.Create(ctx, control.CreateRequest{Team: "t1", Template: "soon", Driver: tc.ask, Timeout: time.Hour})
			if err != nil || sb.Driver != tc.want || sb.Wanted != tc.ask {
				t.Errorf("asked for %q: %+v, %v", tc.ask, sb, err)
			}
		}
	})
}
