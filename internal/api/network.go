package api

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"hearth/internal/gen/rest"
	"hearth/internal/hearth"
)

// allTraffic is what the SDKs call ALL_TRAFFIC.
const allTraffic = "0.0.0.0/0"

// SetSandboxNetwork replaces what a running sandbox may reach. Who may reach the
// sandbox was decided at create and stays.
func (s *server) SetSandboxNetwork(ctx context.Context, req rest.SetSandboxNetworkRequestObject) (rest.SetSandboxNetworkResponseObject, error) {
	sb, err := s.find(ctx, req.SandboxID)
	if err != nil {
		return nil, err
	}
	b := req.Body
	if err := unsupportedNetwork(b.EgressProxy, b.Rules, nil, b.DNSServers); err != nil {
		return nil, err
	}
	n := hearth.Network{
		AllowInternet: b.AllowInternetAccess, AllowOut: or(b.AllowOut, nil), DenyOut: or(b.DenyOut, nil),
		PrivateIngress: sb.Network.PrivateIngress, MaskRequestHost: sb.Network.MaskRequestHost,
	}
	if err := checkEgress(n); err != nil {
		return nil, err
	}
	if err := s.sandboxes.SetNetwork(ctx, teamOf(ctx), sb.ID, n); err != nil {
		return nil, err
	}
	return rest.SetSandboxNetwork204Response{}, nil
}

// createNetwork turns the network part of a create request into a policy.
func createNetwork(internet *bool, c *rest.SandboxNetworkConfig) (hearth.Network, error) {
	n := hearth.Network{AllowInternet: internet}
	if c == nil {
		return n, nil
	}
	if err := unsupportedNetwork(c.EgressProxy, c.Rules, c.HTTPSPorts, c.DNSServers); err != nil {
		return n, err
	}
	n.AllowOut, n.DenyOut = or(c.AllowOut, nil), or(c.DenyOut, nil)
	n.PrivateIngress = !or(c.AllowPublicTraffic, true)
	n.MaskRequestHost = or(c.MaskRequestHost, "")
	if strings.ContainsFunc(n.MaskRequestHost, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' || r == '@' }) {
		return n, hearth.Errorf(hearth.InvalidArgument, "network.maskRequestHost must be a host name with an optional port")
	}
	return n, checkEgress(n)
}

func unsupportedNetwork(proxy *rest.EgressProxy, rules *rest.NetworkRules, httpsPorts *[]int, dns *[]string) error {
	switch {
	case proxy != nil:
		return notYet("network.egressProxy")
	case rules != nil && len(*rules) > 0:
		return notYet("network.rules")
	case httpsPorts != nil && len(*httpsPorts) > 0:
		return notYet("network.httpsPorts")
	case dns != nil:
		return notYet("network.dnsServers")
	}
	return nil
}

// checkEgress holds the lists against the rules that E2B has for them.
func checkEgress(n hearth.Network) error {
	for _, d := range n.DenyOut {
		p, ok := parseDestination(d)
		if !ok || p.Addr().IsUnspecified() && d != allTraffic {
			return hearth.Errorf(hearth.InvalidArgument, "invalid denied CIDR %s", shown(d))
		}
	}
	domains := false
	for _, a := range n.AllowOut {
		if _, ok := parseDestination(a); ok {
			continue
		}
		if !isDomainPattern(a) {
			return hearth.Errorf(hearth.InvalidArgument, "invalid allowed destination %s: must be an address, a CIDR or a domain name", shown(a))
		}
		domains = true
	}
	if domains && !slices.Contains(n.DenyOut, allTraffic) {
		return hearth.Errorf(hearth.InvalidArgument, "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out to block all other traffic.")
	}
	return nil
}

// parseDestination reads an address or an address range.
func parseDestination(s string) (netip.Prefix, bool) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p, true
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, a.BitLen()), true
}

// isDomainPattern accepts "*", "*.example.com" and "example.com".
func isDomainPattern(s string) bool {
	if s == "*" {
		return true
	}
	s = strings.TrimPrefix(s, "*.")
	if s == "" || len(s) > 253 {
		return false
	}
	numeric := true // "1.2.3" is a broken address, not a name
	for label := range strings.SplitSeq(s, ".") {
		if !isLabel(label) {
			return false
		}
		numeric = numeric && strings.Trim(label, "0123456789") == ""
	}
	return !numeric
}

// isLabel accepts one part of a domain name.
func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return onlyOf(strings.ToLower(s), "-_")
}
