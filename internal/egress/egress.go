// Package egress turns what a sandbox's owner asked of its network into a policy
// that a packet filter can hold. It is pure: no I/O, no clock.
//
// The lists are E2B's: allowOut names addresses, ranges and domains, denyOut
// addresses and ranges; allowed beats denied, and what neither names is allowed,
// unless the sandbox has no internet access. Egress is IPv4 only. Rules for
// domains need a proxy that reads the name out of every connection; until there
// is one they are refused, as a rule that is silently not enforced is worse than
// none.
package egress

import (
	"net/netip"
	"slices"
	"strings"

	"hearth/internal/hearth"
)

// Limits of one sandbox's rules.
const (
	MaxEntries = 256 // of each list
	MaxDomain  = 253 // bytes of a domain name
	maxLabel   = 63  // bytes between two dots of a name
	maxShown   = 64  // bytes of a bad value that an error repeats
)

// allTraffic is what the E2B SDKs call ALL_TRAFFIC.
const allTraffic = "0.0.0.0/0"

// Policy says what a sandbox may reach: AllowOut, then DenyOut, then Internet.
// Its shape is that of the packet filter's policy, so one converts to the other.
type Policy struct {
	Internet bool           // what matches neither list is allowed
	AllowOut []netip.Prefix // allowed even if denied below
	DenyOut  []netip.Prefix
}

// Parse checks a network configuration and returns its policy. The error is an
// InvalidArgument that names the field and the value.
func Parse(n hearth.Network) (Policy, error) {
	p := Policy{Internet: n.AllowInternet == nil || *n.AllowInternet}
	if err := firstError(countOf("allowOut", n.AllowOut), countOf("denyOut", n.DenyOut), p.deny(n.DenyOut), p.allow(n.AllowOut)); err != nil {
		return Policy{}, err
	}
	return p, CheckMask(n.MaskRequestHost)
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *Policy) deny(list []string) error {
	for _, s := range list {
		prefix, ok := ParseRange(s)
		if !ok || prefix.Addr().IsUnspecified() && prefix.String() != allTraffic {
			return hearth.Errorf(hearth.InvalidArgument, "invalid denied CIDR %s", shown(s))
		}
		if prefix.Addr().Is4() { // what is IPv6 is never reached
			p.DenyOut = append(p.DenyOut, prefix)
		}
	}
	return nil
}

func (p *Policy) allow(list []string) error {
	domain := ""
	for _, s := range list {
		prefix, ok := ParseRange(s)
		switch {
		case ok && prefix.Addr().Is4():
			p.AllowOut = append(p.AllowOut, prefix)
		case ok:
			return hearth.Errorf(hearth.InvalidArgument, "allowOut: %s is IPv6; sandboxes have IPv4 egress only", shown(s))
		case !IsDomain(s):
			return hearth.Errorf(hearth.InvalidArgument, "invalid allowed destination %s: must be an address, a CIDR or a domain name", shown(s))
		case domain == "":
			domain = s
		}
	}
	if domain != "" {
		return p.refuseDomain(domain)
	}
	return nil
}

func (p *Policy) refuseDomain(domain string) error {
	if !slices.Contains(p.DenyOut, netip.MustParsePrefix(allTraffic)) {
		return hearth.Errorf(hearth.InvalidArgument, "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out to block all other traffic.")
	}
	return hearth.Errorf(hearth.InvalidArgument, "allowOut: %s is a domain; this server supports addresses and CIDRs only", shown(domain))
}

func countOf(field string, list []string) error {
	if len(list) > MaxEntries {
		return hearth.Errorf(hearth.InvalidArgument, "%s has %d entries; the limit is %d", field, len(list), MaxEntries)
	}
	return nil
}

// ParseRange reads an address or a range of addresses. Host bits of a range are
// cleared; an IPv4 address written as IPv6 is an IPv4 address.
func ParseRange(s string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, false
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return netip.Prefix{}, false
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), true
}

// IsDomain reports whether s is a domain pattern: "*", a name, or "*." and a
// name. What consists of numbers is a broken address, not a name.
func IsDomain(s string) bool {
	if s == "*" {
		return true
	}
	s = strings.TrimPrefix(s, "*.")
	return isName(s) && strings.ContainsFunc(s, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
}

// isName reports whether s is a host name of letters, digits, dashes and
// underscores.
func isName(s string) bool {
	if s == "" || len(s) > MaxDomain {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > maxLabel || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.ContainsFunc(label, notInName) {
			return false
		}
	}
	return true
}

func notInName(r rune) bool {
	letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
	return !letter && (r < '0' || r > '9') && r != '-' && r != '_'
}

// PortMark stands for the requested port in a masked host.
const PortMark = "${PORT}"

// CheckMask checks a maskRequestHost: a host name or IPv4 address, an optional
// port, and PortMark anywhere in either. Empty means no mask.
func CheckMask(mask string) error {
	if mask == "" {
		return nil
	}
	host, port, found := strings.Cut(strings.ReplaceAll(mask, PortMark, "1"), ":")
	if !isName(host) || found && !isPort(port) {
		return hearth.Errorf(hearth.InvalidArgument,
			"invalid maskRequestHost %s: must be a host name with an optional port; %s stands for the requested port", shown(mask), PortMark)
	}
	return nil
}

func isPort(s string) bool {
	n := 0
	for _, c := range []byte(s) {
		if c < '0' || c > '9' || n > 65535 {
			return false
		}
		n = n*10 + int(c-'0')
	}
	return s != "" && n >= 1 && n <= 65535
}

// shown is s as an error may repeat it: short, and printable ASCII.
func shown(s string) string {
	out := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s[:min(len(s), maxShown)])
	if len(s) > maxShown {
		out += "..."
	}
	return out
}
