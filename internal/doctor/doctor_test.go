package doctor

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"hearth/internal/config"
	"hearth/internal/driver"
	"hearth/internal/driver/fake"
	"hearth/internal/hearth"
)

func TestVersion(t *testing.T) {
	for _, tc := range []struct {
		release      string
		major, minor int
	}{
		{"6.1.0-18-amd64", 6, 1},
		{"5.10", 5, 10},
		{"4.19.0-gvisor", 4, 19},
		{"", 0, 0},
		{"weird", 0, 0},
	} {
		if major, minor := version(tc.release); major != tc.major || minor != tc.minor {
			t.Errorf("%q: got %d.%d, want %d.%d", tc.release, major, minor, tc.major, tc.minor)
		}
	}
}

// A full disk must not keep a restarted server from its sandboxes.
func TestSettledHostsServeOn(t *testing.T) {
	short := Line{"disk", Fail, "0 MiB free", "free some"}
	if got := (Host{Settled: true}).settled(short); got.Status != Warn || got.Remedy == "" {
		t.Errorf("got %+v, want a warning with its remedy", got)
	}
	if got := (Host{}).settled(short); got.Status != Fail {
		t.Errorf("got %+v, want a failure on a first start", got)
	}
	if got := (Host{Settled: true}).settled(Line{Status: Pass}); got.Status != Pass {
		t.Errorf("got %+v, want it unchanged", got)
	}
}

func TestFailedNamesTheFirst(t *testing.T) {
	err := Failed([]Line{
		{"a", Pass, "", ""},
		{"b", Warn, "odd", "mend it"},
		{"c", Fail, "broken", "do this"},
		{"d", Fail, "worse", "do that"},
	})
	if hearth.KindOf(err) != hearth.FailedPrecondition || !strings.Contains(err.Error(), "c: broken; do this") {
		t.Errorf("got %v", err)
	}
	if err := Failed([]Line{{"b", Warn, "odd", "mend it"}}); err != nil {
		t.Errorf("a warning failed: %v", err)
	}
}

func TestRemedyForQEMUWithoutKVM(t *testing.T) {
	for _, tc := range []struct {
		name    string
		kvm     error
		emulate bool
		wanted  []string
		want    bool
	}{
		{"nobody asks for it", errors.New("no /dev/kvm"), false, nil, true},
		{"it is asked for", errors.New("no /dev/kvm"), false, []string{"qemu"}, true},
		{"KVM is not what is missing", nil, false, nil, false},
		{"it emulates already", errors.New("no /dev/kvm"), true, nil, false},
	} {
		h := fake.NewHost(fake.Config{Name: "qemu"})
		h.Fail(fake.Probe, errors.New("it cannot run"))
		c := config.Default()
		c.Node.QEMU.Emulate = tc.emulate
		l := Host{Config: &c, Drivers: []driver.Driver{fake.New(h)}, Wanted: tc.wanted}.drivers(t.Context(), tc.kvm)[0]
		if got := strings.Contains(l.Remedy, "node.qemu.emulate"); got != tc.want {
			t.Errorf("%s: %+v", tc.name, l)
		}
	}
}

func TestDrivers(t *testing.T) {
	of := func(name string, isolation hearth.Isolation, err error) driver.Driver {
		h := fake.NewHost(fake.Config{Name: name, Isolation: isolation})
		if err != nil {
			h.Fail(fake.Probe, err)
		}
		return fake.New(h)
	}
	missing := errors.New("not there")
	for _, tc := range []struct {
		name    string
		drivers []driver.Driver
		node    string
		wanted  []string
		want    []Status
	}{
		{"auto", []driver.Driver{of("a", "", missing), of("b", hearth.UserKernel, nil)}, config.Auto, nil, []Status{Warn, Pass}},
		{"auto, none", []driver.Driver{of("a", "", missing), of("b", hearth.EmulatedVM, nil)}, config.Auto, nil, []Status{Warn, Warn, Fail}},
		{"wanted", []driver.Driver{of("a", "", missing), of("b", hearth.UserKernel, nil)}, "a", []string{"a"}, []Status{Fail, Pass}},
		{"emulation is slow", []driver.Driver{of("a", hearth.EmulatedVM, nil)}, "a", []string{"a"}, []Status{Warn}},
	} {
		c := config.Default()
		c.Node.Driver = tc.node
		var got []Status
		for _, l := range (Host{Config: &c, Drivers: tc.drivers, Wanted: tc.wanted}).drivers(t.Context(), nil) {
			got = append(got, l.Status)
			if (l.Status == Pass) != (l.Remedy == "") {
				t.Errorf("%s: %+v", tc.name, l)
			}
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}
