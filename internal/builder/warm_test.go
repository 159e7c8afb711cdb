package builder

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"hearth/internal/hearth"
)

// two makes a node of a default driver, a second one, and one for templates that
// choose it.
func two(d *Deps) {
	d.Drivers = []Target{
		{Driver: "fake", Key: "key-1"}, {Driver: "vm", Key: "key-1"}, {Driver: "rare", Key: "key-1", Chosen: true}, {Driver: "disk"},
	}
}

func TestEveryDriverHasASnapshot(t *testing.T) {
	for _, tc := range []struct {
		own  string
		want []string
	}{
		{"", []string{"fake", "vm"}},
		{"vm", []string{"fake", "vm"}},
		{"rare", []string{"fake", "rare", "vm"}},
		{"disk", []string{"fake", "vm"}}, // it keeps no memory: its sandboxes boot
	} {
		t.Run("own "+tc.own, func(t *testing.T) {
			r := newRig(t, two)
			rec := recipe()
			rec.Driver = tc.own
			build, err := r.Ensure(t.Context(), team, rec, nil)
			if err != nil {
				t.Fatal(err)
			}
			got := slices.Sorted(maps.Keys(build.Warm))
			if !slices.Equal(got, tc.want) || build.Driver != tc.own || build.Start != "serve" || build.Ready != "check" {
				t.Fatalf("warm for %v, build %+v", got, build)
			}
			for driver, id := range build.Warm {
				snap, err := r.rows.Snapshot(t.Context(), id)
				if err != nil || snap.Driver != driver || snap.Build != build.ID {
					t.Errorf("%s: snapshot %+v, %v", driver, snap, err)
				}
			}
			if n := len(r.guest.started); n != len(tc.want) {
				t.Errorf("the start command ran %d times, want once per driver", n)
			}
			again, err := r.Ensure(t.Context(), team, rec, nil)
			if err != nil || again.ID != build.ID {
				t.Errorf("built again: %+v, %v", again, err)
			}
		})
	}
}

// TestDriverThatFails leaves a build without one of its snapshots, unless it is
// the one that matters most; the next Ensure tries again.
func TestDriverThatFails(t *testing.T) {
	boom := hearth.Errorf(hearth.FailedPrecondition, "no luck")
	for _, tc := range []struct {
		name, own string
		refuse    []error
		want      []string // nil: the build fails
	}{
		{"the other", "", []error{nil, boom}, []string{"fake"}},
		{"the default", "", []error{boom}, nil},
		{"the template's own", "vm", []error{boom}, nil},
		{"the default, not the template's own", "vm", []error{nil, boom}, []string{"vm"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, two)
			r.node.refuse = tc.refuse
			rec := recipe()
			rec.Driver = tc.own
			var warned []string
			build, err := r.Ensure(t.Context(), team, rec, func(e LogEntry) {
				if e.Level == Warn {
					warned = append(warned, e.Message)
				}
			})
			if (err == nil) != (tc.want != nil) {
				t.Fatalf("build %+v, %v", build, err)
			}
			if got := slices.Sorted(maps.Keys(build.Warm)); !slices.Equal(got, tc.want) {
				t.Errorf("warm for %v, want %v", got, tc.want)
			}
			if files := r.keys(t, "snapshots/"); len(files) != len(tc.want) || len(r.node.machines) != 0 {
				t.Errorf("left: files %v, machines %v", files, r.node.machines)
			}
			if tc.want == nil {
				return
			}
			if len(warned) != 1 || !strings.Contains(warned[0], "no luck") || !strings.Contains(warned[0], "sandboxes on it will boot") {
				t.Errorf("the log warns %q", warned)
			}
			again, err := r.Ensure(t.Context(), team, rec, nil)
			if err != nil || again.ID == build.ID || len(again.Warm) != 2 {
				t.Errorf("the next Ensure: %+v, %v", again, err)
			}
		})
	}
}

func TestSnapshotsOfADriverThatLeft(t *testing.T) {
	r := newRig(t, two)
	first, err := r.Ensure(t.Context(), team, recipe(), nil)
	if err != nil {
		t.Fatal(err)
	}
	rec := recipe()
	rec.Ready = "check again"
	second, err := r.again(t, nil).Ensure(t.Context(), team, rec, nil) // its node has "fake" alone
	if err != nil || len(second.Warm) != 1 {
		t.Fatalf("%+v, %v", second, err)
	}
	if _, err := r.rows.Snapshot(t.Context(), first.Warm["vm"]); hearth.KindOf(err) != hearth.NotFound || err == nil {
		t.Errorf("the snapshot of a driver that left: %v", err)
	}
	if _, err := r.rows.Snapshot(t.Context(), first.Warm["fake"]); err != nil {
		t.Errorf("the other: %v", err)
	}
}

func TestUnknownDriverIsRefused(t *testing.T) {
	r := newRig(t, two)
	rec := recipe()
	rec.Driver = "magic"
	if _, err := r.Ensure(t.Context(), team, rec, nil); hearth.KindOf(err) != hearth.InvalidArgument || !strings.HasPrefix(err.Error(), "driver:") {
		t.Error(err)
	}
}

// A machine of a new snapshot is used once where that teaches the driver, and
// whatever becomes of it, the build is ready and nothing is left.
func TestRehearsal(t *testing.T) {
	boom := hearth.Errorf(hearth.Unavailable, "no luck")
	for name, refuse := range map[string][]error{"works": nil, "no start": {nil, boom}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(d *Deps) { d.Drivers = []Target{{Driver: "fake", Key: "key-1", Learns: true}} })
			r.node.refuse = refuse
			build, err := r.Ensure(t.Context(), team, recipe(), nil)
			if err != nil || len(build.Warm) != 1 {
				t.Fatalf("build %+v, %v", build, err)
			}
			if r.node.starts != 2 || len(r.node.machines) != 0 {
				t.Errorf("%d starts, %d machines left", r.node.starts, len(r.node.machines))
			}
		})
	}
}
