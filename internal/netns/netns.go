// Package netns gives every sandbox a network of its own: a *slot* is a network
// namespace joined to the host by a veth pair, with one address, a route and a
// place in the host's packet filter. A virtual machine's slot has a tap besides,
// wired to the veth.
//
// # What a sandbox may reach
//
// The guest's network stack may be a user-space one that reads packets straight
// from the device, so rules inside the namespace would be bypassed. Everything is
// therefore decided on the host's side of the veth, in one nftables table per
// node ("hearth-<name>"):
//
//   - a packet whose source is not the slot's own address, or that is not IPv4,
//     is dropped before connection tracking sees it;
//   - the host itself is reached only by replies to connections the host opened;
//   - nothing reaches a sandbox but replies from outside and root of the host:
//     other users of the host have to come through the edge, as strangers do;
//   - private, link-local, metadata, multicast and reserved ranges are refused,
//     always; then the slot's own Policy decides;
//   - connections at once, new connections and UDP packets a second are limited.
//
// TCP that is refused gets a reset and the rest an ICMP error, so that programs
// fail at once. The table matches devices by name prefix, so a veth that is not
// registered in it can send nothing: the filter fails closed. Slots live in sets;
// there are no rules per sandbox.
//
// # What outlives the process
//
// Namespaces are bind-mounted files, veths and table belong to the kernel, so
// sandboxes keep their network, and their filter, while no Manager runs. Open
// takes over what it finds, Attach returns a slot by its index, Sweep removes the
// slots that nobody claimed.
package netns

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"hearth/internal/hearth"
)

// Defaults of Config and Limits.
const (
	DefaultPrefix = "10.213.0.0/16"
	DefaultDir    = "/run/hearth/netns"
	DefaultMTU    = maxMTU // TCP towards the uplink is clamped to its MSS

	DefaultConnections         = 4096
	DefaultNewPerSecond        = 1000
	DefaultUDPPerSecond        = 50000
	DefaultReadyMin            = 4
	DefaultReadyMax            = 8
	defaultCheck               = 2 * time.Second
	maxCIDRs                   = 256        // of one list of one Policy
	slotBits                   = 30         // one /30 per slot: host and guest
	maxMTU                     = 65535 - 14 // of a tap, whose MTU and Ethernet header are at most 65535 bytes
	guestDevice                = "eth0"
	burstSeconds        uint32 = 2
)

// Config says how a Manager makes slots. The zero value of every field but Name
// stands for a default.
type Config struct {
	// Name tells the nodes of one host apart: 1 to 6 of [a-z0-9]. It is part of
	// the names of devices, namespaces and the table.
	Name string

	// Prefix is cut into one /30 per slot. Subnets of it that another device of
	// the host uses are skipped, so nodes may share a prefix.
	Prefix netip.Prefix

	// Dir is where namespaces are mounted, in a directory named after the node.
	Dir string

	// MTU of the veths, in bytes.
	MTU int

	// Uplinks are the devices that lead to the internet; empty means those of
	// the host's default routes.
	Uplinks []string

	// Exempt are the deployment's own services in ranges that are otherwise
	// always denied. A slot's own policy still applies to them.
	Exempt []netip.Prefix

	// Resolvers are DNS servers in such ranges: exempt for port 53 alone.
	Resolvers []netip.Addr

	// Deny adds ranges that are always denied.
	Deny []netip.Prefix

	// ReadyMin and ReadyMax are the watermarks of the pool of unused slots: when
	// fewer than ReadyMin are left, it is filled up to ReadyMax. ReadyMax < 0
	// keeps no pool.
	ReadyMin, ReadyMax int

	// Check is how often the table's presence is checked; a firewall service
	// that is restarted flushes the tables of others, too.
	Check time.Duration

	Limits Limits
}

// Limits bound what one sandbox may ask of the host's network. Zero stands for
// the default.
type Limits struct {
	Connections  int // tracked connections at once
	NewPerSecond int // new connections a second, refused ones included; bursts of twice as many
	UDPPerSecond int // UDP packets a second; bursts of twice as many
}

// Slot is a ready network for one machine. It is plain data, so that it can be
// kept in a journal; Attach finds it again by its index.
type Slot struct {
	Index      int          `json:"index"`
	NetNS      string       `json:"netns"`         // path that can be opened and entered
	Device     string       `json:"device"`        // interface inside the namespace
	Guest      netip.Prefix `json:"guest"`         // the guest's address and subnet
	Gateway    netip.Addr   `json:"gateway"`       // the host's address on the veth
	HostDevice string       `json:"host_device"`   // interface on the host
	Tap        string       `json:"tap,omitempty"` // tap inside the namespace, wired to Device; empty: none
}

// MAC is the guest's hardware address, the only one to which the host sends.
func (s *Slot) MAC() net.HardwareAddr { return hardwareAddr(s.Guest.Addr(), guestEnd) }

// withDefaults returns the configuration with every field set, or an
// InvalidArgument error that names the field.
func (c Config) withDefaults() (Config, error) {
	if !c.Prefix.IsValid() {
		c.Prefix = netip.MustParsePrefix(DefaultPrefix)
	}
	c.Prefix = c.Prefix.Masked()
	setDefault(&c.Dir, DefaultDir)
	setDefault(&c.MTU, DefaultMTU)
	setDefault(&c.Check, defaultCheck)
	if c.ReadyMax == 0 {
		c.ReadyMax = max(DefaultReadyMax, c.ReadyMin)
		setDefault(&c.ReadyMin, DefaultReadyMin)
	}
	c.ReadyMax = max(c.ReadyMax, 0)
	c.ReadyMin = min(c.ReadyMin, c.ReadyMax)
	setDefault(&c.Limits.Connections, DefaultConnections)
	setDefault(&c.Limits.NewPerSecond, DefaultNewPerSecond)
	setDefault(&c.Limits.UDPPerSecond, DefaultUDPPerSecond)
	return c, firstError(c.validate(), c.validateAddresses())
}

func (c Config) validate() error {
	if !regexp.MustCompile(`^[a-z0-9]{1,6}$`).MatchString(c.Name) {
		return hearth.Errorf(hearth.InvalidArgument, "network name %q: want 1 to 6 of [a-z0-9]", c.Name)
	}
	if c.MTU < 576 || c.MTU > maxMTU {
		return hearth.Errorf(hearth.InvalidArgument, "network MTU %d: want 576 to %d", c.MTU, maxMTU)
	}
	if min(c.Limits.Connections, c.Limits.NewPerSecond, c.Limits.UDPPerSecond) < 0 {
		return hearth.Errorf(hearth.InvalidArgument, "network limits must not be negative")
	}
	return nil
}

func (c Config) validateAddresses() error {
	if !c.Prefix.Addr().Is4() || c.Prefix.Bits() > slotBits || c.Prefix.Bits() < 8 {
		return hearth.Errorf(hearth.InvalidArgument, "network prefix %s: want an IPv4 prefix of /8 to /%d", c.Prefix, slotBits)
	}
	for _, p := range slices.Concat(c.Exempt, c.Deny) {
		if !p.IsValid() || !p.Addr().Is4() {
			return hearth.Errorf(hearth.InvalidArgument, "network exempt or deny %s: want an IPv4 prefix", p)
		}
	}
	for _, a := range c.Resolvers {
		if !a.Is4() {
			return hearth.Errorf(hearth.InvalidArgument, "network resolver %s: want an IPv4 address", a)
		}
	}
	return nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// New returns a Manager; Open starts it. The error is an InvalidArgument that
// names the field of cfg which is wrong.
func New(cfg Config, log *slog.Logger) (*Manager, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	m := &Manager{cfg: cfg, log: log, slots: make(map[int]status), kick: make(chan struct{}, 1), stain: make(chan struct{}, 1)}
	m.table = &table{cfg: cfg, devices: cfg.devicePrefix(), slots: make(map[int]Policy)}
	return m, nil
}

// capacity is the number of slots the prefix has room for.
func (c Config) capacity() int { return 1 << (slotBits - c.Prefix.Bits()) }

// devicePrefix is how the names of all host devices of this node begin.
func (c Config) devicePrefix() string { return familyPrefix + c.Name + "-" }

// familyPrefix is how the names of all host devices of all nodes begin.
const familyPrefix = "hs"

// slot returns the slot with an index; it need not exist.
func (c Config) slot(index int) *Slot {
	gateway := c.gateway(index)
	device := fmt.Sprintf("%s%d", c.devicePrefix(), index)
	return &Slot{
		Index:      index,
		NetNS:      filepath.Join(c.Dir, c.Name, device),
		Device:     guestDevice,
		Guest:      netip.PrefixFrom(gateway.Next(), slotBits),
		Gateway:    gateway,
		HostDevice: device,
	}
}

func (c Config) gateway(index int) netip.Addr {
	a := c.Prefix.Addr().As4()
	n := uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3])
	n += uint32(index)<<(32-slotBits) + 1
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// indexOf is the reverse of slot: whose guest address a is.
func (c Config) indexOf(a netip.Addr) (int, bool) {
	if !a.Is4() || !c.Prefix.Contains(a) {
		return 0, false
	}
	base, b := c.Prefix.Addr().As4(), a.As4()
	n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	n -= uint32(base[0])<<24 | uint32(base[1])<<16 | uint32(base[2])<<8 | uint32(base[3])
	index := int(n >> (32 - slotBits))
	return index, c.slot(index).Guest.Addr() == a
}

// hardwareAddr returns the address of one end of a slot's veth. Both are known
// beforehand, so neither side has to ask for the other's. A locally administered
// unicast address; the index makes it differ between slots.
func hardwareAddr(guest netip.Addr, end byte) net.HardwareAddr {
	a := guest.As4()
	return net.HardwareAddr{0x02, 0x68 + end, a[0], a[1], a[2], a[3]}
}
