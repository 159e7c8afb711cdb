package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hearth/internal/hearth"
)

func write(t *testing.T, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "hearth.yaml")
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPrecedence(t *testing.T) {
	file := write(t, "listen: 127.0.0.1:1\ndomain: file.test\nnode:\n  pool: 7\nsandbox:\n  max_timeout: 2h\n")
	c, err := Load(file, []string{"HEARTH_DOMAIN=env.test", "HEARTH_NODE_QEMU_EMULATE=true", "HEARTH_NODE_DRIVERS=qemu, gvisor", "HEARTH_LISTEN=127.0.0.1:2", "HEARTH_NETWORK_DNS=9.9.9.9, 1.1.1.1", "HOME=/x", "HEARTH_TEST_KEEP=1", "HEARTH_DASHBOARD=false"},
		func(c *Config) { c.Listen = "127.0.0.1:3" })
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen != "127.0.0.1:3" || c.Domain != "env.test" || c.Node.Pool != 7 || c.Sandbox.MaxTimeout != 2*time.Hour || len(c.Network.DNS) != 2 || !c.Node.QEMU.Emulate || len(c.Node.Drivers) != 2 || c.Dashboard || !Default().Dashboard {
		t.Errorf("got %+v", c)
	}
	if c.Data != Default().Data {
		t.Errorf("data: got %q, want the default", c.Data)
	}
}

func TestYAMLRoundTrip(t *testing.T) {
	c := Default()
	raw, err := c.YAML()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Load(write(t, string(raw)), nil, nil)
	if err != nil {
		t.Fatalf("Load of what YAML printed: %v\n%s", err, raw)
	}
	if twice, err := again.YAML(); err != nil || string(twice) != string(raw) {
		t.Errorf("got %s, %v, want %s", twice, err, raw)
	}
}

func TestRefusals(t *testing.T) {
	for _, tc := range []struct{ name, file, env, want string }{
		{"unknown key", "lisen: x", "", "lisen"},
		{"unknown env", "", "HEARTH_LISEN=x", "HEARTH_LISEN"},
		{"not a number", "", "HEARTH_NODE_POOL=many", "HEARTH_NODE_POOL"},
		{"not a duration", "", "HEARTH_SANDBOX_MAX_TIMEOUT=1", "duration"},
		{"relative data", "data: here", "", "data"},
		{"listen", "listen: nowhere", "", "listen"},
		{"pool too large", "node: {pool: 100000}", "", "node.pool"},
		{"negative", "node: {queue: -1}", "", "node.queue"},
		{"driver", "node: {driver: magic}", "", `node.driver: "magic" is not a driver of this build; there is: auto, firecracker, qemu, gvisor`},
		{"further driver", "node: {drivers: [gvisor, auto]}", "", `node.drivers: "auto" is not a driver of this build; there is: firecracker, qemu, gvisor`},
		{"template's driver", "templates: [{name: a, tar: /x, driver: magic}]", "", "templates.a.driver"},
		{"built-in template's driver", "builtin_drivers: {base: magic}", "", "builtin_drivers.base"},
		{"driver of no template", "builtin_drivers: {bass: gvisor}", "", `builtin_drivers: "bass" is not in builtin`},
		{"built-in template's pool", "builtin_pools: {base: {pool: -1}}", "", "builtin_pools.base.pool: -1 must be between 0 and 1000"},
		{"a built-in pool's unknown key", "builtin_pools: {base: {min: 1}}", "", "min"},
		{"pool of no template", "builtin_pools: {bass: {pool: 1}}", "", `builtin_pools: "bass" is not in builtin`},
		{"a template's pool", "templates: [{name: a, tar: /x, pool_max: 1001}]", "", "templates.a.pool_max"},
		{"relative binary", "node: {qemu: {binary: qemu}}", "", "node.qemu.binary"},
		{"relative kernel", "node: {vm: {kernel: vmlinux}}", "", "node.vm.kernel"},
		{"not a bool", "", "HEARTH_NODE_QEMU_EMULATE=maybe", "neither true nor false"},
		{"prefix", "network: {prefix: 10.0.0.0/30}", "", "network.prefix"},
		{"prefix v6", "network: {prefix: 'fd00::/16'}", "", "network.prefix"},
		{"dns", "network: {dns: [x]}", "", "network.dns"},
		{"exempt", "network: {exempt: [10.0.0.1]}", "", "network.exempt"},
		{"no source", "templates: [{name: a}]", "", "exactly one"},
		{"two sources", "templates: [{name: a, tar: /x, oci: /y}]", "", "exactly one"},
		{"bad name", "templates: [{name: 'A b', tar: /x}]", "", "templates.name"},
		{"twice", "templates: [{name: base, tar: /x}]", "", "twice"},
		{"level", "log: {level: loud}", "", "log.level"},
		{"memory without a key", "snapshots: {plain_dir: /dev/shm}", "", "snapshots.plain_dir"},
		{"relative memory", "snapshots: {plain_dir: shm, key_file: /k}", "", "snapshots.plain_dir"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var env []string
			if tc.env != "" {
				env = []string{tc.env}
			}
			_, err := Load(write(t, tc.file), env, nil)
			if hearth.KindOf(err) != hearth.InvalidArgument || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an invalid_argument that names %q", err, tc.want)
			}
		})
	}
	if _, err := Load("/nonexistent/hearth.yaml", nil, nil); hearth.KindOf(err) != hearth.NotFound {
		t.Errorf("missing file: got %v", err)
	}
}

func TestPoolBounds(t *testing.T) {
	c, err := Load(write(t, `
node: {pool: 3, pool_max: 9}
builtin_pools: {base: {pool: 0, pool_max: 2}}
templates:
  - {name: a, tar: /x, pool: 12}
  - {name: b, tar: /x, pool_max: 4}
  - {name: c, tar: /x}
`), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][2]int{
		"base": {0, 2}, "code-interpreter-v1": {3, 9}, "a": {12, 12}, "b": {3, 4}, "c": {3, 9},
	} {
		if floor, ceiling := c.PoolBounds(name); [2]int{floor, ceiling} != want {
			t.Errorf("%s: %d to %d, want %v", name, floor, ceiling, want)
		}
	}
}
