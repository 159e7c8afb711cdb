package netns

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// table is the node's nftables table. What it should hold is kept in memory, so
// that it can be made anew, in one transaction, when it was changed by others.
type table struct {
	cfg     Config
	devices string // beginning of the names of this node's host devices

	mu      sync.Mutex
	conn    *nftables.Conn // closing a connection makes the kernel wait, so it is kept
	slots   map[int]Policy // registered slots, policies in normal form
	uplinks []string       // devices that forward because this node needs it
}

const (
	tablePrefix        = "hearth-" // of the names of all nodes' tables
	elementsPerMessage = 500       // one netlink message holds 64 KiB
	socketBuffer       = 8 << 20   // bytes; one transaction is one datagram
	meterSize          = 65536     // sources a limit is kept for
)

// sets are the table's sets, of one transaction.
type sets struct {
	slots     *nftables.Set // device . source: who may send as whom
	guests    *nftables.Set // sources that are masqueraded
	open      *nftables.Set // sources that may reach what no list names
	allow     *nftables.Set // source . destination range
	deny      *nftables.Set // source . destination range
	never     *nftables.Set // destination ranges
	exempt    *nftables.Set // destination ranges
	resolvers *nftables.Set // destinations, for port 53
	uplinks   *nftables.Set // devices that forward because this node needs it
	rate      *nftables.Set // new connections by source
	udp       *nftables.Set // UDP packets by source
	conns     *nftables.Set // connections by source
}

func (t *table) nft() *nftables.Table {
	return &nftables.Table{Name: tablePrefix + t.cfg.Name, Family: nftables.TableFamilyINet}
}

// connect returns a connection to nftables.
func connect() (*nftables.Conn, error) {
	return nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		return firstError(c.SetWriteBuffer(socketBuffer), c.SetReadBuffer(socketBuffer))
	}))
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *table) sets() *sets {
	nft := t.nft()
	pair := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)
	id := uint32(0)
	set := func(name string, s nftables.Set) *nftables.Set {
		id++
		s.Table, s.ID, s.Name = nft, id, name
		if s.KeyType.Bytes == 0 {
			s.KeyType = nftables.TypeIPAddr
		}
		return &s
	}
	meter := nftables.Set{Dynamic: true, Size: meterSize}
	ranges := nftables.Set{Interval: true}
	return &sets{
		slots: set("slots", nftables.Set{Concatenation: true,
			KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr)}),
		guests:    set("guests", nftables.Set{}),
		open:      set("open", nftables.Set{}),
		allow:     set("allow", nftables.Set{KeyType: pair, Concatenation: true, Interval: true}),
		deny:      set("deny", nftables.Set{KeyType: pair, Concatenation: true, Interval: true}),
		never:     set("never", ranges),
		exempt:    set("exempt", ranges),
		resolvers: set("resolvers", nftables.Set{}),
		uplinks:   set("uplinks", nftables.Set{KeyType: nftables.TypeIFName}),
		rate:      set("rate", meter),
		udp:       set("udp", meter),
		conns:     set("conns", meter),
	}
}

func (s *sets) all() []*nftables.Set {
	return []*nftables.Set{s.slots, s.guests, s.open, s.allow, s.deny, s.never, s.exempt,
		s.resolvers, s.uplinks, s.rate, s.udp, s.conns}
}

// dial connects to nftables; hang up ends it.
func (t *table) dial() error {
	conn, err := connect()
	t.conn = conn
	return err
}

func (t *table) hangUp() error { return t.conn.CloseLasting() }

// load takes over what a table left by an earlier process holds: its slots with
// their policies and the devices on which forwarding was turned on.
func (t *table) load() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	conn := t.conn
	there, err := t.present()
	if err != nil || !there {
		return err
	}
	s := t.sets()
	read := func(set *nftables.Set) []nftables.SetElement {
		elements, readErr := conn.GetSetElements(set)
		if readErr != nil && err == nil {
			err = fmt.Errorf("reading set %s: %w", set.Name, readErr)
		}
		return elements
	}
	for _, e := range read(s.slots) {
		t.adopt(deviceName(e.Key))
	}
	for _, e := range read(s.open) {
		t.change(e.Key, func(p *Policy) { p.Internet = true })
	}
	for _, e := range read(s.allow) {
		t.change(e.Key, func(p *Policy) { p.AllowOut = append(p.AllowOut, prefixOf(e)) })
	}
	for _, e := range read(s.deny) {
		t.change(e.Key, func(p *Policy) { p.DenyOut = append(p.DenyOut, prefixOf(e)) })
	}
	for _, e := range read(s.uplinks) {
		t.uplinks = append(t.uplinks, deviceName(e.Key))
	}
	for index, p := range t.slots {
		normal, normErr := p.normal()
		if err != nil || normErr != nil {
			normal = Policy{} // what cannot be read reaches nothing
		}
		t.slots[index] = normal
	}
	return err
}

// adopt registers the slot with a host device, without access for now.
func (t *table) adopt(device string) {
	index, err := strconv.Atoi(strings.TrimPrefix(device, t.devices))
	if err == nil && index >= 0 && index < t.cfg.capacity() {
		t.slots[index] = Policy{}
	}
}

// change edits the policy of the slot whose guest address key begins with.
func (t *table) change(key []byte, edit func(*Policy)) {
	if len(key) < 4 {
		return
	}
	index, ok := t.cfg.indexOf(netip.AddrFrom4([4]byte(key[:4])))
	if p, known := t.slots[index]; ok && known {
		edit(&p)
		t.slots[index] = p
	}
}

// prefixOf returns the destination of an element of allow or deny.
func prefixOf(e nftables.SetElement) netip.Prefix {
	if len(e.Key) < 8 || len(e.KeyEnd) < 8 {
		return netip.Prefix{}
	}
	first, end := [4]byte(e.Key[4:8]), [4]byte(e.KeyEnd[4:8])
	bits := 0
	for bits < 32 && (first[bits/8]^end[bits/8])&(0x80>>(bits%8)) == 0 {
		bits++
	}
	return netip.PrefixFrom(netip.AddrFrom4(first), bits)
}

func deviceName(key []byte) string {
	name, _, _ := bytes.Cut(key[:min(len(key), unix.IFNAMSIZ)], []byte{0})
	return string(name)
}

func (t *table) present() (bool, error) {
	tables, err := t.conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, err
	}
	for _, have := range tables {
		if have.Name == t.nft().Name {
			return true, nil
		}
	}
	return false, nil
}

// ensure makes the table anew if it is gone, and reports whether it was.
func (t *table) ensure() (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if there, err := t.present(); err != nil || there {
		return false, err
	}
	return true, t.install()
}

// replace makes the whole table anew in one transaction: there is no moment
// without a filter.
func (t *table) replace() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.install()
}

func (t *table) install() error {
	conn := t.conn
	nft := t.nft()
	conn.AddTable(nft) // deleting what is not there is an error
	conn.DelTable(nft)
	conn.AddTable(nft)
	s := t.sets()
	for _, set := range s.all() {
		if err := conn.AddSet(set, nil); err != nil {
			return err
		}
	}
	never, err := disjoint("deny", append(alwaysDenied(), t.cfg.Deny...))
	if err != nil {
		return err
	}
	exempt, err := disjoint("exempt", t.cfg.Exempt)
	if err != nil {
		return err
	}
	fill := filler{conn: conn}
	fill.add(s.never, intervals(never))
	fill.add(s.exempt, intervals(exempt))
	fill.add(s.resolvers, addresses(t.cfg.Resolvers))
	for _, name := range t.uplinks {
		fill.add(s.uplinks, []nftables.SetElement{{Key: deviceKey(name)}})
	}
	all := t.elements()
	fill.add(s.slots, all.slots)
	fill.add(s.guests, all.guests)
	fill.add(s.open, all.open)
	fill.add(s.allow, all.allow)
	fill.add(s.deny, all.deny)
	if fill.err != nil {
		return fill.err
	}
	t.chains(conn, s)
	return conn.Flush()
}

// remove deletes the table.
func (t *table) remove() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if there, err := t.present(); err != nil || !there {
		return err
	}
	t.conn.DelTable(t.nft())
	return t.conn.Flush()
}

// chains adds the table's rules, as the package comment tells them.
func (t *table) chains(conn *nftables.Conn, s *sets) {
	c := chains{conn: conn, table: t.nft()}
	mine := t.devices

	refuse := c.chain("refuse")
	admit := c.chain("admit")
	policy := c.chain("policy")
	spoof := c.base("spoof", nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	limit := c.base("limit", nftables.ChainHookPrerouting, nftables.ChainPriorityMangle)
	host := c.base("host", nftables.ChainHookInput, nftables.ChainPriorityFilter)
	local := c.base("local", nftables.ChainHookOutput, nftables.ChainPriorityFilter)
	forward := c.base("forward", nftables.ChainHookForward, nftables.ChainPriorityFilter)
	nat := c.base("nat", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)

	c.add(refuse, protocol(expr.CmpOpEq, unix.IPPROTO_TCP), reset())
	c.add(refuse, unreachable())

	c.add(spoof, from(mine), notIPv4(), drop())
	c.add(spoof, from(mine), loadDevice(), source(reg2), notIn(s.slots), drop())

	c.add(limit, notFrom(mine), accept())
	c.add(limit, state(expr.CtStateBitINVALID), drop())
	c.add(limit, protocol(expr.CmpOpEq, unix.IPPROTO_UDP), over(s.udp, unix.NFT_DYNSET_OP_UPDATE, perSecond(t.cfg.Limits.UDPPerSecond)), drop())
	c.add(limit, state(expr.CtStateBitNEW), over(s.rate, unix.NFT_DYNSET_OP_UPDATE, perSecond(t.cfg.Limits.NewPerSecond)), drop())
	// A connection the tracker does not know is one from before a restore, or one
	// that was cut: say so at once. Also before any port forwarding of the host's.
	c.add(limit, state(expr.CtStateBitNEW), tcpFlags(tcpSyn|tcpAck, tcpAck), reset())
	c.add(limit, direction(original), toHost(), goTo(refuse.Name))

	c.add(host, from(mine), state(expr.CtStateBitESTABLISHED), direction(reply), accept())
	c.add(host, from(mine), goTo(refuse.Name))

	c.add(local, to(mine), state(expr.CtStateBitNEW), notRoots(), goTo(refuse.Name)) // the way in is the edge, which is root's

	c.add(forward, to(mine), state(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept())
	c.add(forward, to(mine), goTo(refuse.Name))
	c.add(forward, loadDevice(), in(s.uplinks), notTo(familyPrefix), drop()) // we made it a router, for sandboxes only
	c.add(forward, notFrom(mine), accept())
	c.add(forward, clampMSS())
	for _, l4 := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		c.add(forward, protocol(expr.CmpOpEq, l4), port(53), destination(reg1), in(s.resolvers), goTo(policy.Name))
	}
	c.add(forward, destination(reg1), in(s.exempt), goTo(policy.Name))
	c.add(forward, destination(reg1), in(s.never), goTo(refuse.Name))
	c.add(forward, goTo(policy.Name))

	c.add(policy, source(reg1), destination(word1), in(s.allow), goTo(admit.Name))
	c.add(policy, source(reg1), destination(word1), in(s.deny), goTo(refuse.Name))
	c.add(policy, source(reg1), in(s.open), goTo(admit.Name))
	c.add(policy, goTo(refuse.Name))

	c.add(admit, state(expr.CtStateBitNEW), over(s.conns, unix.NFT_DYNSET_OP_ADD, connections(t.cfg.Limits.Connections)), goTo(refuse.Name))
	c.add(admit, accept())

	c.add(nat, source(reg1), in(s.guests), masquerade())
}

// chains adds chains and rules to a transaction.
type chains struct {
	conn  *nftables.Conn
	table *nftables.Table
}

func (c chains) chain(name string) *nftables.Chain {
	return c.conn.AddChain(&nftables.Chain{Name: name, Table: c.table})
}

func (c chains) base(name string, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
	kind := nftables.ChainTypeFilter
	if name == "nat" {
		kind = nftables.ChainTypeNAT
	}
	return c.conn.AddChain(&nftables.Chain{Name: name, Table: c.table, Type: kind, Hooknum: hook, Priority: priority})
}

func (c chains) add(chain *nftables.Chain, parts ...[]expr.Any) {
	c.conn.AddRule(&nftables.Rule{Table: c.table, Chain: chain, Exprs: rule(parts...)})
}
