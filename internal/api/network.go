package api

import (
	"context"

	"hearth/internal/egress"
	"hearth/internal/gen/rest"
	"hearth/internal/hearth"
)

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
	if _, err := egress.Parse(n); err != nil {
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
	_, err := egress.Parse(n)
	return n, err
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
