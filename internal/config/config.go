// Package config holds the one configuration struct: its defaults, how it is
// loaded (flags over environment over file) and what makes it valid.
package config

import (
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"hearth/internal/hearth"
)

// Config is everything that can be configured. A key's name in the file is its
// yaml tag; in the environment it is HEARTH_ and the path in upper case, joined
// by underscores: HEARTH_NETWORK_PREFIX. Lists are comma-separated there.
type Config struct {
	Data   string `yaml:"data"`   // directory of everything Hearth keeps
	Listen string `yaml:"listen"` // address of the API and of sandbox traffic
	Domain string `yaml:"domain"` // base domain of sandbox host names; empty: routing by header only

	Log       Log        `yaml:"log"`
	Metrics   string     `yaml:"metrics"`   // address of the Prometheus endpoint; empty: none
	Dashboard bool       `yaml:"dashboard"` // whether there are pages for people at /dash/ of the API's address
	Sandbox   Sandbox    `yaml:"sandbox"`
	Node      Node       `yaml:"node"`
	Network   Network    `yaml:"network"`
	Snapshots Snapshots  `yaml:"snapshots"`
	Cache     string     `yaml:"cache"` // directory of unpacked template sources, shareable between data directories; empty: DATA/cache
	Builtin   []string   `yaml:"builtin"`
	Templates []Template `yaml:"templates" env:"-"`

	BuiltinDrivers map[string]string `yaml:"builtin_drivers" env:"-"` // driver by built-in template; others get the node's
	BuiltinPools   map[string]Pool   `yaml:"builtin_pools" env:"-"`   // pool by built-in template; others get the node's
}

// Log says what is logged and how.
type Log struct {
	Level  string `yaml:"level"`  // debug, info, warn, error
	Format string `yaml:"format"` // text, json
}

// Sandbox bounds what users may ask for.
type Sandbox struct {
	Max        int           `yaml:"max"`         // sandboxes running at once, per team
	MaxTimeout time.Duration `yaml:"max_timeout"` // longest life from a start or resume
}

// Node is how this host runs machines.
type Node struct {
	Driver     string   `yaml:"driver"`      // isolation technology of sandboxes that ask for none; auto: the strongest that runs here
	Drivers    []string `yaml:"drivers"`     // further ones that sandboxes may ask for
	Overcommit int      `yaml:"overcommit"`  // what machines may ask for in all, as a multiple of the host's cores and memory: most use little of it
	Pool       int      `yaml:"pool"`        // restored, paused machines kept per template, however little it is used
	PoolMax    int      `yaml:"pool_max"`    // and at most, after many starts at once; less than pool means pool
	PoolMiB    int      `yaml:"pool_mib"`    // memory that pooled machines may use in all, blanks included
	Blanks     int      `yaml:"blanks"`      // machines without a state kept per template behind its pool: a start, resume or fork is restored into one
	Starts     int      `yaml:"starts"`      // machines started at once; 0: two per core
	Queue      int      `yaml:"queue"`       // starts that may wait for their turn
	SubUIDBase int      `yaml:"subuid_base"` // first host uid of the ranges given to machines
	Cgroup     string   `yaml:"cgroup"`      // parent cgroup of all machines

	VM          VM          `yaml:"vm"`
	QEMU        QEMU        `yaml:"qemu"`
	Firecracker Firecracker `yaml:"firecracker"`
}

// VM is what virtual machines of all drivers start.
type VM struct {
	Kernel  string `yaml:"kernel"`  // vmlinux or bzImage; empty: Debian's cloud kernel, fetched once
	Modules string `yaml:"modules"` // the kernel's /lib/modules/VERSION; empty: all it needs is built in, or Debian's
}

// QEMU is how the driver of that name runs.
type QEMU struct {
	Binary  string `yaml:"binary"`  // empty: qemu-system-x86_64 in PATH
	Emulate bool   `yaml:"emulate"` // without a usable /dev/kvm, emulate the processor: many times slower
}

// Firecracker is how the driver of that name runs.
type Firecracker struct {
	Binary string `yaml:"binary"` // empty: firecracker in PATH
	Jailer string `yaml:"jailer"` // empty: jailer in PATH
}

// Auto stands for the strongest driver that runs on the host.
const Auto = "auto"

// DriverNames lists the drivers of this build, the strongest isolation first:
// the order in which Auto tries them.
func DriverNames() []string { return []string{"firecracker", "qemu", "gvisor"} }

// Snapshots says how the state of paused sandboxes and templates is kept.
type Snapshots struct {
	Dir      string `yaml:"dir"`       // directory of the compressed files; empty: DATA/archive
	CacheMiB int    `yaml:"cache_mib"` // plain files kept beside them, from which machines start at once
	KeyFile  string `yaml:"key_file"`  // file of 64 hexadecimal digits, mode 0600: encrypts the compressed files, and keeps plain ones off the disk
	PlainDir string `yaml:"plain_dir"` // with a key: where in memory the plain files are; empty: /dev/shm
}

// Network is the machines' network on this host.
type Network struct {
	Prefix string   `yaml:"prefix"` // private range the slots are cut from
	DNS    []string `yaml:"dns"`    // name servers of the sandboxes; empty: the host's public ones, else well-known public ones
	Exempt []string `yaml:"exempt"` // private ranges that sandboxes may reach all the same
	Slots  int      `yaml:"slots"`  // namespaces kept ready
}

// Template is one more template to make at start, from exactly one source.
type Template struct {
	Name    string            `yaml:"name"`
	Debian  []string          `yaml:"debian,omitempty"` // packages on top of the smallest Debian system
	Tar     string            `yaml:"tar,omitempty"`    // root file system as a tarball
	OCI     string            `yaml:"oci,omitempty"`    // OCI image layout directory
	Start   string            `yaml:"start,omitempty"`  // command that runs before the warm checkpoint
	Ready   string            `yaml:"ready,omitempty"`  // command that succeeds once Start is ready
	Pool    Pool              `yaml:",inline"`
	Driver  string            `yaml:"driver,omitempty"` // of its sandboxes, unless they ask for another; empty: the node's
	VCPUs   int               `yaml:"vcpus,omitempty"`
	Memory  int               `yaml:"memory_mib,omitempty"`
	Disk    int               `yaml:"disk_mib,omitempty"`
	Env     map[string]string `yaml:"env,omitempty"`
	User    string            `yaml:"user,omitempty"`
	Workdir string            `yaml:"workdir,omitempty"`
}

// Pool is how many machines of one template are kept ready; what is nil is as for the node.
type Pool struct {
	Min *int `yaml:"pool,omitempty"`     // as node.pool
	Max *int `yaml:"pool_max,omitempty"` // as node.pool_max
}

// Default returns the configuration that holds where nothing else is said.
func Default() Config {
	return Config{
		Data:      "/var/lib/hearth",
		Listen:    "127.0.0.1:3000",
		Log:       Log{Level: "info", Format: "text"},
		Dashboard: true,
		Sandbox:   Sandbox{Max: 1000, MaxTimeout: 24 * time.Hour},
		Node: Node{
			Driver: Auto, Overcommit: 32, Pool: 4, PoolMax: 32, PoolMiB: 2048, Blanks: 2, Queue: 1000,
			SubUIDBase: 1_000_000, Cgroup: "/hearth",
		},
		Network:   Network{Prefix: "10.213.0.0/16", Slots: 8},
		Snapshots: Snapshots{CacheMiB: 20 << 10},
		Builtin:   []string{"base", "code-interpreter-v1"},
	}
}

// maxPool bounds the machines that are kept ready of one template.
const maxPool = 1000

// PoolBounds says how many machines of a template are kept ready, at least and
// at most.
func (c *Config) PoolBounds(template string) (floor, ceiling int) {
	own := c.BuiltinPools[template]
	for _, t := range c.Templates {
		if t.Name == template {
			own = t.Pool
		}
	}
	floor, ceiling = c.Node.Pool, c.Node.PoolMax
	if own.Min != nil {
		floor = *own.Min
	}
	if own.Max != nil {
		ceiling = *own.Max
	}
	return floor, max(floor, ceiling)
}

// validate names what is out of bounds under a key.
func (p Pool) validate(key string) error {
	for name, n := range map[string]*int{"pool": p.Min, "pool_max": p.Max} {
		if n != nil && (*n < 0 || *n > maxPool) {
			return invalid(key+"."+name, "%d must be between 0 and %d", *n, maxPool)
		}
	}
	return nil
}

// nameRE is E2B's form of a template name.
var nameRE = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9_-]{1,128}$`) })

// CacheDir is the directory of unpacked template sources and guests' kernels.
func (c *Config) CacheDir() string {
	if c.Cache != "" {
		return c.Cache
	}
	return filepath.Join(c.Data, "cache")
}

// Validate returns an InvalidArgument that names the first bad key and its limit.
func (c *Config) Validate() error {
	if !filepath.IsAbs(c.Data) {
		return invalid("data", "%q must be an absolute path", c.Data)
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return invalid("listen", "%q must be host:port", c.Listen)
	}
	if c.Metrics != "" {
		if _, _, err := net.SplitHostPort(c.Metrics); err != nil {
			return invalid("metrics", "%q must be host:port", c.Metrics)
		}
	}
	if c.Cache != "" && !filepath.IsAbs(c.Cache) {
		return invalid("cache", "%q must be an absolute path", c.Cache)
	}
	switch c.Log.Level {
	case "debug", "info", "warn", "error":
	default:
		return invalid("log.level", "%q must be debug, info, warn or error", c.Log.Level)
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		return invalid("log.format", "%q must be text or json", c.Log.Format)
	}
	if err := c.validateNode(); err != nil {
		return err
	}
	if err := c.validateNetwork(); err != nil {
		return err
	}
	return c.validateTemplates()
}

func (c *Config) validateNode() error {
	if err := c.validateDrivers(); err != nil {
		return err
	}
	if c.Sandbox.MaxTimeout < time.Minute {
		return invalid("sandbox.max_timeout", "%s must be at least 1m", c.Sandbox.MaxTimeout)
	}
	for _, r := range []struct {
		key       string
		v, lo, hi int
	}{
		{"sandbox.max", c.Sandbox.Max, 1, 1_000_000},
		{"node.overcommit", c.Node.Overcommit, 1, 1000},
		{"node.pool", c.Node.Pool, 0, maxPool},
		{"node.pool_max", c.Node.PoolMax, 0, maxPool},
		{"node.blanks", c.Node.Blanks, 0, maxPool},
		{"node.pool_mib", c.Node.PoolMiB, 0, 1 << 30},
		{"node.starts", c.Node.Starts, 0, 1024},
		{"node.queue", c.Node.Queue, 1, 1_000_000},
		{"node.subuid_base", c.Node.SubUIDBase, 1_000_000, 1 << 31},
		{"network.slots", c.Network.Slots, 0, 1000},
		{"snapshots.cache_mib", c.Snapshots.CacheMiB, 0, 1 << 30},
	} {
		if r.v < r.lo || r.v > r.hi {
			return invalid(r.key, "%d must be between %d and %d", r.v, r.lo, r.hi)
		}
	}
	return nil
}

func (c *Config) validateNetwork() error {
	for key, path := range map[string]string{"snapshots.dir": c.Snapshots.Dir, "snapshots.key_file": c.Snapshots.KeyFile, "snapshots.plain_dir": c.Snapshots.PlainDir} {
		if path != "" && !filepath.IsAbs(path) {
			return invalid(key, "%q must be an absolute path", path)
		}
	}
	if c.Snapshots.PlainDir != "" && c.Snapshots.KeyFile == "" {
		return invalid("snapshots.plain_dir", "%q is for what snapshots.key_file encrypts, and there is none", c.Snapshots.PlainDir)
	}
	p, err := netip.ParsePrefix(c.Network.Prefix)
	if err != nil || !p.Addr().Is4() || p.Bits() > 24 {
		return invalid("network.prefix", "%q must be an IPv4 range of /24 or larger", c.Network.Prefix)
	}
	for _, d := range c.Network.DNS {
		if _, err := netip.ParseAddr(d); err != nil {
			return invalid("network.dns", "%q must be an IP address", d)
		}
	}
	for _, e := range c.Network.Exempt {
		if _, err := netip.ParsePrefix(e); err != nil {
			return invalid("network.exempt", "%q must be a CIDR", e)
		}
	}
	return nil
}

func (c *Config) validateTemplates() error {
	seen := map[string]bool{}
	for _, n := range c.Builtin {
		seen[n] = true
	}
	for name, p := range c.BuiltinPools {
		if !seen[name] {
			return invalid("builtin_pools", "%q is not in builtin", name)
		}
		if err := p.validate("builtin_pools." + name); err != nil {
			return err
		}
	}
	for _, t := range c.Templates {
		if !nameRE().MatchString(t.Name) {
			return invalid("templates.name", "%q must be 1 to 128 characters of [a-z0-9_-]", t.Name)
		}
		if seen[t.Name] {
			return invalid("templates.name", "%q is there twice", t.Name)
		}
		seen[t.Name] = true
		sources := 0
		for _, has := range []bool{len(t.Debian) > 0, t.Tar != "", t.OCI != ""} {
			if has {
				sources++
			}
		}
		if err := t.Pool.validate("templates." + t.Name); err != nil {
			return err
		}
		if sources != 1 {
			return invalid("templates."+t.Name, "needs exactly one of debian, tar, oci; it has %d", sources)
		}
	}
	return nil
}

func invalid(key, format string, args ...any) error {
	return hearth.Errorf(hearth.InvalidArgument, "config: "+key+": "+format, args...)
}
