package netns

import (
	"net/netip"
	"slices"

	"hearth/internal/hearth"
)

// Policy says what one sandbox may reach, within what every sandbox is always
// denied. AllowOut is looked at first, then DenyOut, then Internet. IPv4 only.
// The zero Policy, which a fresh slot has, allows nothing.
type Policy struct {
	Internet bool           // what matches neither list is allowed
	AllowOut []netip.Prefix // allowed even if denied below
	DenyOut  []netip.Prefix
}

// Allows reports whether the policy lets a sandbox connect to an address, apart
// from the ranges that are always denied.
func (p Policy) Allows(a netip.Addr) bool {
	contains := func(q netip.Prefix) bool { return q.Contains(a) }
	switch {
	case slices.ContainsFunc(p.AllowOut, contains):
		return true
	case slices.ContainsFunc(p.DenyOut, contains):
		return false
	}
	return p.Internet
}

// normal returns the policy in the one form the filter holds: prefixes masked,
// sorted and free of overlap, and a denied 0.0.0.0/0 turned into Internet false.
// Equal behaviour within the lists gives equal values.
func (p Policy) normal() (Policy, error) {
	out := Policy{Internet: p.Internet}
	var err error
	if out.AllowOut, err = disjoint("allowOut", p.AllowOut); err != nil {
		return Policy{}, err
	}
	if out.DenyOut, err = disjoint("denyOut", p.DenyOut); err != nil {
		return Policy{}, err
	}
	if len(out.DenyOut) == 1 && out.DenyOut[0].Bits() == 0 {
		out.Internet = false
	}
	if !out.Internet { // whatever is denied, is denied anyway
		out.DenyOut = nil
	}
	return out, nil
}

// loosens reports that whatever before allowed, p allows too, for the cases in
// which that is plain to see.
func (p Policy) loosens(before Policy) bool {
	nothing := !before.Internet && len(before.AllowOut) == 0
	all := p.Internet && len(p.DenyOut) == 0
	return nothing || all || p.equal(before)
}

func (p Policy) equal(q Policy) bool {
	return p.Internet == q.Internet && slices.Equal(p.AllowOut, q.AllowOut) && slices.Equal(p.DenyOut, q.DenyOut)
}

// disjoint masks and sorts prefixes and drops those inside others; two prefixes
// either nest or are apart.
func disjoint(field string, in []netip.Prefix) ([]netip.Prefix, error) {
	if len(in) > maxCIDRs {
		return nil, hearth.Errorf(hearth.InvalidArgument, "%s has %d entries; the limit is %d", field, len(in), maxCIDRs)
	}
	var all []netip.Prefix
	for _, p := range in {
		if !p.IsValid() || !p.Addr().Is4() {
			return nil, hearth.Errorf(hearth.InvalidArgument, "%s: %s is not an IPv4 prefix", field, p)
		}
		all = append(all, p.Masked())
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	var out []netip.Prefix
	for _, p := range all {
		if len(out) == 0 || !out[len(out)-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out, nil
}

// alwaysDenied are the ranges no sandbox reaches, whatever its policy: none of
// them is the internet, and most of them are somebody's inside.
func alwaysDenied() []netip.Prefix {
	var out []netip.Prefix
	for _, s := range []string{
		"0.0.0.0/8",        // this host
		"10.0.0.0/8",       // private; sandboxes themselves
		"100.64.0.0/10",    // carrier-grade NAT; some clouds' metadata
		"127.0.0.0/8",      // loopback
		"168.63.129.16/32", // a cloud's host agent on a public address
		"169.254.0.0/16",   // link-local; most clouds' metadata
		"172.16.0.0/12",    // private
		"192.0.0.0/24",     // protocol assignments; one cloud's metadata
		"192.168.0.0/16",   // private
		"224.0.0.0/4",      // multicast
		"240.0.0.0/4",      // reserved, limited broadcast
	} {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// last returns the last address of an IPv4 prefix.
func last(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		a[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(a)
}
