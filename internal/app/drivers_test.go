package app

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"

	"hearth/internal/config"
	"hearth/internal/driver"
	"hearth/internal/driver/fake"
	"hearth/internal/hearth"
	"hearth/internal/image"
)

// host makes drivers of the given names; a name that starts with "-" cannot run,
// one that starts with "~" emulates.
func host(names ...string) (list []driver.Driver) {
	for _, name := range names {
		isolation := hearth.HardwareVM
		bare := strings.TrimLeft(name, "-~")
		if name[0] == '~' {
			isolation = hearth.EmulatedVM
		}
		if bare == "gvisor" {
			isolation = hearth.UserKernel
		}
		h := fake.NewHost(fake.Config{Name: bare, Key: bare + "-1", Isolation: isolation})
		if name[0] == '-' {
			h.Fail(fake.Probe, errors.New(bare+" is missing: install it"))
		}
		list = append(list, &probedOnce{Driver: fake.New(h)})
	}
	return list
}

func TestChoose(t *testing.T) {
	for _, tc := range []struct {
		name    string
		host    []string
		driver  string
		drivers []string
		chosen  string // by a template
		want    []string
		err     string
	}{
		{name: "auto takes the strongest", host: []string{"firecracker", "qemu", "gvisor"}, want: []string{"firecracker"}},
		{name: "auto, no Firecracker", host: []string{"-firecracker", "qemu", "gvisor"}, want: []string{"qemu"}},
		{name: "auto, no KVM", host: []string{"-firecracker", "-qemu", "gvisor"}, want: []string{"gvisor"}},
		{name: "auto never emulates", host: []string{"-firecracker", "~qemu", "gvisor"}, want: []string{"gvisor"}},
		{name: "auto would rather fail than emulate", host: []string{"-firecracker", "~qemu", "-gvisor"},
			err: "node.driver: auto finds no driver that runs on this host: firecracker is missing: install it; qemu: it would emulate"},
		{name: "asked for", host: []string{"firecracker", "~qemu", "gvisor"}, driver: "qemu", want: []string{"qemu"}},
		{name: "asked for and missing", host: []string{"-firecracker", "qemu", "gvisor"}, driver: "firecracker",
			err: "node.driver: firecracker cannot run on this host: firecracker is missing: install it; `hearth doctor` says what to do"},
		{name: "not in this build", host: []string{"gvisor"}, driver: "qemu", err: "node.driver: qemu is not in this build"},
		{name: "further ones", host: []string{"firecracker", "~qemu", "gvisor"}, drivers: []string{"gvisor", "qemu", "gvisor"}, want: []string{"firecracker", "gvisor", "qemu"}},
		{name: "a further one that is missing", host: []string{"-firecracker", "-qemu", "gvisor"}, drivers: []string{"qemu"},
			err: "node.drivers: qemu cannot run on this host: qemu is missing"},
		{name: "a template's", host: []string{"firecracker", "~qemu", "gvisor"}, chosen: "qemu", want: []string{"firecracker", "qemu!"}},
		{name: "a template's that is the default", host: []string{"firecracker", "qemu", "gvisor"}, chosen: "firecracker", want: []string{"firecracker"}},
		{name: "a template's that is missing", host: []string{"-firecracker", "-qemu", "gvisor"}, chosen: "qemu",
			err: "a template's driver: qemu cannot run on this host"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := config.Default()
			if tc.driver != "" {
				c.Node.Driver = tc.driver
			}
			c.Node.Drivers = tc.drivers
			if tc.chosen != "" {
				c.BuiltinDrivers = map[string]string{"base": tc.chosen}
			}
			var log bytes.Buffer
			got, err := choose(context.Background(), &c, host(tc.host...), slog.New(slog.NewTextHandler(&log, nil)))
			if tc.err != "" {
				if hearth.KindOf(err) != hearth.FailedPrecondition || err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("got %v, want %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var have []string
			for i, target := range got.targets {
				if target.Driver != got.offers[i] || target.Key != target.Driver+"-1" {
					t.Errorf("target %+v of offers %v", target, got.offers)
				}
				if target.Chosen {
					target.Driver += "!"
				}
				have = append(have, target.Driver)
			}
			if !slices.Equal(have, tc.want) {
				t.Errorf("got %v, want %v", have, tc.want)
			}
			slow := slices.Contains(tc.host, "~qemu") && slices.Contains(got.offers, "qemu")
			if warned := strings.Contains(log.String(), "many times slower"); warned != slow {
				t.Errorf("warned of slowness: %v, want %v", warned, slow)
			}
		})
	}
}

// TestMakersMatchTheConfiguration: what the configuration admits is there.
func TestMakersMatchTheConfiguration(t *testing.T) {
	for name := range makers() {
		if !slices.Contains(config.DriverNames(), name) {
			t.Errorf("the configuration does not know %q", name)
		}
	}
	c := config.Default()
	all, err := allDrivers(parts{cfg: &c, log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		if makers()[d.Name()] == nil {
			t.Errorf("a driver calls itself %q", d.Name())
		}
	}
}

func TestTemplatesChooseDrivers(t *testing.T) {
	c := config.Default()
	c.BuiltinDrivers = map[string]string{"base": "qemu"}
	c.Templates = []config.Template{{Name: "mine", Debian: []string{"jq"}, Driver: "gvisor"}}
	list, err := recipes(&c, image.NewCache(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, r := range list {
		got[r.Name] = r.Driver
	}
	if want := map[string]string{"base": "qemu", "code-interpreter-v1": "", "mine": "gvisor"}; !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
