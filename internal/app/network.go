package app

import (
	"bufio"
	"context"
	"log/slog"
	"net/netip"
	"os"
	"strings"

	"hearth/internal/config"
	"hearth/internal/driver"
	"hearth/internal/egress"
	"hearth/internal/hearth"
	"hearth/internal/netns"
	"hearth/internal/node/agent"
)

// slots makes the agent's network from package netns.
type slots struct{ *netns.Manager }

// newNetwork prepares the node's slots; tag tells data directories apart.
func newNetwork(c *config.Config, tag string, log *slog.Logger) (*slots, error) {
	cfg := netns.Config{Name: tag, ReadyMax: c.Network.Slots, ReadyMin: (c.Network.Slots + 1) / 2}
	var err error
	if cfg.Prefix, err = netip.ParsePrefix(c.Network.Prefix); err != nil {
		return nil, hearth.Wrap(hearth.InvalidArgument, err, "network.prefix: %q", c.Network.Prefix)
	}
	for _, e := range c.Network.Exempt {
		p, err := netip.ParsePrefix(e)
		if err != nil {
			return nil, hearth.Wrap(hearth.InvalidArgument, err, "network.exempt: %q", e)
		}
		cfg.Exempt = append(cfg.Exempt, p)
	}
	for _, d := range c.Network.DNS {
		a, err := netip.ParseAddr(d)
		if err != nil {
			return nil, hearth.Wrap(hearth.InvalidArgument, err, "network.dns: %q", d)
		}
		cfg.Resolvers = append(cfg.Resolvers, a)
	}
	m, err := netns.New(cfg, log)
	if err != nil {
		return nil, err
	}
	return &slots{m}, nil
}

// Acquire implements agent.Network.
func (s *slots) Acquire(ctx context.Context) (agent.Slot, error) {
	slot, err := s.Manager.Acquire(ctx)
	if err != nil {
		return agent.Slot{}, err
	}
	return agentSlot(slot), nil
}

// AcquireTap implements agent.Network.
func (s *slots) AcquireTap(ctx context.Context) (agent.Slot, error) {
	slot, err := s.Manager.AcquireTap(ctx)
	if err != nil {
		return agent.Slot{}, err
	}
	return agentSlot(slot), nil
}

// Attach implements agent.Network.
func (s *slots) Attach(ctx context.Context, index int) (agent.Slot, error) {
	slot, err := s.Manager.Attach(ctx, index)
	if err != nil {
		return agent.Slot{}, err
	}
	return agentSlot(slot), nil
}

// SetPolicy implements agent.Network.
func (s *slots) SetPolicy(ctx context.Context, index int, n hearth.Network) error {
	p, err := egress.Parse(n)
	if err != nil {
		return err
	}
	return s.Manager.SetPolicy(ctx, index, netns.Policy(p))
}

func agentSlot(s *netns.Slot) agent.Slot {
	return agent.Slot{Index: s.Index, Net: driver.Attachment{
		NetNS: s.NetNS, Guest: s.Guest, Gateway: s.Gateway, Device: s.Device, MAC: s.MAC(), Tap: s.Tap,
	}}
}

// publicDNS serves sandboxes when the host's own name servers are private
// addresses, which a sandbox does not reach.
var publicDNS = []string{"1.1.1.1", "8.8.8.8"}

// nameServers returns the configured ones, else the host's public ones, else
// well-known ones.
func nameServers(c *config.Config, resolvConf string) []string {
	if len(c.Network.DNS) > 0 {
		return c.Network.DNS
	}
	f, err := os.Open(resolvConf)
	if err != nil {
		return publicDNS
	}
	defer f.Close()
	var list []string
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil && a.Is4() && a.IsGlobalUnicast() && !a.IsPrivate() && len(list) < 3 {
			list = append(list, a.String())
		}
	}
	if len(list) == 0 {
		return publicDNS
	}
	return list
}
